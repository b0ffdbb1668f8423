"""KL divergence between two models' next-token distributions, from their last hidden states.

Logits of a large vocabulary are made for a piece of the positions at a time, and used up at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anyprec.output_head import OutputHead

# Logits of one model that are there in fp32 at a time: 256 MB.
_LOGITS = 1 << 26


def kl_backward(
    hidden: Tensor,
    head: OutputHead,
    wanted: Tensor,
    wanted_head: OutputHead,
    positions: int,
    scale: float = 1.0,
) -> Tensor:
    """Backward pass of KL(wanted || hidden), summed over positions and divided by `positions`.

    hidden: [B, T, d] with its graph; wanted: [B, T, d'], of which no gradient is taken. scale: what
    gradients are multiplied by, not the loss. Returns the loss: fp32, without a graph.
    """
    pieces = hidden.detach().flatten(0, 1).split(_rows(head, wanted_head))
    gradients = []
    total = hidden.new_zeros((), dtype=torch.float32)
    targets = wanted.flatten(0, 1).split(_rows(head, wanted_head))
    for piece, target in zip(pieces, targets, strict=True):
        leaf = piece.detach().requires_grad_()
        logits = head(leaf)
        with torch.no_grad():
            # A head that ends in a product does not look at its output in the backward pass.
            gradient = logits.detach()
            if head.softcap is not None:
                gradient = gradient.clone()
            gradient = gradient.contiguous()
            target_logits = wanted_head(target).to(gradient.dtype).contiguous()
            divergences = torch.ops.anyprec.kl_gradient_(target_logits, gradient, scale / positions)
            total += divergences.sum() / positions
        logits.backward(gradient)
        gradients.append(leaf.grad)
    hidden.backward(torch.cat(gradients).view_as(hidden))
    return total


@torch.no_grad()
def kl_sum(hidden: Tensor, head: OutputHead, wanted: Tensor, wanted_head: OutputHead) -> Tensor:
    """KL(wanted || hidden) summed over positions, fp32."""
    total = hidden.new_zeros((), dtype=torch.float32)
    rows = _rows(head, wanted_head)
    pieces = hidden.flatten(0, 1).split(rows)
    for piece, target in zip(pieces, wanted.flatten(0, 1).split(rows), strict=True):
        total += _kl_sum(wanted_head(target), head(piece))
    return total


def _rows(head: OutputHead, wanted_head: OutputHead) -> int:
    return max(1, _LOGITS // max(head.vocabulary, wanted_head.vocabulary))


def log_probabilities(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Of two models' logits [rows, V], fp32, over the vocabulary that both have.

    A checkpoint and its original may pad the vocabulary differently; both know the shorter one.
    """
    vocabulary = min(p.shape[1], q.shape[1])
    return tuple(logits[:, :vocabulary].float().log_softmax(-1) for logits in (p, q))


def _kl_sum(p: Tensor, q: Tensor) -> Tensor:
    """Of logits [rows, V]."""
    p, q = log_probabilities(p, q)
    return nn.functional.kl_div(q, p, reduction="sum", log_target=True)
