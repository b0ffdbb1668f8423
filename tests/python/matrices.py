"""Random quantized matrices of any codebook form, with an oracle in plain numpy."""

from dataclasses import dataclass

import numpy as np
import torch


def classes_of(lut_bits: int, cell_groups: str) -> np.ndarray:
    """The class of each of the 2^L cells."""
    cells = np.arange(1 << lut_bits)
    mirrored = np.minimum(cells, (1 << lut_bits) - 1 - cells)
    return {
        "one": np.zeros_like(cells),
        "io": (mirrored > 0).astype(int),
        "sym": mirrored,
        "qu": np.minimum(mirrored, 2) + (mirrored > 3),
        "cell": cells,
    }[cell_groups]


@dataclass
class Matrix:
    codes: np.ndarray  # [N, K], 8-bit codes
    lut: torch.Tensor
    alpha: torch.Tensor | None
    precision: int
    group_size: int
    cell_groups: str
    lut_bits: int

    @property
    def canonical(self) -> torch.Tensor:
        """uint8 [8, N, ceil(K/8)]"""
        bits = (self.codes[None] >> np.arange(7, -1, -1)[:, None, None]) & 1
        return torch.from_numpy(np.packbits(bits.astype(np.uint8), axis=-1, bitorder="little"))

    @property
    def in_features(self) -> int:
        return self.codes.shape[1]

    @property
    def form(self) -> tuple[int, int, int, str]:
        return (self.precision, self.in_features, self.group_size, self.cell_groups)

    def dense(self) -> np.ndarray:
        """The matrix in double precision, from the codes and the definition of the form."""
        b, table_bits = self.precision, min(self.precision, self.lut_bits)
        code = self.codes.astype(int) >> (8 - b)
        cell = code >> (b - table_bits)
        n, k = code.shape
        rows = np.arange(n)[:, None]
        group = np.arange(k)[None] // (self.group_size or k)
        value = self.lut.double().cpu().numpy()[rows, group, cell]
        if self.alpha is not None:
            alpha = self.alpha.double().cpu().numpy()
            klass = classes_of(self.lut_bits, self.cell_groups)[cell]
            for i in range(b - table_bits):
                sign = 2 * ((code >> (b - table_bits - 1 - i)) & 1) - 1
                value = value + sign * alpha[rows, group, i, klass]
        return value

    def to(self, device: str) -> "Matrix":
        alpha = None if self.alpha is None else self.alpha.to(device)
        return Matrix(
            self.codes,
            self.lut.to(device),
            alpha,
            self.precision,
            self.group_size,
            self.cell_groups,
            self.lut_bits,
        )


def random_matrix(
    n: int,
    k: int,
    precision: int,
    lut_bits: int = 8,
    cell_groups: str = "one",
    group_size: int = 0,
    seed: int = 0,
) -> Matrix:
    rng = np.random.default_rng(seed)
    groups = -(-k // group_size) if group_size else 1
    table_bits = min(precision, lut_bits)
    lut = rng.standard_normal((n, groups, 1 << table_bits)) / np.sqrt(k)
    alpha = None
    if precision > lut_bits:
        classes = int(classes_of(lut_bits, cell_groups).max()) + 1
        shape = (n, groups, precision - lut_bits, classes)
        alpha = torch.from_numpy(rng.standard_normal(shape) / np.sqrt(k) / 4).half()
    codes = rng.integers(0, 256, (n, k), dtype=np.uint8)
    return Matrix(
        codes, torch.from_numpy(lut).half(), alpha, precision, group_size, cell_groups, lut_bits
    )


FORMS = [
    dict(lut_bits=8),
    dict(lut_bits=8, group_size=64),
    dict(lut_bits=3, cell_groups="one"),
    dict(lut_bits=3, cell_groups="io"),
    dict(lut_bits=4, cell_groups="sym"),
    dict(lut_bits=4, cell_groups="qu"),
    dict(lut_bits=3, cell_groups="cell", group_size=32),
    dict(lut_bits=0),
    dict(lut_bits=0, group_size=128),
]
