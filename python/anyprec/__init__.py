"""One set of quantized weights that serves as a 2- to 8-bit language model.

Importing this package registers the operators torch.ops.anyprec.*; the names below are imported
from their modules when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from anyprec import _ops  # noqa: F401  (registers torch.ops.anyprec)
from anyprec._core import (
    Checkpoint,
    CheckpointWriter,
    Error,
    FormatError,
    PrecisionError,
    __version__,
    cpu_isa,
    verify_checkpoint,
)

if TYPE_CHECKING:
    from anyprec.allocation import allocate
    from anyprec.linear import AnyPrecisionLinear
    from anyprec.model import AnyPrecisionForCausalLM
    from anyprec.quantization import quantize
    from anyprec.refinement import refine

_LAZY = {
    "AnyPrecisionForCausalLM": "anyprec.model",
    "AnyPrecisionLinear": "anyprec.linear",
    "allocate": "anyprec.allocation",
    "quantize": "anyprec.quantization",
    "refine": "anyprec.refinement",
}

__all__ = [
    "AnyPrecisionForCausalLM",
    "AnyPrecisionLinear",
    "Checkpoint",
    "CheckpointWriter",
    "Error",
    "FormatError",
    "PrecisionError",
    "__version__",
    "allocate",
    "cpu_isa",
    "quantize",
    "refine",
    "verify_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
