"""anyprec eval: perplexity at each precision, beside the original model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from anyprec.cli.device import DeviceOption, DtypeOption, resolve
from anyprec.cli.errors import clear_errors
from anyprec.cli.maps import PrecisionMapOption, needed_precisions, read_maps
from anyprec.cli.output import JsonOption, console_for, write_json

if TYPE_CHECKING:
    from torch import nn

    from anyprec.evaluate import Evaluation, Score
    from anyprec.model import AnyPrecisionForCausalLM


@clear_errors
def eval_command(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint's directory.")],
    dataset: Annotated[
        str, typer.Option(help="wikitext2 (through `datasets`), another known name, or a file.")
    ] = "wikitext2",
    precisions: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, 3,4,8 for example; by default all of the checkpoint, or none "
            "beside a precision map."
        ),
    ] = None,
    precision_map: PrecisionMapOption = None,
    original: Annotated[
        str | None,
        typer.Option(help="The model it was made from: a folder, a hub name or a GGUF file."),
    ] = None,
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens in a window.")] = 2048,
    max_windows: Annotated[
        int | None, typer.Option(min=1, help="Score the first windows only.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    json: JsonOption = None,
) -> None:
    """Measure perplexity, and with --original also KL divergence and top-1 agreement.

    The text is tokenized as a whole and cut into windows that do not overlap; a window's first
    token is not scored. "±" is the standard error over windows. "bits per weight" counts codebooks.

    Example: anyprec eval out --dataset test.txt --precisions 3,4,8 --original model --json out.json
    """
    from transformers import AutoTokenizer

    from anyprec._core import Checkpoint
    from anyprec.evaluate import evaluate, load_text, windows
    from anyprec.model import AnyPrecisionForCausalLM
    from anyprec.report import bits_per_weight, linear_sizes

    maps = read_maps(precision_map, checkpoint)
    if precisions is not None:
        wanted = parse_precisions(precisions)
    else:
        wanted = [] if maps else Checkpoint(checkpoint).available_precisions
    console = console_for(json)
    text = load_text(dataset)
    device, dtype = resolve(device, dtype)
    model = AnyPrecisionForCausalLM.from_quantized(
        checkpoint, precisions=needed_precisions(wanted, maps), device=device, dtype=dtype
    )
    tokens = windows(AutoTokenizer.from_pretrained(checkpoint), text, seq_len, max_windows)
    with _original(original, model) as reference, _progress(console) as progress:
        models = len(wanted) + len(maps) + (reference is not None)
        task = progress.add_task(f"{tokens.shape[0]} windows", total=tokens.shape[0] * models)
        evaluation = evaluate(
            model, tokens, wanted, reference, lambda: progress.advance(task), precision_maps=maps
        )
    sizes = linear_sizes(Checkpoint(checkpoint))
    uniform = {b: {size.name: b for size in sizes} for b in wanted}
    bits = {name: bits_per_weight(sizes, each) for name, each in {**uniform, **maps}.items()}
    console.print(_table(evaluation, bits))
    report: dict[str, Any] = evaluation.to_dict()
    for row, score in zip(report["results"], evaluation.results, strict=True):
        row["bits_per_weight"] = bits[score.precision]
    report |= {
        "checkpoint": str(checkpoint),
        "dataset": dataset,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if original is not None:
        report["original"]["path"] = original
    write_json(report, json)


@contextlib.contextmanager
def _original(path: str | None, model: "AnyPrecisionForCausalLM") -> Iterator["nn.Module | None"]:
    """The original model, on the checkpoint's device and in its dtype; None without a path."""
    if path is None:
        yield None
        return
    from anyprec.calibrate import placed
    from anyprec.source import load_source

    with placed(load_source(path).model, model.device, model.dtype) as reference:
        yield reference


def parse_precisions(text: str) -> list[int]:
    """ "3,4,8" -> [3, 4, 8]."""
    try:
        precisions = [int(item) for item in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: comma-separated integers are wanted, 3,4,8 for example",
            param_hint="--precisions",
        ) from None
    if len(set(precisions)) != len(precisions):
        raise typer.BadParameter(f"{text!r} names one twice", param_hint="--precisions")
    return precisions


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _table(evaluation: "Evaluation", bits: dict[int | str, float]) -> Table:
    table = Table(caption=f"{evaluation.windows} windows of {evaluation.seq_len} tokens")
    table.add_column("precision", justify="right", no_wrap=True)  # names of files stay whole
    for header in ("bits per weight", "perplexity", "±"):
        table.add_column(header, justify="right")
    if evaluation.original is not None:
        for header in ("KL to original", "±", "top-1 agreement"):
            table.add_column(header, justify="right")
    for score in evaluation.results:
        table.add_row(*_row(escape(str(score.precision)), f"{bits[score.precision]:.3f}", score))
    if evaluation.original is not None:
        table.add_section()
        table.add_row(*_row("original", "", evaluation.original))
    return table


def _row(name: str, bits: str, score: "Score") -> list[str]:
    cells = [name, bits, f"{score.perplexity:.3f}", _number(score.stderr, ".3f")]
    if score.kl is not None:
        cells += [
            f"{score.kl:.5f}",
            _number(score.kl_stderr, ".5f"),
            _number(score.top1, ".2%"),
        ]
    return cells


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
