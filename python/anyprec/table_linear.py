"""Linear layers whose codes are fixed and whose codebooks can be trained.

A layer computes as it would from a checkpoint: its weight is made from planes and fp16 codebooks
each time that it is needed, in the forward and again in the backward pass, and is never kept. The
gradient of a codebook's value is the sum of the weight's gradient over the columns that have its
code; where codebooks are hybrids, values are a constant matrix (the basis of the form) times the
parameters. Rounding to fp16 counts as the identity (straight-through).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from anyprec import _core
from anyprec.linear import AnyPrecisionLinear
from anyprec.patching import replaced_forward

Codebooks = dict[str, tuple[Tensor, Tensor | None]]


def stored_tensors(codebooks: Codebooks, precision: int) -> dict[str, np.ndarray]:
    """Codebooks of one precision by their names in a checkpoint."""
    tensors: dict[str, np.ndarray] = {}
    for name, (lut, alpha) in codebooks.items():
        tensors[f"{name}.lut.{precision}"] = lut.cpu().numpy()
        if alpha is not None:
            tensors[f"{name}.alpha.{precision}"] = alpha.cpu().numpy()
    return tensors


# Kernels take codebooks from 16-byte aligned addresses: elements of fp16.
_ALIGNMENT = 8


def codebook_basis(precision: int, lut_entries: int, alphas: tuple[int, int], cell_groups: str):
    """fp32 [2^b, P]: what each parameter of a codebook gives to each of its values.

    alphas: (b - L, C), or (0, 0). The parameters are the table's entries, then the coefficients of
    the signed planes. It is read off the operator, which is the form's definition: row by row the
    codes 0 .. 2^b - 1 with one parameter set to one.
    """
    signs, classes = alphas
    values = 1 << precision
    parameters = lut_entries + signs * classes
    codes = np.tile(np.arange(values, dtype=np.uint8), (parameters, 1))
    canonical = torch.from_numpy(_core.codes_to_planes(codes, precision))
    unit = torch.eye(parameters, dtype=torch.float16)
    lut = unit[:, None, :lut_entries].contiguous()
    alpha = unit[:, lut_entries:].reshape(parameters, 1, signs, classes).contiguous()
    return torch.ops.anyprec.dequantize(
        torch.ops.anyprec.pack_planes(canonical, values),
        lut,
        alpha if signs else None,
        precision,
        values,
        0,
        cell_groups,
        torch.float32,
    ).T.contiguous()


class TrainableCodebooks(nn.Module):
    """The codebooks of one precision of some linear layers, as one vector of parameters.

    offset: fp32, one number for each entry of every codebook: how far it is from what the layer
    has, in units of the standard deviation of its row's weights, so that one learning rate suits
    every row. Holds one byte a weight (its code), and 12 bytes for each entry.
    """

    def __init__(self, linears: Mapping[str, AnyPrecisionLinear], precision: int) -> None:
        super().__init__()
        self.layers = {name: _Layer(linear, precision) for name, linear in linears.items()}
        starts, units = [], []
        self._sizes: list[int] = []
        for layer in self.layers.values():
            unit = layer.linear.dequantize(precision).std(1, correction=0).clamp_min(1e-12)
            for piece in layer.stored():
                padding = -piece.numel() % _ALIGNMENT
                rows = unit[:, None].expand(-1, piece[0].numel()).flatten()
                starts += [piece.flatten().float(), unit.new_zeros(padding)]
                units += [rows, unit.new_zeros(padding)]
                self._sizes += [piece.numel(), padding]
        self.register_buffer("start", torch.cat(starts))
        self.register_buffer("unit", torch.cat(units))
        self.offset = nn.Parameter(torch.zeros_like(self.start))

    def refresh(self) -> None:
        """Gives the layers the codebooks that the parameters stand for now."""
        with torch.no_grad():
            now = torch.addcmul(self.start, self.unit, self.offset)
            values = now.split(self._sizes)[::2]
            halves = now.half().split(self._sizes)[::2]
        at = 0
        for layer in self.layers.values():
            count = len(layer.shapes)
            layer.set(values[at : at + count], halves[at : at + count])
            at += count

    def collect(self) -> None:
        """Makes offset.grad of the gradients that backward passes since `refresh` have left."""
        gradients = []
        sizes = iter(self._sizes)
        for layer in self.layers.values():
            for leaf in layer.leaves:
                size, padding = next(sizes), next(sizes)
                grad = leaf.grad
                gradients.append(leaf.new_zeros(size) if grad is None else grad.flatten())
                if padding:
                    gradients.append(leaf.new_zeros(padding))
        self.offset.grad = torch.cat(gradients).mul_(self.unit)

    def codebooks(self) -> Codebooks:
        """lut and alpha of each layer as a checkpoint stores them, fp16."""
        self.refresh()
        return {
            name: (layer.lut.clone(), None if layer.alpha is None else layer.alpha.clone())
            for name, layer in self.layers.items()
        }

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, the linear layers compute by these codebooks, whatever the precision in force."""
        self.refresh()
        with contextlib.ExitStack() as stack:
            for layer in self.layers.values():
                stack.enter_context(replaced_forward(layer.linear, layer.forward))
            yield


