"""Distilling codebooks: codes stay, and the tables of one precision learn from the original model.

Tables are few, differentiable, and those of different precisions independent of each other, so each
precision is brought as near to the original as its codes allow, at no cost to any other: the loss
is the KL divergence of the original's next-token distribution to the model's, over all positions.
Nothing that precisions share is trained: not the codes, not the norms.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from anyprec.blocks import Blocks
from anyprec.distill_step import DistillStep
from anyprec.divergence import kl_sum
from anyprec.linear import AnyPrecisionLinear
from anyprec.model import AnyPrecisionForCausalLM
from anyprec.output_head import last_hidden, output_head
from anyprec.table_linear import Codebooks, TrainableCodebooks
from anyprec.teacher import Teacher
from anyprec.training import frozen, fused_norms, matmul_precision

# Of the standard deviation of a row's weights, by precision: those that lead furthest in some
# hundred steps. Tables and hybrids; binary coding, whose few scales move many weights each.
LEARNING_RATES = {2: 1e-2, 3: 3e-3, 4: 1e-3, 5: 6e-4, 6: 2e-4, 7: 1e-4, 8: 1e-4}
BINARY_LEARNING_RATES = LEARNING_RATES | {2: 5e-3}
_BETAS = (0.9, 0.95)
_WARM_UP = 10
# Looks at the held-out text in the course of a run.
_LOOKS = 6
# Held-out tokens in a pass on a GPU: what launches its kernels takes as long for a few as for many.
_GPU_TOKENS = 16384


class DistillError(ValueError):
    """A request that cannot be distilled as it is."""


@dataclass(frozen=True)
class DistillOptions:
    """steps: of the optimizer; batch_size: sequences in a step; learning_rate: None for the
    precision's own (default_learning_rate); cuda_graph: replay a step as one graph on a GPU;
    autocast: dtype of products and attention in a step (DistillStep), None for the model's own."""

    steps: int = 300
    batch_size: int = 8
    learning_rate: float | None = None
    cuda_graph: bool = True
    autocast: torch.dtype | None = None

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


def default_learning_rate(precision: int, lut_bits: int) -> float:
    """lut_bits: of the checkpoint's codebook, 0 for binary coding."""
    return (BINARY_LEARNING_RATES if lut_bits == 0 else LEARNING_RATES)[precision]


def distill(
    student: AnyPrecisionForCausalLM,
    teacher: Teacher,
    precision: int,
    options: DistillOptions | None = None,
    on_step: Callable[[], None] | None = None,
) -> tuple[Outcome, Codebooks]:
    """Distils the codebooks of one precision of an any-precision model.

    student: with that precision loaded; it is left as it was. teacher: what the original made of
    the text (anyprec.teacher.teach), on the same device. on_step is called after each step.

    Returns the best codebooks (fp16, by linear) by their KL on the held-out text, rounded as they
    would be stored; an empty dict where none was better than what was there. Deterministic on one
    device. Raises DistillError, StepError or HeadError.
    """
    options = options or DistillOptions()
    linears = {
        name: module
        for name, module in student.named_modules()
        if isinstance(module, AnyPrecisionLinear)
    }
    if not linears:
        raise DistillError("the model has no quantized linear layers")
    blocks = Blocks(student, linears)
    with frozen(student), fused_norms(student), fast_products(student.device):
        codebooks = TrainableCodebooks(linears, precision)
        with codebooks.attached(), blocks.attached():
            return _run(student, teacher, codebooks, blocks, precision, options, on_step)


def _run(
    student: AnyPrecisionForCausalLM,
    teacher: Teacher,
    codebooks: TrainableCodebooks,
    blocks: Blocks,
    precision: int,
    options: DistillOptions,
    on_step: Callable[[], None] | None,
) -> tuple[Outcome, Codebooks]:
    on_gpu = student.device.type == "cuda"
    lut_bits = student._checkpoint_config["quantization_config"]["codebook"]["lut_bits"]
    rate = options.learning_rate or default_learning_rate(precision, lut_bits)
    optimizer = torch.optim.Adam([codebooks.offset], lr=rate, betas=_BETAS, fused=on_gpu)
    before = held_out_kl(student, teacher, codebooks)
    best, best_step, best_codebooks = before, 0, {}
    looks = {math.ceil(options.steps * (i + 1) / _LOOKS) for i in range(_LOOKS)}
    step = DistillStep(
        student,
        codebooks,
        blocks,
        teacher,
        options.batch_size,
        options.cuda_graph,
        options.autocast,
    )
    batches = batch_rows(len(teacher.training), options.batch_size)
    pace = _Pace(student.device)
    for index in range(1, options.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * _schedule(index, options.steps)
        step(next(batches))
        optimizer.step()
        pace.wait()
        if on_step is not None:
            on_step()
        if index in looks:
            now = held_out_kl(student, teacher, codebooks)
            if now == math.inf:
                break  # what was best so far stands
            if now < best:
                best, best_step, best_codebooks = now, index, codebooks.codebooks()
    return Outcome(precision, before, best, bool(best_codebooks), best_step), best_codebooks


def batch_rows(windows: int, batch_size: int) -> Iterator[list[int]]:
    """Which windows each step takes, for ever: all of them in a new order, again and again."""
    order: list[int] = []
    epoch = 0
    while True:
        while len(order) < batch_size:
            # RandomState's stream is frozen: the same numbers in every version of numpy.
            order += np.random.RandomState(epoch).permutation(windows).tolist()
            epoch += 1
        yield order[:batch_size]
        order = order[batch_size:]


def _schedule(step: int, steps: int) -> float:
    """A linear warm-up, then half a cosine down to zero."""
    warm_up = min(_WARM_UP, max(1, steps // 10))
    if step <= warm_up:
        return step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


@torch.no_grad()
def held_out_kl(student: nn.Module, teacher: Teacher, codebooks: TrainableCodebooks) -> float:
    """Mean KL divergence of a token on the held-out windows; inf where it is no number."""
    codebooks.refresh()
    head = output_head(student)
    windows = teacher.held_out
    on_gpu = student.device.type == "cuda"
    batch = max(1, _GPU_TOKENS // windows.ids.shape[1]) if on_gpu else 1
    totals = []
    for at in range(0, len(windows), batch):
        ids, wanted = windows.batch(range(at, min(at + batch, len(windows))))
        totals.append(kl_sum(last_hidden(student, ids), head, wanted, teacher.head))
    kl = math.fsum(total.item() for total in totals) / windows.ids.numel()
    return kl if math.isfinite(kl) else math.inf


class _Pace:
    """Lets the CPU be one step ahead of the GPU and no more: progress is that of real steps."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._before: torch.cuda.Event | None = None

    def wait(self) -> None:
        if not self._on_gpu:
            return
        here = torch.cuda.Event()
        here.record()
        if self._before is not None:
            self._before.synchronize()
        self._before = here


def fast_products(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """On a GPU, fp32 matrix products in TF32."""
    return matmul_precision("high") if device.type == "cuda" else contextlib.nullcontext()
