"""anyprec inspect: what a checkpoint holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anyprec.cli.errors import clear_errors
from anyprec.cli.output import JsonOption, console_for, human_bytes, write_json

if TYPE_CHECKING:
    from anyprec.report import Contents


@clear_errors
def inspect_command(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint's directory.")],
    json: JsonOption = None,
) -> None:
    """Show what a checkpoint holds: linears, sizes and bits per weight, how it was made.

    "to serve" is what a model at one precision holds in memory: everything that is not quantized,
    the planes up to that precision, and that precision's codebooks. "files" is what it opens.

    Example: anyprec inspect out
    """
    from anyprec.report import inspect_checkpoint

    contents = inspect_checkpoint(checkpoint)
    _print(contents, console_for(json))
    write_json(contents.to_dict(), json)


def _print(contents: "Contents", console: Console) -> None:
    quantization = dict(contents.quantization)
    codebook = quantization.pop("codebook")
    console.print(
        f"[bold]{escape(contents.path)}[/bold]: {escape(contents.architecture)}, "
        f"format version {quantization.pop('format_version')}, "
        f"{human_bytes(sum(contents.files.values()))} in {len(contents.files)} files",
        soft_wrap=True,
    )
    console.print(
        f"codebook: table on {codebook['lut_bits']} bits, cell groups {codebook['cell_groups']}, "
        f"group size {codebook['group_size'] or 'the whole row'}; "
        f"seed precision {quantization.pop('seed_precision')}",
        soft_wrap=True,
    )
    console.print(_module_table(contents))
    console.print(_size_table(contents))
    console.print(f"producer: {escape(str(quantization.pop('producer')))}", soft_wrap=True)
    calibration = quantization.pop("calibration")
    _print_record(console, "calibration", calibration)
    for known in ("quant_method", "precisions"):
        quantization.pop(known, None)
    for name, value in quantization.items():
        _print_record(console, name, value)


def _print_record(console: Console, name: str, value: Any) -> None:
    if isinstance(value, dict):
        value = ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    console.print(f"{escape(name)}: {escape(str(value))}", soft_wrap=True)


def _module_table(contents: "Contents") -> Table:
    table = Table("quantized linears", title_justify="left")
    for header in ("count", "N x K", "weights"):
        table.add_column(header, justify="right")
    for kind in contents.modules:
        shape = f"{kind.out_features} x {kind.in_features}"
        table.add_row(escape(kind.name), str(kind.count), shape, f"{kind.weights:,}")
    table.add_section()
    table.add_row("all", str(contents.linears), "", f"{contents.quantized_weights:,}")
    return table


def _size_table(contents: "Contents") -> Table:
    table = Table()
    headers = ("bits", "bits per weight", "planes", "codebooks", "not quantized", "to serve")
    for header in (*headers, "files"):
        table.add_column(header, justify="right")
    for size in contents.sizes:
        table.add_row(
            str(size.precision),
            f"{size.bits_per_weight:.3f}",
            human_bytes(size.planes),
            human_bytes(size.codebooks),
            human_bytes(contents.base_bytes),
            human_bytes(size.serving),
            human_bytes(size.files),
        )
    return table
