"""Refining a finished checkpoint: codebooks of chosen precisions, distilled from the original."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from anyprec._core import Checkpoint
from anyprec.calibrate import placed
from anyprec.datasets import BUILTIN, Tokens, calibration_tokens
from anyprec.distill import (
    DistillError,
    DistillOptions,
    Outcome,
    default_learning_rate,
    distill,
    fast_products,
)
from anyprec.model import AnyPrecisionForCausalLM
from anyprec.progress import Reporter, Silent, Terminal
from anyprec.rewrite import rewrite_checkpoint
from anyprec.source import Source, dtype_name, load_source, parse_dtype
from anyprec.table_linear import stored_tensors
from anyprec.teacher import teach

# Models of up to so many weights are distilled in mixed precision on a GPU. Larger ones wholly in
# bfloat16, whose rounding of what passes from block to block hides what is left to learn at 6 bits
# and more.
_MIXED_WEIGHTS = 2_000_000_000
MIXED = "mixed"

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What one precision's distillation took. step: seconds, the median; peak_memory: bytes
    allocated on the GPU at most, None on a CPU."""

    precision: int
    seconds: float
    step: float
    peak_memory: int | None


@dataclass(frozen=True)
class Refinement:
    """What `refine` did. teacher_seconds: for the original model's pass over the text."""

    out: str
    outcomes: tuple[Outcome, ...]
    written: bool
    teacher_seconds: float
    costs: tuple[Cost, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "out": self.out,
            "written": self.written,
            "results": [outcome.to_dict() for outcome in self.outcomes],
            "teacher_seconds": self.teacher_seconds,
            "costs": [asdict(cost) for cost in self.costs],
        }


def refine(
    checkpoint: str | Path,
    original: str | Path | Source,
    *,
    precisions: Sequence[int] = (2, 3, 4),
    out: str | Path | None = None,
    dataset: str | Tokens = BUILTIN,
    num_examples: int | None = None,
    seq_len: int = 512,
    random_state: int | None = None,
    held_out: int = 20,
    steps: int | Mapping[int, int] = 300,
    batch_size: int = 8,
    learning_rate: float | Mapping[int, float] | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    cuda_graph: bool = True,
    overwrite: bool = False,
    progress: Reporter | bool = False,
) -> Refinement:
    """Distils the codebooks of `precisions` from the original model; codes and all else stay.

    The original goes over the text once, for all precisions; then only its head is needed.

    dataset, num_examples, seq_len, random_state: the text, as for quantizing; None for num_examples
    takes all that it has (of a hub dataset 500 windows); or the windows themselves. held_out: the
    last so many of them are not trained on and decide: a precision whose KL divergence to the
    original does not fall there keeps the codebooks that it had. steps: of the optimizer, for all
    precisions or for each. learning_rate: likewise; None for each precision's own. dtype: to
    compute in; "mixed" is float32 with products and attention of a step in half precision
    (DistillStep); "auto" is float32 on a CPU, and on a GPU mixed, or bfloat16 for more than 2
    billion weights. cuda_graph: on a GPU, capture a step and replay it. out: a new directory, or
    with overwrite one to replace; by default the checkpoint itself is replaced, file by file, at
    the end. Nothing is written where no precision got better.

    Raises DistillError, DatasetError, SourceError, HeadError, StepError, PrecisionError or
    FormatError.
    """
    directory = Path(checkpoint)
    target = directory if out is None else Path(out)
    if target != directory and target.exists() and not overwrite:
        raise DistillError(f"{target} exists already; name a new directory")
    precisions = sorted(set(precisions))
    if not precisions:
        raise DistillError("precisions is empty, wanted at least one")
    lut_bits = Checkpoint(directory, precisions).codebook["lut_bits"]
    rates = _rates(learning_rate, precisions, lut_bits)
    counts = _each("steps", steps, precisions)
    reporter: Reporter = Terminal() if progress is True else progress or Silent()
    if isinstance(dataset, Tokens):
        tokens = dataset
    else:
        tokens = _tokens(directory, dataset, num_examples, seq_len, random_state)
    if not 1 <= held_out < len(tokens.ids):
        raise DistillError(
            f"held_out {held_out}: wanted at least 1 and fewer than the {len(tokens.ids)} windows"
        )
    training, judging = tokens.ids[:-held_out], tokens.ids[-held_out:]
    training = training[: max(counts.values()) * batch_size]  # more would never be looked at
    reporter.line(
        f"{len(training)} windows of {training.shape[1]} tokens, {held_out} more to judge by"
    )

    source = original if isinstance(original, Source) else load_source(original)
    place = torch.device(device)
    computing, autocast = _computing_dtypes(dtype, source, place)
    options = {
        b: DistillOptions(counts[b], batch_size, rate, cuda_graph, autocast)
        for b, rate in rates.items()
    }
    started = time.monotonic()
    with placed(source.model, place, computing) as model, fast_products(place):
        teacher = teach(model, training, judging)
    teacher_seconds = time.monotonic() - started
    student = AnyPrecisionForCausalLM.from_quantized(
        directory, precisions=precisions, device=place, dtype=computing
    )
    outcomes: list[Outcome] = []
    costs: list[Cost] = []
    replaced: dict[str, np.ndarray] = {}
    for precision in precisions:
        with (
            reporter.stage(f"{precision} bits", counts[precision]) as advance,
            _Meter(place) as meter,
        ):
            outcome, codebooks = distill(
                student,
                teacher,
                precision,
                options[precision],
                on_step=lambda advance=advance, meter=meter: (advance(), meter.tick()),
            )
        outcomes.append(outcome)
        costs.append(meter.cost(precision))
        replaced |= stored_tensors(codebooks, precision)
        reporter.line(
            f"{precision} bits: held-out KL {outcome.before:.4f} -> {outcome.after:.4f}"
            + ("" if outcome.kept else ", not better: kept as it was")
        )
    if replaced:
        computed = MIXED if autocast else dtype_name(computing)
        record = _record(tokens, counts, batch_size, rates, place.type, computed, outcomes)
        rewrite_checkpoint(directory, target, replaced, {"refined": record}, overwrite=overwrite)
    return Refinement(str(target), tuple(outcomes), bool(replaced), teacher_seconds, tuple(costs))


