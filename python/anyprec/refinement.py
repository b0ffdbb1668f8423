"""Refining a finished checkpoint: codebooks of chosen precisions, distilled from the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyprec.calibrate import placed
from anyprec.datasets import BUILTIN, Tokens, calibration_tokens
from anyprec.distill import (
    LEARNING_RATES,
    Codebooks,
    DistillError,
    DistillOptions,
    Outcome,
    distill,
)
from anyprec.model import AnyPrecisionForCausalLM
from anyprec.progress import Reporter, Silent, Terminal
from anyprec.rewrite import rewrite_checkpoint
from anyprec.source import Source, dtype_name, load_source


@dataclass(frozen=True)
class Refinement:
    """What `refine` did."""

    out: str
    outcomes: tuple[Outcome, ...]
    written: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "out": self.out,
            "written": self.written,
            "results": [outcome.to_dict() for outcome in self.outcomes],
        }


def refine(
    checkpoint: str | Path,
    original: str | Path | Source,
    *,
    precisions: Sequence[int] = (2, 3, 4),
    out: str | Path | None = None,
    dataset: str = BUILTIN,
    num_examples: int | None = None,
    seq_len: int = 512,
    random_state: int | None = None,
    held_out: int = 20,
    steps: int = 300,
    batch_size: int = 8,
    learning_rate: float | Mapping[int, float] | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    overwrite: bool = False,
    progress: Reporter | bool = False,
) -> Refinement:
    """Distils the codebooks of `precisions` from the original model; codes and all else stay.

    dataset, num_examples, seq_len, random_state: the text, as for quantizing; None for num_examples
    takes all that it has (of a hub dataset 500 windows). held_out: the last so many of them are not
    trained on and decide: a precision whose KL divergence to the original does not fall there keeps
    the codebooks that it had. learning_rate: one, or one for each precision; None for each
    precision's own. dtype: to compute in; "auto" is float32 on a CPU and bfloat16 on a GPU. out: a
    new directory, or with overwrite one to replace; by default the checkpoint itself is replaced,
    file by file, at the end. Nothing is written where no precision got better.

    Raises DistillError, DatasetError, SourceError, PrecisionError or FormatError.
    """
    directory = Path(checkpoint)
    target = directory if out is None else Path(out)
    if target != directory and target.exists() and not overwrite:
        raise DistillError(f"{target} exists already; name a new directory")
    rates = _rates(learning_rate, precisions)
    options = DistillOptions(steps, batch_size, rates[min(rates)])
    reporter: Reporter = Terminal() if progress is True else progress or Silent()
    if dtype == "auto":
        dtype = "float32" if torch.device(device).type == "cpu" else "bfloat16"
    student = AnyPrecisionForCausalLM.from_quantized(
        directory, precisions=precisions, device=device, dtype=dtype
    )
    tokens = _tokens(directory, dataset, num_examples, seq_len, random_state)
    if not 1 <= held_out < len(tokens.ids):
        raise DistillError(
            f"held_out {held_out}: wanted at least 1 and fewer than the {len(tokens.ids)} windows"
        )
    training, judging = tokens.ids[:-held_out], tokens.ids[-held_out:]
    reporter.line(f"{len(training)} windows of {seq_len} tokens, {held_out} more to judge by")

    outcomes: list[Outcome] = []
    replaced: dict[str, np.ndarray] = {}
    source = original if isinstance(original, Source) else load_source(original)
    with placed(source.model, student.device, student.dtype) as teacher:
        teacher.requires_grad_(False)
        for precision in sorted(set(precisions)):
            with reporter.stage(f"{precision} bits", steps) as advance:
                outcome, codebooks = distill(
                    student,
                    teacher,
                    training,
                    judging,
                    precision,
                    replace(options, learning_rate=rates[precision]),
                    on_step=lambda _, advance=advance: advance(),
                )
            outcomes.append(outcome)
            replaced |= _named(codebooks, precision)
            reporter.line(
                f"{precision} bits: held-out KL {outcome.before:.4f} -> {outcome.after:.4f}"
                + ("" if outcome.kept else ", not better: kept as it was")
            )
    if replaced:
        record = _record(tokens, options, rates, student, outcomes)
        rewrite_checkpoint(directory, target, replaced, {"refined": record}, overwrite=overwrite)
    return Refinement(str(target), tuple(outcomes), bool(replaced))


def _tokens(
    directory: Path, dataset: str, num_examples: int | None, seq_len: int, random_state: int | None
) -> Tokens:
    from transformers import AutoTokenizer

    return calibration_tokens(
        AutoTokenizer.from_pretrained(directory),
        dataset,
        num_examples=num_examples,
        seq_len=seq_len,
        random_state=random_state,
    )


def _rates(
    learning_rate: float | Mapping[int, float] | None, precisions: Sequence[int]
) -> dict[int, float | None]:
    """The learning rate of each precision; None for the precision's own."""
    if not isinstance(learning_rate, Mapping):
        return dict.fromkeys(precisions, learning_rate)
    missing = sorted(set(precisions) - set(learning_rate))
    if missing:
        raise DistillError(f"no learning rate for {missing[0]} bits, wanted one for each precision")
    return {precision: learning_rate[precision] for precision in precisions}


def _named(codebooks: Codebooks, precision: int) -> dict[str, np.ndarray]:
    """By their names in a checkpoint."""
    tensors: dict[str, np.ndarray] = {}
    for name, (lut, alpha) in codebooks.items():
        tensors[f"{name}.lut.{precision}"] = lut.cpu().numpy()
        if alpha is not None:
            tensors[f"{name}.alpha.{precision}"] = alpha.cpu().numpy()
    return tensors


def _record(
    tokens: Tokens,
    options: DistillOptions,
    rates: Mapping[int, float | None],
    student: torch.nn.Module,
    outcomes: list[Outcome],
) -> dict[str, Any]:
    return {
        **tokens.record(),
        "steps": options.steps,
        "batch_size": options.batch_size,
        "learning_rates": {str(b): rate or LEARNING_RATES[b] for b, rate in rates.items()},
        "device": student.device.type,
        "dtype": dtype_name(student.dtype),
        "results": [outcome.to_dict() for outcome in outcomes],
    }
