"""anyprec quantize: a model once, for every precision."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anyprec.cli.codebook import (
    CellGroupsOption,
    CodebookOption,
    GroupSizeOption,
    LutBitsOption,
)
from anyprec.cli.errors import clear_errors
from anyprec.cli.output import JsonOption, console_for, human_bytes, write_json

if TYPE_CHECKING:
    from anyprec.summary import Summary


@clear_errors
def quantize_command(
    model: Annotated[str, typer.Argument(help="A model folder, a hub name, or a .gguf file.")],
    out: Annotated[Path, typer.Argument(help="The checkpoint's directory, made at the end.")],
    precisions: Annotated[
        str, typer.Option(help="A range, 2-8 for example, or a list without gaps: 3,4,5.")
    ] = "2-8",
    seed_precision: Annotated[
        int, typer.Option(help="The precision that clustering fits directly.")
    ] = 3,
    group_size: GroupSizeOption = 0,
    codebook: CodebookOption = "lut",
    lut_bits: LutBitsOption = None,
    cell_groups: CellGroupsOption = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="How much work to put in: fast, balanced (codes and tables fitted to guided "
            "Hessians), best (and tables distilled from the original), or a .json file."
        ),
    ] = "fast",
    modules: Annotated[
        list[str] | None,
        typer.Option(
            help="Glob over names of linear layers; repeat it for more. By default those of the "
            "model's family, else every linear layer in the decoder's blocks."
        ),
    ] = None,
    quantize_head: Annotated[
        bool,
        typer.Option(
            "--quantize-head",
            help="Quantize the output head too. One that is tied to the embedding becomes a matrix "
            "of its own: more bytes to store, fewer to read for a token.",
        ),
    ] = False,
    dataset: Annotated[
        str,
        typer.Option(
            help="Calibration text: builtin (ships with anyprec), c4, wikitext2, ptb or pileval "
            "(from the hub), a text or .jsonl file, or a folder of them."
        ),
    ] = "builtin",
    num_examples: Annotated[int, typer.Option(min=1, help="Calibration sequences.")] = 100,
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens in each of them.")] = 512,
    random_state: Annotated[
        int | None,
        typer.Option(help="Picks windows at random; without it the text's first ones are taken."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where calibration runs: auto, cpu, cuda, cuda:1, ...")
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="What unquantized tensors are stored in: auto (the model's own; float16 for "
            "GGUF), float32, bfloat16 or float16."
        ),
    ] = "auto",
    calibration_dtype: Annotated[
        str,
        typer.Option(
            help="What calibration computes in: auto (bfloat16 for a bfloat16 model on a GPU, "
            "otherwise float32), float32, bfloat16 or float16."
        ),
    ] = "auto",
    max_memory: Annotated[
        str | None,
        typer.Option(
            help="The most that calibration takes of the device's memory and of RAM, the model "
            "included: 20GiB, 800MB, ... Larger models go through it in parts. By default nine "
            "tenths of what is free."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all cores.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint made by another request.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be made and its size.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Quantize a model once, into a checkpoint that serves every precision.

    An interrupted run goes on where it stopped: finished steps wait in OUT.work, and are trusted
    only after their content is checked. Asking again for what is there already does nothing.

    Examples:

      anyprec quantize HuggingFaceTB/SmolLM2-135M-Instruct out

      anyprec quantize model.gguf out --dataset text.txt --num-examples 32

      anyprec quantize ./model out --recipe best --device cuda --max-memory 20GiB

      anyprec quantize ./model out --precisions 3-6 --dry-run
    """
    from anyprec.quantization import quantize

    console = console_for(json)
    summary = quantize(
        model,
        out,
        modules=tuple(modules or ()),
        quantize_head=quantize_head,
        dataset=dataset,
        num_examples=num_examples,
        seq_len=seq_len,
        random_state=random_state,
        device=device,
        dtype=dtype,
        calibration_dtype=calibration_dtype,
        precisions=parse_precision_range(precisions),
        seed_precision=seed_precision,
        group_size=group_size,
        codebook=codebook,
        lut_bits=lut_bits,
        cell_groups=cell_groups,
        recipe=recipe,
        max_memory=max_memory,
        threads=threads,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=True,
    )
    _print(summary, console)
    write_json(summary.to_dict(), json)


def parse_precision_range(text: str) -> tuple[int, ...]:
    """ "2-8" -> (2, ..., 8); "3,4" -> (3, 4)."""
    try:
        if "-" in text:
            first, last = (int(item) for item in text.split("-"))
            return tuple(range(first, last + 1))
        return tuple(int(item) for item in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: a range or a list is wanted, 2-8 or 3,4,5 for example",
            param_hint="--precisions",
        ) from None


def _print(summary: "Summary", console: Console) -> None:
    table = Table()
    for header in ("bits", "bits per weight", "to serve", "own file"):
        table.add_column(header, justify="right")
    if summary.results:
        table.add_column("relative error", justify="right")
    for size in summary.sizes:
        row = [
            str(size.precision),
            f"{size.bits_per_weight:.3f}",
            human_bytes(summary.base_bytes + size.bytes),
            human_bytes(size.file_bytes),
        ]
        if summary.results:
            row.append(f"{summary.relative_error(size.precision):.3e}")
        table.add_row(*row)
    table.add_section()
    table.add_row("original", "", human_bytes(summary.original_bytes), "")
    console.print(table)
    verb = {"made": "made", "already made": "already there", "dry run": "would make"}
    console.print(
        f"{verb[summary.status]}: {escape(summary.out)}, {human_bytes(summary.total_bytes)} "
        f"({human_bytes(summary.base_bytes)} not quantized), {len(summary.selection.linears)} "
        f"linear layers from {escape(summary.source)}",
        soft_wrap=True,
    )
