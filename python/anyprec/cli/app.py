"""The `anyprec` command."""

from typing import Annotated

import typer

from anyprec.cli.allocate import allocate_command
from anyprec.cli.bench import bench_command
from anyprec.cli.eval import eval_command
from anyprec.cli.generate import generate_command
from anyprec.cli.inspect import inspect_command
from anyprec.cli.plot import plot_command
from anyprec.cli.quantize import quantize_command
from anyprec.cli.refine import refine_command
from anyprec.cli.verify import verify_command

app = typer.Typer(
    name="anyprec",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="One set of quantized weights that serves as a 2- to 8-bit language model.",
)
app.command("quantize")(quantize_command)
app.command("refine")(refine_command)
app.command("allocate")(allocate_command)
app.command("generate")(generate_command)
app.command("eval")(eval_command)
app.command("bench")(bench_command)
app.command("plot")(plot_command)
app.command("inspect")(inspect_command)
app.command("verify")(verify_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from anyprec._core import __version__

        typer.echo(f"anyprec {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 an error (one line on stderr), 2 wrong usage."""
    app()


if __name__ == "__main__":
    main()
