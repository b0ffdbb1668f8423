"""The quantized linear layer: one resident copy of the bit planes serves every precision."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import anyprec._ops  # noqa: F401  (registers torch.ops.anyprec)
from anyprec.precision import PrecisionController


class AnyPrecisionLinear(nn.Module):
    """y = x W_b^T + bias at the precision b in force when it is called.

    Buffers: `planes` uint8, in the layout of the device that they are on; `lut_<b>` fp16
    [N, G, 2^min(b, L)] for each loaded precision b and, where b > L, `alpha_<b>` fp16
    [N, G, b - L, C] (docs/format.md). Moving the module to another kind of device re-packs the
    planes; a change of dtype reaches the bias alone, since codebooks are fp16 by format.
    """

    def __init__(
        self,
        planes: Tensor,
        luts: Mapping[int, Tensor],
        alphas: Mapping[int, Tensor] | None = None,
        bias: Tensor | None = None,
        *,
        in_features: int,
        cell_groups: str = "one",
        group_size: int = 0,
        controller: PrecisionController | None = None,
        index: int = 0,
    ) -> None:
        """Takes canonical planes and packs them for the device that they are on.

        planes: canonical, uint8 [P, N, ceil(K/8)]; P is at least the widest precision.
        luts, alphas: the loaded precisions' codebooks; controller, index: who decides the
        precision, and this linear's place there (one of its own where none is given).
        """
        super().__init__()
        self.in_features = in_features
        self.out_features = planes.shape[1]
        self.cell_groups = cell_groups
        self.group_size = group_size
        self.precisions = tuple(sorted(luts))
        self.controller = controller or PrecisionController(["linear"], self.precisions)
        self.index = index
        self.register_buffer("planes", _pack(planes, in_features))
        for precision in self.precisions:
            self.register_buffer(f"lut_{precision}", luts[precision])
            self.register_buffer(f"alpha_{precision}", (alphas or {}).get(precision))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., K] fp32, bf16 or fp16 -> [..., N] in the same dtype."""
        precision = self.controller.precision_of(self.index)
        bias = self.bias
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        return torch.ops.anyprec.linear(
            x,
            self.planes,
            getattr(self, f"lut_{precision}"),
            getattr(self, f"alpha_{precision}"),
            bias,
            precision,
            self.in_features,
            self.group_size,
            self.cell_groups,
        )

    def dequantize(self, precision: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The weight as a dense matrix [N, K]; by default as fp32 and at the precision in force."""
        if precision is None:
            precision = self.controller.precision_of(self.index)
        else:
            self.controller.resolve(precision)
        return torch.ops.anyprec.dequantize(
            self.planes,
            getattr(self, f"lut_{precision}"),
            getattr(self, f"alpha_{precision}"),
            precision,
            self.in_features,
            self.group_size,
            self.cell_groups,
            dtype or torch.float32,
        )

    def canonical_planes(self) -> Tensor:
        """The planes as a checkpoint stores them: uint8 [P, N, ceil(K/8)], on the same device."""
        return self._unpacked(self.planes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AnyPrecisionLinear":
        packed: dict[str, Any] = {
            name: self._buffers.pop(name) for name in list(self._buffers) if name != "bias"
        }
        try:
            super()._apply(fn, recurse)
            moved = {name: self._moved(name, tensor, fn) for name, tensor in packed.items()}
        except BaseException:
            self._buffers.update(packed)
            raise
        self._buffers.update(moved)
        return self

    def _moved(
        self, name: str, tensor: Tensor | None, fn: Callable[[Tensor], Tensor]
    ) -> Tensor | None:
        if tensor is None:
            return None
        # fn may move, share, pin or cast; what it would do to an empty tensor tells the device.
        target = fn(tensor.new_empty(0)).device
        if name != "planes":
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(target)
        if target.type == tensor.device.type or "meta" in (target.type, tensor.device.type):
            return fn(tensor)
        return _pack(fn(self._unpacked(tensor)), self.in_features)

    def _unpacked(self, planes: Tensor) -> Tensor:
        return torch.ops.anyprec.unpack_planes(planes, self.out_features, self.in_features)

    def extra_repr(self) -> str:
        form = f", group_size={self.group_size}" if self.group_size else ""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"precisions={list(self.precisions)}, bias={self.bias is not None}{form}"
        )


def _pack(planes: Tensor, in_features: int) -> Tensor:
    try:
        return torch.ops.anyprec.pack_planes(planes, in_features)
    except NotImplementedError as error:
        raise RuntimeError(
            f"this build of anyprec has no operators for {planes.device.type!r} devices"
        ) from error
