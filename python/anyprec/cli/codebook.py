"""The options that name a codebook form (docs/codebooks.md)."""

from typing import Annotated

import typer

CodebookOption = Annotated[
    str,
    typer.Option(
        help="lut: a full table per output channel and precision; hybrid: a table on the top "
        "bits and signed planes below; bcq: an offset and signed planes."
    ),
]
LutBitsOption = Annotated[
    int | None, typer.Option(help="Bits of a hybrid's table, 1 to 7; 4 unless given.")
]
CellGroupsOption = Annotated[
    str | None,
    typer.Option(
        help="Cells of a hybrid's table that share coefficients: one, io (the default), sym, "
        "qu or cell."
    ),
]
GroupSizeOption = Annotated[
    int, typer.Option(help="Columns that share a codebook, a multiple of 32; 0: the whole row.")
]
