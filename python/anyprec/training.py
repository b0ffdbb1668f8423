"""What gradients are taken of, and how exactly products are made, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from anyprec.patching import replaced_forward


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter asks for a gradient; every flag is put back afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """torch.set_float32_matmul_precision for a while: on a GPU "highest" multiplies fp32 matrices
    in fp32, "high" in TF32, which rounds factors to 10 bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def mixed_precision(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast of matrix products and attention to `dtype`; None: nothing changes.

    Casts are not kept from one call to the next: weights change in between, and a CUDA graph must
    see them.
    """
    return torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False)


@contextlib.contextmanager
def fused_norms(model: nn.Module) -> Iterator[None]:
    """Inside, RMS norms of a model run as one kernel instead of half a dozen.

    A module counts as one if torch's own gives its output on numbers drawn for the purpose: the
    families differ in how they scale, so names do not decide.
    """
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            fused = _fused_norm(module)
            if fused is not None:
                stack.enter_context(replaced_forward(module, fused))
        yield


def _fused_norm(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or weight is None or not eps:
        return None

    def fused(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, weight.shape, weight, eps)

    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, weight.numel(), generator=generator).to(weight.device, weight.dtype)
    with torch.no_grad():
        same = torch.allclose(fused(drawn), module(drawn), rtol=2e-2, atol=1e-3)
    return fused if same else None
