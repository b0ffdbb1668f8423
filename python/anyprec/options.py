"""What a quantization is asked to make, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from anyprec.datasets import BUILTIN
from anyprec.recipes import DEFAULT_RECIPE, Recipe, load_recipe
from anyprec.source import Source, parse_dtype

# Each kind's own lut_bits and cell_groups (docs/format.md): "lut" has a full table per output
# channel and precision, "hybrid" a table on the top bits and signed planes below it, "bcq" an
# offset and signed planes.
CODEBOOKS = {"lut": (8, "one"), "hybrid": (4, "io"), "bcq": (0, "one")}


class QuantizeError(ValueError):
    """Options that contradict each other, or a result that the format cannot hold."""


@dataclass(frozen=True)
class Options:
    """What to make; see `quantize` for each."""

    modules: tuple[str, ...] = ()
    dataset: str = BUILTIN
    num_examples: int = 100
    seq_len: int = 512
    random_state: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    calibration_dtype: str = "auto"
    precisions: tuple[int, ...] = tuple(range(2, 9))
    seed_precision: int = 3
    group_size: int = 0
    codebook: str = "lut"
    lut_bits: int | None = None  # of a hybrid; None: the kind's own
    cell_groups: str | None = None  # of a hybrid; None: the kind's own
    recipe: Recipe = field(default_factory=lambda: load_recipe(DEFAULT_RECIPE))
    max_memory: int | None = None  # bytes
    quantize_head: bool = False

    def __post_init__(self) -> None:
        b = self.precisions
        if not b or list(b) != list(range(b[0], b[0] + len(b))) or b[0] < 2 or b[-1] > 8:
            raise QuantizeError(
                f"precisions {_listed(b)}: wanted a rising range without gaps within 2..8"
            )
        if not b[0] <= self.seed_precision <= b[-1]:
            raise QuantizeError(
                f"seed precision {self.seed_precision}: wanted one of the precisions {_listed(b)}"
            )
        if self.group_size < 0 or self.group_size % 32:
            raise QuantizeError(f"group size {self.group_size}: wanted 0 or a multiple of 32")
        _ = self.form  # checked
        self.recipe.check(b, self.codebook)
        parse_dtype(self.dtype)
        parse_dtype(self.calibration_dtype)

    @property
    def form(self) -> tuple[int, str]:
        """lut_bits and cell_groups of the codebooks."""
        return codebook_form(self.codebook, self.lut_bits, self.cell_groups)


def codebook_form(
    codebook: str, lut_bits: int | None = None, cell_groups: str | None = None
) -> tuple[int, str]:
    """lut_bits and cell_groups of a kind of codebook; None: the kind's own.

    Raises QuantizeError for a kind that is not there, or details that it does not have.
    """
    if codebook not in CODEBOOKS:
        raise QuantizeError(f"codebook {codebook!r}: wanted one of {', '.join(CODEBOOKS)}")
    if codebook != "hybrid" and (lut_bits, cell_groups) != (None, None):
        raise QuantizeError(
            f"lut_bits {lut_bits}, cell_groups {cell_groups}: only a hybrid has them to choose, "
            f"found codebook {codebook!r}"
        )
    own_bits, own_groups = CODEBOOKS[codebook]
    lut_bits = own_bits if lut_bits is None else lut_bits
    cell_groups = own_groups if cell_groups is None else cell_groups
    if codebook == "hybrid" and not 1 <= lut_bits <= 7:
        raise QuantizeError(f"lut_bits {lut_bits}: wanted 1 to 7 for a hybrid")
    classes(lut_bits, cell_groups)
    return lut_bits, cell_groups


def classes(lut_bits: int, cell_groups: str) -> int:
    """C: the classes of a table's cells, which share the coefficients of signed planes.

    Raises QuantizeError for groups that are not there, or not with so many bits.
    """
    counts = {
        "one": 1,
        "io": 2 if lut_bits > 1 else 1,
        "sym": 2 ** max(lut_bits - 1, 0),
        "qu": 4,
        "cell": 2**lut_bits,
    }
    if cell_groups not in counts:
        raise QuantizeError(f"cell_groups {cell_groups!r}: wanted one of {', '.join(counts)}")
    if cell_groups == "qu" and lut_bits != 4:
        raise QuantizeError(f"cell_groups 'qu': wanted lut_bits 4, found {lut_bits}")
    return counts[cell_groups]


def resolve_device(device: str) -> str:
    """A device that is there; "auto" is a GPU when there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise QuantizeError(f"device {device!r}: {error}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise QuantizeError(f"device {device!r}: no CUDA device is available")
    return device


def calibration_dtype(source: Source, options: Options, device: torch.device) -> torch.dtype:
    """What calibration computes in: "auto" is bfloat16 for a bfloat16 model on a GPU, else fp32."""
    wanted = parse_dtype(options.calibration_dtype)
    if wanted is not None:
        return wanted
    own = next(source.model.parameters()).dtype
    return torch.bfloat16 if device.type != "cpu" and own == torch.bfloat16 else torch.float32


def _listed(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values) or "(none)"