def _computing_dtypes(
    dtype: str, source: Source, device: torch.device
) -> tuple[torch.dtype, torch.dtype | None]:
    """Of the model, and of the products in a step where that is another."""
    if dtype == "auto" and device.type == "cuda":
        weights = sum(parameter.numel() for parameter in source.model.parameters())
        dtype = MIXED if weights <= _MIXED_WEIGHTS else "bfloat16"
    if dtype == MIXED:
        # On a GPU float16 is as fast as bfloat16, and rounds less.
        return torch.float32, torch.float16 if device.type == "cuda" else torch.bfloat16
    return parse_dtype(dtype) or torch.float32, None


class _Meter:
    """Times the steps of one precision, and takes the GPU's peak memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ticks: list[float] = []
        self.seconds = 0.0

    def __enter__(self) -> _Meter:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._started

    def tick(self) -> None:
        self._ticks.append(time.monotonic())

    def cost(self, precision: int) -> Cost:
        steps = np.diff([self._started, *self._ticks])
        on_gpu = self._device.type == "cuda"
        return Cost(
            precision,
            seconds=self.seconds,
            step=float(np.median(steps)) if len(steps) else self.seconds,
            peak_memory=torch.cuda.max_memory_allocated(self._device) if on_gpu else None,
        )


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
    learning_rate: float | Mapping[int, float] | None, precisions: Sequence[int], lut_bits: int
) -> dict[int, float]:
    """The learning rate of each precision."""
    if learning_rate is None:
        return {b: default_learning_rate(b, lut_bits) for b in precisions}
    return _each("learning rate", learning_rate, precisions)


def _each(name: str, value: T | Mapping[int, T], precisions: Sequence[int]) -> dict[int, T]:
    """A value that is one for all, or a mapping, by precision."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(precisions, value)
    missing = sorted(set(precisions) - set(value))
    if missing:
        raise DistillError(f"no {name} for {missing[0]} bits, wanted one for each precision")
    return {precision: value[precision] for precision in precisions}


def _record(
    tokens: Tokens,
    steps: Mapping[int, int],
    batch_size: int,
    rates: Mapping[int, float],
    device: str,
    dtype: str,
    outcomes: list[Outcome],
) -> dict[str, Any]:
    return {
        **tokens.record(),
        "steps": {str(b): count for b, count in steps.items()},
        "batch_size": batch_size,
        "learning_rates": {str(b): rate for b, rate in rates.items()},
        "device": device,
        "dtype": dtype,
        "results": [outcome.to_dict() for outcome in outcomes],
    }
