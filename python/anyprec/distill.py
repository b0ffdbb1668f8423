"""Distilling codebooks: codes stay, and the tables of one precision learn from the original model.

Tables are few, differentiable, and those of different precisions independent of each other, so each
precision is brought as near to the original as its codes allow, at no cost to any other: the loss
is the KL divergence of the original's next-token distribution to the model's, over all positions.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anyprec.linear import AnyPrecisionLinear
from anyprec.table_linear import TrainableCodebook, replace_forward

# Of the standard deviation of a row's weights, by precision: the fastest that are stable.
LEARNING_RATES = {2: 1e-2, 3: 3e-3, 4: 1e-3, 5: 3e-4, 6: 2e-4, 7: 1e-4, 8: 1e-4}
_BETAS = (0.9, 0.95)
_WARM_UP = 10
# Looks at the held-out text in the course of a run.
_LOOKS = 6


class DistillError(ValueError):
    """A request that cannot be distilled as it is."""


@dataclass(frozen=True)
class DistillOptions:
    """steps: of the optimizer; batch_size: sequences in a step; learning_rate: None for the
    precision's own (LEARNING_RATES)."""

    steps: int = 300
    batch_size: int = 8
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise DistillError(
                f"steps {self.steps}, batch size {self.batch_size}: wanted at least 1 of each"
            )
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise DistillError(f"learning rate {self.learning_rate}: wanted a positive one")


@dataclass(frozen=True)
class Outcome:
    """One precision's distillation.

    before, after: mean KL divergence (nats a token) on the held-out text, of the codebooks that
    were there and of the best that were seen. kept: whether the new ones are better; step: after
    which they were seen.
    """

    precision: int
    before: float
    after: float
    kept: bool
    step: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Codebooks = dict[str, tuple[Tensor, Tensor | None]]


def distill(
    student: nn.Module,
    teacher: nn.Module,
    training: np.ndarray,
    held_out: np.ndarray,
    precision: int,
    options: DistillOptions | None = None,
    on_step: Callable[[float], None] | None = None,
) -> tuple[Outcome, Codebooks]:
    """Distils the codebooks of one precision of an any-precision model.

    student: with that precision loaded; it is left as it was. teacher: the original, on the same
    device. training, held_out: tokens, int64 [sequences, length]; training sequences are taken in
    turn. on_step(loss) is called after each step with the mean KL of its batch.

    Returns the best codebooks (fp16, by linear) by their KL on the held-out text, rounded as they
    would be stored; an empty dict where none was better than what was there. Deterministic on one
    device.
    """
    options = options or DistillOptions()
    linears = {
        name: module
        for name, module in student.named_modules()
        if isinstance(module, AnyPrecisionLinear)
    }
    if not linears:
        raise DistillError("the model has no quantized linear layers")
    flags = [(p, p.requires_grad) for p in student.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    trainable = {name: TrainableCodebook(linear, precision) for name, linear in linears.items()}
    restore = replace_forward(linears, trainable)
    try:
        return _run(student, teacher, trainable, training, held_out, precision, options, on_step)
    finally:
        restore()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _run(student, teacher, trainable, training, held_out, precision, options, on_step):
    rate = options.learning_rate or LEARNING_RATES[precision]
    optimizer = torch.optim.Adam([t.offset for t in trainable.values()], lr=rate, betas=_BETAS)
    before = _held_out_kl(student, teacher, held_out)
    best, best_step, best_codebooks = before, 0, {}
    looks = {math.ceil(options.steps * (i + 1) / _LOOKS) for i in range(_LOOKS)}
    for step in range(1, options.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * _schedule(step, options.steps)
        loss = 0.0
        for i in range(options.batch_size):
            row = training[((step - 1) * options.batch_size + i) % len(training)]
            kl = _kl(student, teacher, row)
            (kl / options.batch_size).backward()
            loss += kl.item() / options.batch_size
        if not math.isfinite(loss):
            break  # what was best so far stands
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_step is not None:
            on_step(loss)
        if step in looks:
            now = _held_out_kl(student, teacher, held_out)
            if now < best:
                best, best_step = now, step
                best_codebooks = {name: t.codebooks() for name, t in trainable.items()}
    return Outcome(precision, before, best, bool(best_codebooks), best_step), best_codebooks


def _schedule(step: int, steps: int) -> float:
    """A linear warm-up, then half a cosine down to zero."""
    warm_up = min(_WARM_UP, max(1, steps // 10))
    if step <= warm_up:
        return step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _kl(student: nn.Module, teacher: nn.Module, row: np.ndarray) -> Tensor:
    """Mean over positions of KL(teacher || student), in fp32."""
    ids = torch.as_tensor(row, dtype=torch.int64, device=student.device)[None]
    with torch.no_grad():
        p = teacher(input_ids=ids, use_cache=False).logits[0].float()
    q = student(input_ids=ids, use_cache=False).logits[0].float()
    # A checkpoint and its original may pad the vocabulary differently; both know the shorter one.
    vocabulary = min(p.shape[1], q.shape[1])
    p = p[:, :vocabulary].log_softmax(-1)
    q = q[:, :vocabulary].log_softmax(-1)
    return nn.functional.kl_div(q, p, reduction="sum", log_target=True) / len(ids[0])


@torch.no_grad()
def _held_out_kl(student: nn.Module, teacher: nn.Module, rows: np.ndarray) -> float:
    kl = math.fsum(_kl(student, teacher, row).item() for row in rows) / len(rows)
    return kl if math.isfinite(kl) else math.inf
