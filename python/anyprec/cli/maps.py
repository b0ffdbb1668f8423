"""The option --precision-map, and the maps that it names."""

from pathlib import Path
from typing import Annotated

import typer

PrecisionMapOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--precision-map",
        metavar="FILE",
        help="A precision for each linear, from `anyprec allocate`; repeat it to compare.",
    ),
]


def read_maps(files: list[Path] | None, checkpoint: Path) -> dict[str, dict[str, int]]:
    """The maps by their files' names."""
    from anyprec._core import Checkpoint
    from anyprec.precision_map import read_precision_map

    maps: dict[str, dict[str, int]] = {}
    for file in files or []:
        if file.name in maps:
            raise typer.BadParameter(
                f"{file.name!r} is the name of two files; rows are named by them",
                param_hint="--precision-map",
            )
        maps[file.name] = dict(read_precision_map(file, Checkpoint(checkpoint)).precisions)
    return maps


def needed_precisions(precisions: list[int], maps: dict[str, dict[str, int]]) -> list[int]:
    """What to load for all of them."""
    return sorted({*precisions, *(b for each in maps.values() for b in each.values())})
