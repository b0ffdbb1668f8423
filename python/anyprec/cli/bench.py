"""anyprec bench: speed of the native engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from anyprec.cli.codebook import (
    CellGroupsOption,
    CodebookOption,
    GroupSizeOption,
    LutBitsOption,
)
from anyprec.cli.device import DeviceOption, DtypeOption, resolve
from anyprec.cli.errors import clear_errors
from anyprec.cli.output import JsonOption, console_for, human_bytes, write_json


@clear_errors
def bench_command(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="The checkpoint's directory; or give --shapes.")
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            help="Random weights of a model's shapes, made on the device: llama-2-7b, "
            "llama-3.1-8b, llama-3.1-70b (fewer layers), qwen3-4b or smollm2-135m."
        ),
    ] = None,
    precisions: Annotated[
        str | None, typer.Option(help="Comma-separated; 2,3,4,8 or all that the checkpoint has.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Sequences at the same time, comma-separated.")] = "1",
    context: Annotated[str, typer.Option(help="Prompt tokens, comma-separated.")] = "512",
    new_tokens: Annotated[int, typer.Option(min=2, help="Decode steps that are timed.")] = 64,
    codebook: CodebookOption = "lut",
    lut_bits: LutBitsOption = None,
    cell_groups: CellGroupsOption = None,
    group_size: GroupSizeOption = 0,
    quantize_head: Annotated[
        bool, typer.Option("--quantize-head", help="Of --shapes: the head as bit planes too.")
    ] = False,
    dense: Annotated[
        bool, typer.Option(help="Also the same engine with dense half-precision linears.")
    ] = True,
    huggingface: Annotated[
        bool,
        typer.Option(
            "--huggingface",
            help="Also Hugging Face's model of the same shapes, its step as one CUDA graph.",
        ),
    ] = False,
    graphs: Annotated[
        bool, typer.Option(help="Decode by CUDA graphs; without, kernel by kernel.")
    ] = True,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    json: JsonOption = None,
) -> None:
    """Measure the native engine: prompts and decoding, tokens a second, by precision.

    GB/s counts what a decode step must read: weights of its precision, and keys and values of all
    sequences. "limit" is that over what copies of large arrays reached in the same run.
    A checkpoint has its own codebooks; the options that name some are of --shapes.

    Example: anyprec bench --shapes llama-3.1-8b --precisions 3,4,8 --batch 1,8 --json bench.json
    """
    import torch

    from anyprec.bench import Case, Speed, copy_bandwidth, measure
    from anyprec.options import codebook_form

    if (checkpoint is None) == (shapes is None):
        raise typer.BadParameter("wanted a checkpoint or --shapes, and not both")
    table_bits, groups = codebook_form(codebook, lut_bits, cell_groups)
    form = {"lut_bits": table_bits, "cell_groups": groups, "group_size": group_size}
    device, dtype = resolve(device, dtype)
    plan = _plan(checkpoint, shapes, precisions, form, quantize_head)
    vocabulary = plan.config.get("text_config", plan.config)["vocab_size"]
    cases = [
        Case(size, length, new_tokens, vocabulary)
        for length in _numbers(context, "--context")
        for size in _numbers(batch, "--batch")
    ]
    console = console_for(json)
    target = torch.device(device)
    bandwidth = copy_bandwidth(target)
    rows: list[Speed] = []

    def show(row: Speed) -> None:
        rows.append(row)
        console.print(
            f"[dim]{row.name}, batch {row.batch}, context {row.context}: "
            f"{row.decode_tokens_per_second:.1f} tokens/s[/dim]"
        )

    half = "float16" if dtype == "auto" else dtype
    if huggingface:
        _measure_reference(plan.config, half, target, cases, bandwidth, show)
    common = {"device": device, "cuda_graphs": graphs}
    if dense:
        measure(
            lambda options: plan.dense(**common, dtype=half, **options),
            [(f"{half}, dense", None)],
            cases,
            target,
            bandwidth,
            show,
        )
    measure(
        lambda options: plan.quantized(**common, dtype=dtype, **options),
        [(f"{bits} bits", bits) for bits in plan.precisions],
        cases,
        target,
        bandwidth,
        show,
    )
    where = torch.cuda.get_device_name(target) if target.type == "cuda" else "CPU"
    title = f"{plan.title}, {where}, copies at {bandwidth / 1e9:.0f} GB/s"
    console.print(_table(rows, title))
    for note in plan.notes:
        console.print(note)
    write_json(
        {
            "model": plan.title,
            "notes": plan.notes,
            "device": where,
            "copy_bytes_per_second": bandwidth,
            "results": [row.to_dict() for row in rows],
        },
        json,
    )


def _measure_reference(
    config: Mapping[str, Any],
    dtype: str,
    device: Any,
    cases: list[Any],
    bandwidth: float,
    show: Callable[[Any], None],
) -> None:
    import torch

    from anyprec.bench_reference import reference_model, reference_speed

    model = reference_model(config, getattr(torch, dtype), device)
    for case in cases:
        show(reference_speed(model, case, bandwidth))


@dataclass(frozen=True)
class _Plan:
    """The engines to measure, and how they are made."""

    title: str
    precisions: list[int]
    notes: list[str]
    config: Mapping[str, Any]  # of the shapes, as config.json has it
    quantized: Callable[..., Any]
    dense: Callable[..., Any]


def _plan(
    checkpoint: Path | None,
    shapes: str | None,
    precisions: str | None,
    form: dict[str, Any],
    quantize_head: bool,
) -> _Plan:
    from anyprec.bench_shapes import NOTES, SHAPES
    from anyprec.native import NativeEngine

    wanted = None if precisions is None else _numbers(precisions, "--precisions")
    if checkpoint is not None:
        from anyprec._core import Checkpoint

        opened = Checkpoint(checkpoint, sorted(wanted or []))
        config = opened.config
        return _Plan(
            str(checkpoint),
            list(opened.precisions),
            ["The dense rows have random weights of the same shapes."],
            config,
            lambda **options: NativeEngine.from_directory(
                checkpoint, precisions=opened.precisions, **options
            ),
            lambda **options: NativeEngine.from_shape(config, **options),
        )
    if shapes not in SHAPES:
        raise typer.BadParameter(f"found {shapes!r}, wanted one of {', '.join(SHAPES)}")
    listed = sorted(wanted or [2, 3, 4, 8])
    head = ", quantized head" if quantize_head else ""
    return _Plan(
        f"shapes of {shapes}, {_named(**form)}{head}",
        listed,
        ["Weights are random.", *([NOTES[shapes]] if shapes in NOTES else [])],
        SHAPES[shapes],
        lambda **options: NativeEngine.from_shape(
            SHAPES[shapes], listed, form, quantize_head, **options
        ),
        lambda **options: NativeEngine.from_shape(SHAPES[shapes], **options),
    )


def _named(lut_bits: int, cell_groups: str, group_size: int) -> str:
    if lut_bits == 8:
        name = "full tables"
    elif lut_bits == 0:
        name = "binary coding"
    else:
        name = f"tables of {1 << lut_bits} and planes ({cell_groups})"
    return name + (f", groups of {group_size}" if group_size else "")


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"{option}: found {text!r}, wanted numbers like 1,8")
    return numbers


def _table(rows: list[Any], title: str) -> Table:
    table = Table(title=title)
    table.add_column("weights", no_wrap=True)
    for name in ("batch", "context", "prompt t/s", "decode t/s", "ms", "GB/s", "limit", "memory"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            str(row.batch),
            str(row.context),
            f"{row.prefill_tokens_per_second:.0f}",
            f"{row.decode_tokens_per_second:.1f}",
            f"{row.decode_step_seconds * 1e3:.3f}",
            f"{row.bytes_per_second / 1e9:.1f}",
            f"{row.limit_share:.0%}",
            human_bytes(row.peak_bytes),
        )
    return table
