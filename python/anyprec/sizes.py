"""How many bytes a checkpoint takes at each precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from anyprec.modules import Linear
from anyprec.options import classes

_ENTRY_BYTES = 2  # fp16


@dataclass(frozen=True)
class PrecisionSize:
    """What serving one precision takes, of the quantized linears alone."""

    precision: int
    plane_bytes: int  # planes 0 .. precision - 1
    lut_bytes: int  # the tables and alphas of this precision
    file_bytes: int  # tensors in this precision's own file
    bits_per_weight: float  # planes and codebooks

    @property
    def bytes(self) -> int:
        return self.plane_bytes + self.lut_bytes

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "bytes": self.bytes}


def precision_sizes(
    linears: Iterable[Linear],
    precisions: Sequence[int],
    group_size: int = 0,
    form: tuple[int, str] = (8, "one"),
) -> list[PrecisionSize]:
    """Sizes at each precision (rising, contiguous) with codebooks in fp16.

    form: lut_bits L and cell_groups with C classes. One plane of a linear takes N ceil(K/8) bytes,
    its codebooks at precision b N G entries of 2^min(b, L) + max(b - L, 0) C.
    """
    lut_bits = form[0]
    linears = list(linears)
    weights = sum(linear.out_features * linear.in_features for linear in linears)
    plane = sum(linear.out_features * -(-linear.in_features // 8) for linear in linears)
    rows = sum(
        linear.out_features * (-(-linear.in_features // group_size) if group_size else 1)
        for linear in linears
    )
    sizes = []
    for precision in precisions:
        entries = 2 ** min(precision, lut_bits) + max(precision - lut_bits, 0) * classes(*form)
        lut = rows * entries * _ENTRY_BYTES
        new_planes = precision if precision == precisions[0] else 1
        sizes.append(
            PrecisionSize(
                precision=precision,
                plane_bytes=precision * plane,
                lut_bytes=lut,
                file_bytes=new_planes * plane + lut,
                bits_per_weight=8 * (precision * plane + lut) / weights,
            )
        )
    return sizes
