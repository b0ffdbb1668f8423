"""What a long run says while it works: nothing, or lines and bars on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol


class Reporter(Protocol):
    """Hears of a run's steps."""

    def line(self, text: str) -> None:
        """Something to tell once."""

    def stage(
        self, title: str, total: int
    ) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """A stage of `total` steps begins; call what it yields after each."""


class Silent:
    """Says nothing."""

    def line(self, text: str) -> None:
        pass

    @contextlib.contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        yield lambda: None


class Terminal:
    """Lines, and a bar with the time left for each stage, on standard error."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        self._console.print(text, markup=False)

    @contextlib.contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        ) as progress:
            task = progress.add_task(title, total=total)
            yield lambda: progress.advance(task)
