"""Block-wise calibration of codebooks, as AnyBCQ has it, to be compared with distillation.

Codes stay. From the first decoder block to the last, the codebooks of one precision in a block
learn until its output is as near to the original block's as they can make it (mean squared error),
each block on what the calibrated blocks before it make of the text. `anyprec refine` minimizes the
divergence of the model's predictions instead, over all blocks at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyprec import AnyPrecisionForCausalLM, AnyPrecisionLinear
from anyprec.calibrate import placed
from anyprec.datasets import calibration_tokens
from anyprec.distill import batch_rows, default_learning_rate, fast_products
from anyprec.rewrite import rewrite_checkpoint
from anyprec.segments import SegmentedModel, blocks_of
from anyprec.source import Source
from anyprec.table_linear import Codebooks, TrainableCodebooks, stored_tensors
from anyprec.training import frozen

_BETAS = (0.9, 0.95)
_AT_ONCE = 8  # windows, where nothing is trained


def calibrate_blocks(
    checkpoint: Path,
    source: Source,
    *,
    out: Path,
    precisions: Sequence[int],
    dataset: str,
    num_examples: int | None = None,
    steps: int = 60,
    batch_size: int = 8,
    seq_len: int = 512,
    held_out: int = 20,
    device: str = "cuda",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Writes the checkpoint with calibrated codebooks to `out`.

    steps: of Adam for each block, with batch_size windows of seq_len tokens; the last held_out
    windows decide whether a block keeps what it learnt. Returns, by precision, the relative errors
    of each block's output on them, before and after its own calibration.
    """
    place = torch.device(device)
    rows = calibration_tokens(
        source.tokenizer, dataset, num_examples=num_examples, seq_len=seq_len
    ).ids
    used = min(len(rows) - held_out, steps * batch_size)
    ids = torch.as_tensor(rows[[*range(used), *range(-held_out, 0)]], device=place)
    replaced, errors = {}, {}
    with placed(source.model, place, torch.float32) as original, frozen(original):
        for precision in precisions:
            student = AnyPrecisionForCausalLM.from_quantized(
                checkpoint, precisions=[precision], device=place, dtype="float32"
            )
            lut_bits = student._checkpoint_config["quantization_config"]["codebook"]["lut_bits"]
            rate = default_learning_rate(precision, lut_bits)
            with frozen(student), fast_products(place):
                codebooks, each = _by_blocks(
                    original, student, precision, ids, held_out, (steps, batch_size, rate)
                )
            errors[str(precision)] = each
            say(f"  {precision} bits: last block's error {each[-1][0]:.4f} -> {each[-1][1]:.4f}")
            replaced |= stored_tensors(codebooks, precision)
    rewrite_checkpoint(checkpoint, out, replaced, {"blockwise": {"steps": steps}}, overwrite=True)
    return {"errors": errors}


def _by_blocks(
    original: nn.Module,
    student: nn.Module,
    precision: int,
    ids: Tensor,
    held_out: int,
    settings: tuple[int, int, float],
) -> tuple[Codebooks, list[tuple[float, float]]]:
    teacher, learner = _Blocks(original), _Blocks(student)
    wanted = hidden = None
    found: Codebooks = {}
    errors = []
    for block in range(len(teacher)):
        wanted = teacher.outputs(block, ids, wanted)
        codebooks = TrainableCodebooks(learner.linears(block), precision)
        with codebooks.attached():
            best, pair = _train(learner, block, ids, hidden, wanted, held_out, codebooks, settings)
            errors.append(pair)
            with torch.no_grad():
                codebooks.offset.copy_(best)
            found |= codebooks.codebooks()
            hidden = learner.outputs(block, ids, hidden)
    return found, errors


def _train(
    learner: _Blocks,
    block: int,
    ids: Tensor,
    hidden: Tensor | None,
    wanted: Tensor,
    held_out: int,
    codebooks: TrainableCodebooks,
    settings: tuple[int, int, float],
) -> tuple[Tensor, tuple[float, float]]:
    """The better of the offsets before and after, and their errors on the held-out windows."""
    steps, batch_size, rate = settings
    training = len(ids) - held_out
    scale = wanted.square().mean().item()

    def error(rows: Sequence[int] | slice) -> Tensor:
        given = None if hidden is None else hidden[rows]
        found = learner.output(block, ids[rows], given)
        return (found - wanted[rows]).square().mean() / scale

    @torch.no_grad()
    def judged() -> float:
        codebooks.refresh()
        return error(slice(training, None)).item()

    start, before = codebooks.offset.detach().clone(), judged()
    optimizer = torch.optim.Adam([codebooks.offset], lr=rate, betas=_BETAS)
    batches = batch_rows(training, batch_size)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        codebooks.refresh()
        error(next(batches)).backward()
        codebooks.collect()
        optimizer.step()
    after = judged()
    better = after < before
    return (codebooks.offset.detach() if better else start), (before, min(before, after))


class _Blocks:
    """The outputs of single decoder blocks of a model."""

    def __init__(self, model: nn.Module) -> None:
        stem, self._blocks = blocks_of(model)
        if not self._blocks:
            raise ValueError(f"{type(model).__name__}: its blocks do not form a plain chain")
        self._stem, self._model = stem, model
        self._segments = SegmentedModel(model, self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def linears(self, block: int) -> Mapping[str, AnyPrecisionLinear]:
        return {
            f"{self._stem}.{block}.{name}": module
            for name, module in self._blocks[block].named_modules()
            if isinstance(module, AnyPrecisionLinear)
        }

    def output(self, block: int, ids: Tensor, hidden: Tensor | None) -> Tensor:
        """ids: [B, T]; hidden: what the block gets, None for the first. -> [B, T, d]"""
        if block + 1 < len(self):
            return self._segments.run(ids, block, block + 1, hidden)
        kept: list[Tensor] = []  # behind the last block a pass goes on to the logits

        def keep(module: nn.Module, args: Any, result: Any) -> None:
            kept.append(result if isinstance(result, Tensor) else result[0])

        handle = self._blocks[block].register_forward_hook(keep)
        try:
            self._segments.run(ids, block, block + 1, hidden)
        finally:
            handle.remove()
        return kept[0]

    @torch.no_grad()
    def outputs(self, block: int, ids: Tensor, hidden: Tensor | None) -> Tensor:
        """Of all windows."""
        return torch.cat(
            [
                self.output(
                    block,
                    ids[at : at + _AT_ONCE],
                    None if hidden is None else hidden[at : at + _AT_ONCE],
                )
                for at in range(0, len(ids), _AT_ONCE)
            ]
        )
