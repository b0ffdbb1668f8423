"""Codes and codebooks of one linear against its guided Hessian (recipes that refit)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anyprec.calibrate import Sums
from anyprec.options import Options, QuantizeError
from anyprec.recipes import Descent, Recipe

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


def needs_fit(options: Options) -> bool:
    """Whether codes and codebooks of clustering are only a beginning: for a recipe that refits, and
    for codebooks that are not full tables.
    """
    return options.recipe.refit or options.codebook != "lut"


def hessian_for(sums: Sums, recipe: Recipe) -> Tensor:
    """What errors of a row are measured by, fp32 [K, K]: see recipes.METRICS.

    Where no Hessian was summed the diagonal of the sensitivities' sum over rows stands for it.
    """
    if recipe.hessians:
        return sums.hessian
    if recipe.metric == "plain":
        return torch.eye(sums.sensitivities.shape[1], device=sums.sensitivities.device)
    return torch.diag(sums.sensitivities.sum(0, dtype=torch.float64)).float()


def _diagonal_descent(precisions: list[int]) -> Descent:
    """Without a Hessian columns do not interact: few rounds give each weight the code that is best
    for a form, which are not those of full tables.
    """
    widest = min(precisions[-1], 6)
    return Descent({b: 1.0 for b in precisions if b <= max(widest, precisions[0])}, 3, 2)


def check_operator(options: Options) -> None:
    """Raises QuantizeError where a request needs an operator that this build lacks."""
    if needs_fit(options) and not hasattr(torch.ops.anyprec, "fit"):
        raise QuantizeError(
            f"recipe {options.recipe.name}: this build of anyprec has no operator anyprec::fit"
        )


def fit_to_hessian(
    weight: Tensor, clusters: Tensor | None, hessian: Tensor, options: Options, device: torch.device
) -> HessianFit:
    """Fits one linear on a device (torch.ops.anyprec.fit); the results are there too.

    weight: fp32 [N, K]. clusters: codes at the parent precision to begin with, uint8 [S, N, K], of
    which each row keeps the best. Binary coding begins with codes of its own before them
    (torch.ops.anyprec.binary_codes), and takes None. hessian: fp32 [K, K], not damped.
    """
    precisions = list(options.precisions)
    recipe = options.recipe
    descent = recipe.descent_of(options.codebook) if recipe.refit else _diagonal_descent(precisions)
    weight, hessian = weight.to(device), hessian.to(device)
    starts = [] if clusters is None else [clusters.to(device)]
    if options.codebook == "bcq":
        curvature = hessian.diagonal().contiguous()
        own = torch.ops.anyprec.binary_codes(
            weight, curvature, options.group_size, precisions, recipe.binary.start
        )
        starts.insert(0, own[None])
    codes, luts, alphas, energies = torch.ops.anyprec.fit(
        weight,
        torch.cat(starts),
        hessian,
        *options.form,
        options.group_size,
        precisions,
        options.seed_precision,
        descent.weights(precisions) if descent else [0.0] * len(precisions),
        descent.rounds if descent else 0,
        descent.child_sweeps if descent else 0,
    )
    return HessianFit(
        codes,
        dict(zip(precisions, luts, strict=True)),
        {b: alpha for b, alpha in zip(precisions, alphas, strict=True) if alpha.numel()},
        dict(zip(precisions, energies.tolist(), strict=True)),
        _energy(weight, hessian),
    )


def _energy(weight: Tensor, hessian: Tensor) -> float:
    damping = _DAMPING * hessian.diagonal().double().mean()
    plain = ((weight @ hessian) * weight).sum(dtype=torch.float64)
    return (plain + damping * weight.square().sum(dtype=torch.float64)).item()