class _Layer:
    """One linear layer: its codes, and its codebooks of the moment."""

    def __init__(self, linear: AnyPrecisionLinear, precision: int) -> None:
        self.linear = linear
        self.precision = precision
        self.codes = _codes(linear, precision)
        self.shapes = [piece.shape for piece in self.stored()]
        self.basis = None  # the values of a full table are its parameters
        if len(self.shapes) == 2:
            lut, alpha = self.shapes
            signs = (alpha[2], alpha[3])
            basis = codebook_basis(precision, lut[2], signs, linear.cell_groups)
            self.basis = basis.to(linear.planes.device)
        self.leaves: list[Tensor] = []  # fp32, where gradients arrive
        self.lut = self.alpha = None  # fp16, what weights are made of

    def stored(self) -> list[Tensor]:
        """What the layer itself has: lut, and alpha where there is one."""
        names = (f"lut_{self.precision}", f"alpha_{self.precision}")
        return [t for t in (getattr(self.linear, name) for name in names) if t is not None]

    def set(self, values: tuple[Tensor, ...], halves: tuple[Tensor, ...]) -> None:
        self.leaves = [
            piece.detach().view(shape).requires_grad_()
            for piece, shape in zip(values, self.shapes, strict=True)
        ]
        pieces = [piece.view(shape) for piece, shape in zip(halves, self.shapes, strict=True)]
        self.lut = pieces[0]
        self.alpha = pieces[1] if len(pieces) == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., K] -> [..., N] in the same dtype, or in autocast's."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        y = _CodebookLinear.apply(x, self, *self.leaves)
        bias = self.linear.bias
        return y if bias is None else y + bias.to(y.dtype)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """[N, K]"""
        linear = self.linear
        return torch.ops.anyprec.dequantize(
            linear.planes,
            self.lut,
            self.alpha,
            self.precision,
            linear.in_features,
            linear.group_size,
            linear.cell_groups,
            dtype,
        )

    def gradients(self, of_weight: Tensor) -> list[Tensor]:
        """Of the leaves, from the weight's [N, K]."""
        sums = torch.ops.anyprec.sum_by_code(
            of_weight, self.codes, self.precision, self.linear.group_size
        )
        if self.basis is None:
            return [sums]
        of_parameters = sums @ self.basis
        entries = self.shapes[0][2]
        lut, alpha = of_parameters[..., :entries], of_parameters[..., entries:]
        return [lut.contiguous(), alpha.reshape(self.shapes[1])]


def _codes(linear: AnyPrecisionLinear, precision: int) -> Tensor:
    """uint8 [N, K]: the codes at a precision, on the layer's device."""
    planes = linear.canonical_planes()
    shifts = torch.arange(8, dtype=torch.uint8, device=planes.device)
    codes = planes.new_zeros(*planes.shape[1:], 8)
    for plane in planes[:precision]:
        codes = codes * 2 + ((plane[:, :, None] >> shifts) & 1)
    return codes.flatten(1)[:, : linear.in_features].contiguous()


class _CodebookLinear(torch.autograd.Function):
    """y = x W^T, W made of a layer's codebooks of the moment."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: _Layer, *leaves: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        return nn.functional.linear(x, layer.weight(x.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        layer = ctx.layer
        grad_x = grad @ layer.weight(grad.dtype) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[2:]):
            return grad_x, None, *[None] * len(layer.leaves)
        of_weight = grad.flatten(0, -2).T @ x.flatten(0, -2)
        return grad_x, None, *layer.gradients(of_weight)
