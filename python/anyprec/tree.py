"""The tree of one linear: its clusters at every precision, nested, on a CPU or a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyprec import _core, _ops  # noqa: F401  (registers torch.ops.anyprec)
from anyprec.options import Options

# What the operator takes as it is; other weights are rounded to fp32.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Weights whose energy is summed at a time.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Tree:
    """codes: uint8 [N, K] at the parent precision. luts: by precision, fp32 [N, G, 2^b]. errors: by
    precision, the sum of s (w - value)^2; energy: the sum of s w^2. Tensors are on the weight's
    device.
    """

    codes: Tensor
    luts: dict[int, Tensor]
    errors: dict[int, float]
    energy: float


def build_tree(
    name: str, weight: Tensor, sensitivities: Tensor, options: Options, pool: Any
) -> Tree:
    """Clusters one weight matrix [N, K] where it is: optimally at the seed precision, and by
    optimal splits up to the parent's (Any-Precision LLM, arXiv 2402.10517, with exact clustering).

    sensitivities: fp32 [N, K], on the weight's device. pool: `_core.ThreadPool`, for a CPU. A GPU's
    sums are in another order than a CPU's, which may decide between partitions of equal cost; both
    give the same bytes every time.

    Raises ValueError naming `name` for weights that are not finite and sensitivities that are not
    finite or negative.
    """
    lowest, parent = options.precisions[0], options.precisions[-1]
    if weight.device.type == "cpu":
        return _on_cpu(name, weight, sensitivities, options, pool)
    weight = (weight if weight.dtype in _DTYPES else weight.float()).contiguous()
    codes, luts, errors = torch.ops.anyprec.quantize_matrix(
        name,
        weight,
        sensitivities.contiguous(),
        lowest,
        options.seed_precision,
        parent,
        options.group_size,
    )
    return Tree(
        codes,
        dict(zip(options.precisions, luts, strict=True)),
        dict(zip(options.precisions, errors.tolist(), strict=True)),
        _energy(weight, sensitivities),
    )


def _on_cpu(name: str, weight: Tensor, sensitivities: Tensor, options: Options, pool: Any) -> Tree:
    weights, s = weight.float().contiguous().numpy(), sensitivities.numpy()
    matrix = _core.quantize_matrix(
        name,
        weights,
        s,
        lowest_precision=options.precisions[0],
        seed_precision=options.seed_precision,
        parent_precision=options.precisions[-1],
        group_size=options.group_size,
        pool=pool,
    )
    return Tree(
        torch.from_numpy(np.asarray(matrix.codes)),
        {b: torch.from_numpy(lut) for b, lut in matrix.luts.items()},
        {b: matrix.errors[b] for b in options.precisions},
        float(np.einsum("nk,nk,nk->", s, weights, weights, dtype=np.float64)),
    )


def _energy(weight: Tensor, sensitivities: Tensor) -> float:
    rows = max(1, _CHUNK // weight.shape[1])
    parts = [
        (s * w.double().square()).sum()
        for w, s in zip(weight.split(rows), sensitivities.split(rows), strict=True)
    ]
    return torch.stack(parts).sum().item()


def planes_of(codes: Tensor, parent: int) -> Tensor:
    """uint8 [N, K] -> canonical planes uint8 [parent, N, ceil(K/8)], on the codes' device."""
    if codes.device.type == "cpu":
        return torch.from_numpy(_core.codes_to_planes(codes.numpy(), parent))
    return torch.ops.anyprec.codes_to_planes(codes.contiguous(), parent)


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the CPU; by way of page-locked memory, which a GPU fills several times faster than
    memory that it has to be told of page by page.
    """
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor)
