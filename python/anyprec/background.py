"""Work beside the main thread's: hashing and files while a GPU computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Background:
    """Calls functions in threads, in the order that they are given, `threads` at a time.

    A call that failed raises from the next `run`, or when the context ends; the context ends when
    all calls have, also where its body is interrupted: what was given is not lost. As many again as
    threads may wait, so that what they hold stays bounded.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._pending: deque[Future[Any]] = deque()

    def run(self, function: Callable[..., Any], *args: Any) -> None:
        while len(self._pending) >= 2 * self._threads:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(function, *args))

    def wait(self) -> None:
        """Until all calls have ended; raises what the first failed one did."""
        while self._pending:
            self._pending.popleft().result()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown()


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """map(function, items), in order, with the next `threads` items under way beside the caller."""
    rest = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        pending = deque(pool.submit(function, item) for item in islice(rest, threads))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(rest, 1))
            yield result
