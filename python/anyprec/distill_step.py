"""One step's forward and backward pass, on a GPU as one CUDA graph."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anyprec.blocks import Blocks
from anyprec.determinism import deterministic
from anyprec.divergence import kl_backward
from anyprec.output_head import last_hidden, output_head
from anyprec.recording import CaptureError, Recording
from anyprec.table_linear import TrainableCodebooks
from anyprec.teacher import Teacher
from anyprec.training import mixed_precision

# Where the activations of a batch would take more than this of a GPU's free memory, blocks are
# computed again in the backward pass. Warm-up and graph have their own pools, one after the other.
_ACTIVATIONS_SHARE = 0.5
# What float16 gradients are multiplied by, those of one position: the first with which nothing
# overflows.
_HALF_SCALES = (16.0, 1 / 16)


class StepError(RuntimeError):
    """A model whose step cannot be captured."""


class DistillStep:
    """The gradient of the mean KL divergence of a batch with respect to trainable codebooks.

    student: with `codebooks` attached. On a GPU the batch goes through in one pass, captured once
    and replayed (cuda_graph), and blocks are recomputed where their activations would not fit; on a
    CPU sequence by sequence. All of these give the same gradients up to rounding, and the same
    bytes every time.

    autocast: the dtype of matrix products and attention within the model, None for the model's own.
    What is passed from block to block, norms, logits and loss keep the model's dtype. float16 has a
    narrow range: its gradients are scaled, a gradient that overflows in some step counts as zero
    there, and a model that overflows from the start gets bfloat16. recompute: blocks in the
    backward pass, on a GPU; None: where their activations would not fit.
    """

    def __init__(
        self,
        student: nn.Module,
        codebooks: TrainableCodebooks,
        blocks: Blocks,
        teacher: Teacher,
        batch_size: int,
        cuda_graph: bool = True,
        autocast: torch.dtype | None = None,
        recompute: bool | None = None,
    ) -> None:
        self._student, self._codebooks, self._blocks = student, codebooks, blocks
        self._autocast = autocast
        self._scale = 1.0
        self._teacher = teacher
        self._head = output_head(student)
        self._device = student.device
        self._ids, self._wanted = teacher.training.batch(range(1))
        self._strict = True
        self._recording: Recording | None = None
        self._loss: Tensor | None = None
        on_gpu = self._device.type == "cuda"
        self._at_once = batch_size if on_gpu else 1
        if autocast is torch.float16:
            self._settle_half()
        elif on_gpu:
            self._run()  # whatever is made once
        if on_gpu:
            taken = self._activations() * batch_size
            fits = taken <= _ACTIVATIONS_SHARE * self._free()
            blocks.recompute = not fits if recompute is None else recompute
        rows = [row % len(teacher.training) for row in range(batch_size)]
        self._ids, self._wanted = teacher.training.batch(rows)
        if on_gpu and cuda_graph:
            self._capture()

    @property
    def autocast(self) -> torch.dtype | None:
        """What products are made in."""
        return self._autocast

    @property
    def recomputes(self) -> bool:
        """Whether blocks are computed again in the backward pass."""
        return self._blocks.recompute

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Sets the codebooks' offset.grad by these training windows, as many as the batch has.

        Returns the mean KL divergence of a token: fp32, on the device, overwritten by the next step
        where that is a graph.
        """
        self._teacher.training.load(rows, self._ids, self._wanted)
        if self._recording is None:
            loss = self._run()
        else:
            self._recording.replay()
            loss = self._loss
        if self._autocast is torch.float16:
            torch.nan_to_num_(self._codebooks.offset.grad, nan=0.0, posinf=0.0, neginf=0.0)
        return loss

    def _run(self) -> Tensor:
        try:
            with deterministic(self._device, self._strict):
                return self._pass()
        except RuntimeError as error:
            if not self._strict or "deterministic" not in str(error):
                raise
            # An operator of this model has no deterministic kernel; found in the first step.
            warnings.warn(
                f"distillation will not be reproducible to the bit: {error}", stacklevel=2
            )
            self._strict = False
            return self._run()

    def _pass(self) -> Tensor:
        self._codebooks.refresh()
        loss = torch.zeros((), device=self._device)
        for at in range(0, len(self._ids), self._at_once):
            here = slice(at, at + self._at_once)
            with mixed_precision(self._device, self._autocast):
                hidden = last_hidden(self._student, self._ids[here])
            loss += kl_backward(
                hidden,
                self._head,
                self._wanted[here],
                self._teacher.head,
                self._ids.numel(),
                self._scale,
            )
        self._codebooks.collect()
        if self._autocast is torch.float16:
            self._codebooks.offset.grad.div_(self._scale)
        return loss

    def _settle_half(self) -> None:
        for scale in _HALF_SCALES:
            self._scale = scale * self._ids.numel()
            loss = self._run()
            if loss.isfinite() and self._codebooks.offset.grad.isfinite().all():
                return
        self._autocast, self._scale = torch.bfloat16, 1.0

    def _activations(self) -> int:
        """Bytes that a pass over one sequence takes beside what is there; not for the first one."""
        gc.collect()  # the graph of the precision before has its own pool
        torch.cuda.empty_cache()
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        self._run()
        torch.cuda.synchronize(self._device)
        taken = torch.cuda.max_memory_allocated(self._device) - before
        torch.cuda.empty_cache()
        return taken

    def _free(self) -> int:
        return torch.cuda.mem_get_info(self._device)[0]

    def _capture(self) -> None:
        recording = Recording(self._device, self._blocks)
        with recording.beside():
            self._run()
        try:
            self._loss = recording.capture(self._run)
        except CaptureError as error:
            raise StepError(
                f"{type(self._student).__name__}: a step cannot be captured into a CUDA graph "
                f"({error}); distil without one (--no-cuda-graph)"
            ) from error
        self._recording = recording
