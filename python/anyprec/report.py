"""What a checkpoint holds: its linears, its sizes at each precision, how it was made."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyprec._core import Checkpoint


@dataclass(frozen=True)
class PrecisionSize:
    """Bytes of serving at one precision.

    planes: planes 0..b-1; codebooks: look-up tables and alphas of precision b; serving: both and
    everything that is not quantized; files: the whole files that opening this precision maps.
    bits_per_weight counts planes and codebooks over the quantized weights.
    """

    precision: int
    planes: int
    codebooks: int
    serving: int
    files: int
    bits_per_weight: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "precision": self.precision,
            "bits_per_weight": self.bits_per_weight,
            "bytes": self.serving,
            "plane_bytes": self.planes,
            "codebook_bytes": self.codebooks,
            "file_bytes": self.files,
        }


@dataclass(frozen=True)
class ModuleKind:
    """Quantized linears whose names differ in numbers only, and whose shapes agree."""

    name: str  # with * for each number
    count: int
    out_features: int
    in_features: int

    @property
    def weights(self) -> int:
        return self.count * self.out_features * self.in_features

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "count": self.count,
            "out_features": self.out_features,
            "in_features": self.in_features,
            "weights": self.weights,
        }


@dataclass(frozen=True)
class Contents:
    path: str
    architecture: str
    quantization: Mapping[str, Any]  # config.json's quantization_config, without the modules
    modules: list[ModuleKind]
    base_bytes: int  # tensors that are not quantized
    sizes: list[PrecisionSize]
    files: dict[str, int]  # every file of the directory and its bytes

    @property
    def quantized_weights(self) -> int:
        return sum(kind.weights for kind in self.modules)

    @property
    def linears(self) -> int:
        return sum(kind.count for kind in self.modules)

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "architecture": self.architecture,
            "quantization_config": dict(self.quantization),
            "linears": self.linears,
            "quantized_weights": self.quantized_weights,
            "modules": [kind.to_dict() for kind in self.modules],
            "base_bytes": self.base_bytes,
            "precisions": [size.to_dict() for size in self.sizes],
            "files": self.files,
            "total_bytes": sum(self.files.values()),
        }


def inspect_checkpoint(directory: str | Path) -> Contents:
    """Reads a checkpoint's headers. Raises FormatError or OSError where it cannot be opened."""
    directory = Path(directory)
    checkpoint = Checkpoint(directory)
    config = checkpoint.config
    quantization = dict(config["quantization_config"])
    quantization.pop("modules")
    modules = _kinds(checkpoint.modules)
    weights = sum(kind.weights for kind in modules)
    planes, codebooks, base = _tensor_bytes(checkpoint)
    sizes = []
    for b in checkpoint.available_precisions:
        plane_bytes = sum(planes[i] for i in range(b))
        sizes.append(
            PrecisionSize(
                precision=b,
                planes=plane_bytes,
                codebooks=codebooks[b],
                serving=base + plane_bytes + codebooks[b],
                files=Checkpoint(directory, [b]).bytes_mapped,
                bits_per_weight=8 * (plane_bytes + codebooks[b]) / weights,
            )
        )
    architectures = config.get("architectures") or [config.get("model_type", "unknown")]
    return Contents(
        path=str(directory),
        architecture=architectures[0],
        quantization=quantization,
        modules=modules,
        base_bytes=base,
        sizes=sizes,
        files={f.name: f.stat().st_size for f in sorted(directory.iterdir()) if f.is_file()},
    )


@dataclass(frozen=True)
class LinearSize:
    """What serving one quantized linear takes: planes 0..b-1 and the codebooks of precision b."""

    name: str
    weights: int
    bytes: Mapping[int, int]  # at each of the checkpoint's precisions


def linear_sizes(checkpoint: Checkpoint) -> list[LinearSize]:
    """The size of each linear at each open precision, from the tensors themselves."""

    def total(names: list[str]) -> int:
        return sum(checkpoint.data(name).nbytes for name in names if name in checkpoint)

    return [
        LinearSize(
            name,
            out_features * in_features,
            {
                b: total([f"{name}.plane.{i}" for i in range(b)])
                + total([f"{name}.lut.{b}", f"{name}.alpha.{b}"])
                for b in checkpoint.precisions
            },
        )
        for name, out_features, in_features in checkpoint.modules
    ]


def bits_per_weight(sizes: Iterable[LinearSize], precisions: Mapping[str, int]) -> float:
    """Planes and codebooks over the quantized weights, as PrecisionSize counts them.

    precisions: of every linear, by its name.
    """
    sizes = list(sizes)
    total = sum(size.bytes[precisions[size.name]] for size in sizes)
    return 8 * total / sum(size.weights for size in sizes)


def _kinds(modules: list[tuple[str, int, int]]) -> list[ModuleKind]:
    counts = Counter(
        (re.sub(r"(?<![^.])\d+(?![^.])", "*", name), out_features, in_features)
        for name, out_features, in_features in modules
    )
    return [ModuleKind(name, count, n, k) for (name, n, k), count in counts.items()]


def _tensor_bytes(checkpoint: Checkpoint) -> tuple[Counter[int], Counter[int], int]:
    """Bytes of each plane, of each precision's codebooks, and of all other tensors."""
    planes: Counter[int] = Counter()
    codebooks: Counter[int] = Counter()
    base = 0
    names = {name for name, _, _ in checkpoint.modules}
    for tensor in checkpoint.tensor_names():
        size = checkpoint.data(tensor).nbytes
        match = re.fullmatch(r"(.+)\.(plane|lut|alpha)\.(\d+)", tensor)
        if match is None or match[1] not in names:
            base += size
        elif match[2] == "plane":
            planes[int(match[3])] += size
        else:
            codebooks[int(match[3])] += size
    return planes, codebooks, base
