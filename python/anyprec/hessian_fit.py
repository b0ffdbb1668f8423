"""Codes and codebooks of one linear against its guided Hessian (recipes that refit)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anyprec.options import Options, QuantizeError

# Added to a Hessian's diagonal, of its mean.
_DAMPING = 0.01


@dataclass(frozen=True)
class HessianFit:
    """codes: uint8 [N, K]; luts, alphas: by precision, as docs/format.md has them, fp32 with values
    of fp16. energies: by precision, sum over rows of (w - value)^T H (w - value); energy: the same
    of w itself. All with the damped H.
    """

    codes: Tensor
    luts: dict[int, Tensor]
    alphas: dict[int, Tensor]
    energies: dict[int, float]
    energy: float


def check_operator(options: Options) -> None:
    """Raises QuantizeError where a recipe needs an operator that this build lacks."""
    if options.recipe.refit and not hasattr(torch.ops.anyprec, "fit"):
        raise QuantizeError(
            f"recipe {options.recipe.name}: this build of anyprec has no operator anyprec::fit"
        )


def fit_to_hessian(
    weight: Tensor, codes: Tensor, hessian: Tensor, options: Options, device: torch.device
) -> HessianFit:
    """Fits one linear on a device (torch.ops.anyprec.fit); the results are on the CPU.

    weight: fp32 [N, K]. codes: uint8 [N, K] at the parent precision, to begin with. hessian: fp32
    [K, K], guided, not damped.
    """
    recipe, precisions = options.recipe, list(options.precisions)
    descent = recipe.descent
    weight, hessian = weight.to(device), hessian.to(device)
    codes, luts, alphas, energies = torch.ops.anyprec.fit(
        weight,
        codes.to(device),
        hessian,
        8,
        "one",
        options.group_size,
        precisions,
        options.seed_precision,
        recipe.taus(precisions),
        descent.rounds if descent else 0,
        descent.child_sweeps if descent else 0,
    )
    return HessianFit(
        codes.cpu(),
        {b: lut.cpu() for b, lut in zip(precisions, luts, strict=True)},
        {b: a.cpu() for b, a in zip(precisions, alphas, strict=True) if a.numel()},
        dict(zip(precisions, energies.tolist(), strict=True)),
        _energy(weight, hessian),
    )


def _energy(weight: Tensor, hessian: Tensor) -> float:
    damping = _DAMPING * hessian.diagonal().double().mean()
    plain = ((weight @ hessian) * weight).sum(dtype=torch.float64)
    return (plain + damping * weight.square().sum(dtype=torch.float64)).item()
