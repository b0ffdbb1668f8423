"""anyprec allocate: a precision for each linear under a budget of bits per weight."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from anyprec.cli.device import DeviceOption, DtypeOption, resolve
from anyprec.cli.errors import clear_errors
from anyprec.cli.output import JsonOption, console_for, write_json

if TYPE_CHECKING:
    from anyprec.allocation import Allocation


@clear_errors
def allocate_command(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint's directory.")],
    target_bits: Annotated[
        list[float],
        typer.Option(min=0.0, help="Bits per weight at most, codebooks counted; repeat for more."),
    ],
    out: Annotated[
        str, typer.Option(help="The map's file; {bits} stands for the target.")
    ] = "map-{bits}.json",
    dataset: Annotated[
        str, typer.Option(help="The text to choose on, as for `anyprec quantize`.")
    ] = "builtin",
    num_examples: Annotated[int, typer.Option(min=1, help="Sequences of it.")] = 16,
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens in each of them.")] = 512,
    random_state: Annotated[
        int | None,
        typer.Option(help="Picks windows at random; without it the text's first ones are taken."),
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(
            help="Diverge from this model (a folder, a hub name or a GGUF file) instead of from "
            "the checkpoint's widest precision."
        ),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    json: JsonOption = None,
) -> None:
    """Choose a precision for each linear, to predict best at a size between two precisions.

    Measures what each linear costs at each precision, and writes the map of least predicted KL
    divergence whose bits per weight, as `anyprec inspect` counts them, are within the target.

    Example: anyprec allocate out --target-bits 3.5 --out map.json
    """
    files = _files(out, target_bits)
    console = console_for(json)

    from anyprec.allocation import allocate
    from anyprec.progress import Terminal

    device, dtype = resolve(device, dtype)
    allocations = allocate(
        checkpoint,
        target_bits,
        dataset=dataset,
        num_examples=num_examples,
        seq_len=seq_len,
        random_state=random_state,
        original=original,
        device=device,
        dtype=dtype,
        reporter=Terminal(),
    )
    for file, allocation in zip(files, allocations, strict=True):
        allocation.map.write(file)
    console.print(_table(files, allocations))
    reports = [
        {"file": str(file), **allocation.to_dict()}
        for file, allocation in zip(files, allocations, strict=True)
    ]
    write_json({"checkpoint": str(checkpoint), "maps": reports}, json)


def _files(out: str, targets: list[float]) -> list[Path]:
    if len(set(targets)) != len(targets):
        raise typer.BadParameter("one target twice", param_hint="--target-bits")
    files = [Path(out.replace("{bits}", f"{target:g}")) for target in targets]
    if len(set(files)) != len(files):
        raise typer.BadParameter(
            f"{out!r} names one file for {len(targets)} targets; {{bits}} in it makes them differ",
            param_hint="--out",
        )
    return files


def _table(files: list[Path], allocations: list["Allocation"]) -> Table:
    """A row for each uniform precision, then one for each map."""
    table = Table("precision", caption="KL in nats a token: measured; of a map predicted")
    for header in ("bits per weight", "KL"):
        table.add_column(header, justify="right")
    table.add_column("linears at each precision")
    for b, (bits, kl) in allocations[0].uniform.items():
        table.add_row(str(b), f"{bits:.3f}", f"{kl:.5f}", "")
    table.add_section()
    for file, each in zip(files, allocations, strict=True):
        linears = ", ".join(f"{b}: {count}" for b, count in each.linears_at.items())
        table.add_row(
            escape(file.name), f"{each.bits_per_weight:.3f}", f"{each.predicted_kl:.5f}", linears
        )
    return table
