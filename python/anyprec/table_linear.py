"""Linear layers whose codes are fixed and whose codebooks can be trained.

A codebook is linear in its parameters (lut and alpha): its 2^b values are a constant matrix, the
basis of its form, times them. The gradient of a value is the sum of the weight's gradient over the
columns that have its code: columns are sorted by code once, so that it is a sum over a segment, in
the same order every time.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from anyprec import _core
from anyprec.linear import AnyPrecisionLinear


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


class TrainableCodebook(nn.Module):
    """One linear layer at one precision, with parameters for its codebooks.

    The parameters are offsets from the codebooks that the layer has, in units of the standard
    deviation of the row's weights, so that one learning rate suits every row. Holds 5 bytes a
    weight beside them: its code, and its place in the order of codes.
    """

    def __init__(self, linear: AnyPrecisionLinear, precision: int) -> None:
        super().__init__()
        lut = getattr(linear, f"lut_{precision}")
        alpha = getattr(linear, f"alpha_{precision}")
        device = lut.device
        n, groups, entries = lut.shape
        self.lut_entries = entries
        self.alpha_shape = None if alpha is None else alpha.shape
        flat = lut.float() if alpha is None else torch.cat([lut, alpha.flatten(2)], 2).float()
        self.register_buffer("start", flat)  # [N, G, P]
        self.basis = None  # a full table is its own parameters
        if alpha is not None:
            shape = (alpha.shape[2], alpha.shape[3])
            self.basis = codebook_basis(precision, entries, shape, linear.cell_groups).to(device)
        weight = linear.dequantize(precision)
        self.register_buffer("unit", weight.std(1, correction=0).clamp_min(1e-12)[:, None, None])
        self.offset = nn.Parameter(torch.zeros_like(flat))
        self.bias = linear.bias

        planes = linear.canonical_planes().cpu().numpy()
        codes = _core.planes_to_codes(planes, linear.in_features, precision)
        index = torch.from_numpy(codes).to(device)
        if groups > 1:  # the tables of a row's groups follow one another
            group = torch.arange(linear.in_features, device=device) // linear.group_size
            index = index.int() + (group << precision).int()
        self.register_buffer("index", index)
        entries_of_row = groups << precision
        self.register_buffer("order", index.argsort(dim=1, stable=True).int())
        rows = torch.arange(n, device=device)[:, None] * entries_of_row
        counts = torch.bincount((index + rows).flatten(), minlength=n * entries_of_row)
        self.register_buffer("offsets", nn.functional.pad(counts.cumsum(0), (1, 0)))

    def parameters_now(self) -> Tensor:
        """fp32 [N, G, P]."""
        return self.start + self.unit * self.offset

    def codebooks(self) -> tuple[Tensor, Tensor | None]:
        """lut and alpha as a checkpoint stores them, fp16."""
        with torch.no_grad():
            now = self.parameters_now().half()
        lut = now[:, :, : self.lut_entries].contiguous()
        if self.alpha_shape is None:
            return lut, None
        return lut, now[:, :, self.lut_entries :].reshape(self.alpha_shape).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        now = self.parameters_now()
        if not torch.is_grad_enabled():  # as it would be stored
            now = now.half().float()
        table = now if self.basis is None else now @ self.basis.T
        y = _TableLinear.apply(x, table.flatten(1), self.index, self.order, self.offsets)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _TableLinear(torch.autograd.Function):
    """y = x W^T, W[n, k] = table[n, index[n, k]]."""

    @staticmethod
    def forward(ctx, x, table, index, order, offsets):
        ctx.save_for_backward(x, table, index, order, offsets)
        return nn.functional.linear(x, table.gather(1, index.long()).to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        x, table, index, order, offsets = ctx.saved_tensors
        grad_x = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ table.gather(1, index.long()).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = (grad.flatten(0, -2).T @ x.flatten(0, -2)).float()
            by_code = of_weight.gather(1, order.long()).flatten()
            sums = torch.segment_reduce(by_code, "sum", offsets=offsets, unsafe=True)
            grad_table = sums.view_as(table)
        return grad_x, grad_table, None, None, None


def replace_forward(
    linears: dict[str, AnyPrecisionLinear], trainable: dict[str, TrainableCodebook]
) -> Callable[[], None]:
    """Lets the layers compute by their trainable codebooks; the result puts things back."""
    for name, linear in linears.items():
        linear.forward = trainable[name].forward

    def restore() -> None:
        for linear in linears.values():
            del linear.forward

    return restore
