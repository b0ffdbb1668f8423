"""What a quantization made, or would make: sizes and errors per precision and linear."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from anyprec.modules import Linear, Selection
from anyprec.sizes import PrecisionSize


@dataclass(frozen=True)
class LinearResult:
    """How well one linear was fitted."""

    linear: Linear
    # By precision: sum of s (w - value)^2 with the sensitivities s, or, with a recipe that fits to
    # Hessians, of (w - value)^T H (w - value).
    errors: dict[int, float]
    energy: float  # the same of w itself

    def relative_error(self, precision: int) -> float:
        return self.errors[precision] / self.energy if self.energy > 0 else 0.0


@dataclass
class Summary:
    """What a run made, or (dry run, already there) would make."""

    out: str
    status: str  # "made", "already made" or "dry run"
    source: str
    selection: Selection
    sizes: list[PrecisionSize]
    base_bytes: int  # the unquantized tensors
    original_bytes: int  # the whole model before
    results: list[LinearResult] = field(default_factory=list)
    seconds: float = 0.0

    def relative_error(self, precision: int) -> float:
        """Over all linears: the sum of their errors over that of their energies."""
        energy = sum(result.energy for result in self.results)
        error = sum(result.errors[precision] for result in self.results)
        return error / energy if energy > 0 else 0.0

    @property
    def total_bytes(self) -> int:
        return self.base_bytes + sum(size.file_bytes for size in self.sizes)

    def to_dict(self) -> dict[str, Any]:
        precisions = []
        for size in self.sizes:
            row = size.to_dict()
            row["bytes_with_base"] = self.base_bytes + size.bytes
            if self.results:
                row["relative_error"] = self.relative_error(size.precision)
            precisions.append(row)
        linears = []
        fitted = {result.linear.name: result for result in self.results}
        for linear in self.selection.linears:
            entry: dict[str, Any] = asdict(linear)
            if linear.name in fitted:
                result = fitted[linear.name]
                entry["relative_errors"] = {str(b): result.relative_error(b) for b in result.errors}
            linears.append(entry)
        return {
            "out": self.out,
            "status": self.status,
            "source": self.source,
            "modules_from": self.selection.origin,
            "original_bytes": self.original_bytes,
            "base_bytes": self.base_bytes,
            "total_bytes": self.total_bytes,
            "precisions": precisions,
            "linears": linears,
            "seconds": round(self.seconds, 3),
        }
