"""anyprec plot: quality against bits per weight."""

from pathlib import Path
from typing import Annotated

import typer

from anyprec.cli.errors import clear_errors


@clear_errors
def plot_command(
    reports: Annotated[
        list[Path],
        typer.Argument(help="Reports of eval --json, or directories of them; a series for each."),
    ],
    out: Annotated[Path, typer.Option(help="The picture: a .png or .svg file.")] = Path(
        "quality.png"
    ),
    label: Annotated[
        list[str] | None,
        typer.Option(help="A series' name, once for each report in order; by default its file's."),
    ] = None,
    title: Annotated[str, typer.Option(help="Above the picture.")] = "",
    references: Annotated[
        Path | None, typer.Option(help="A file of reference points instead of the one that ships.")
    ] = None,
    reference: Annotated[
        bool, typer.Option(help="Show other methods' points that were measured in the same way.")
    ] = True,
) -> None:
    """Plot perplexity and KL divergence against bits per weight, codebooks counted.

    Beside them stand the published method's points where the text, the windows and the original
    model's perplexity are those that it was measured with.

    Example: anyprec plot results --out quality.svg
    """
    from anyprec.plot import REFERENCES, comparable, draw, read_references, read_reports

    series = read_reports(reports, label or ())
    if reference:
        series = series + comparable(read_references(references or REFERENCES), series)
    draw(series, out, title)
    typer.echo(f"written: {out}, {len(series)} series")
