"""The torch-free C++ core (pybind11). Arrays are C-contiguous numpy arrays."""

import os
from typing import Any

import numpy as np

class Error(Exception): ...
class FormatError(Error, ValueError): ...
class PrecisionError(Error, ValueError): ...

# InvalidArgument is raised as ValueError, IoError as OSError.

__version__: str

class ThreadPool:
    def __init__(self, threads: int = 0) -> None: ...
    @property
    def concurrency(self) -> int: ...

class QuantizedMatrix:
    codes: np.ndarray  # uint8 [N, K], parent precision
    luts: dict[int, np.ndarray]  # precision -> float32 [N, G, 2^b]
    errors: dict[int, float]  # precision -> sum of s * (w - value)^2

def quantize_matrix(
    name: str,
    weights: np.ndarray,  # float32 [N, K]
    sensitivities: np.ndarray | None,  # float32 [N, K]
    *,
    lowest_precision: int = 2,
    seed_precision: int = 3,
    parent_precision: int = 8,
    group_size: int = 0,
    pool: ThreadPool | None = None,
) -> QuantizedMatrix:
    """Releases the GIL. See include/anyprec/quantize.h."""

def codes_to_planes(codes: np.ndarray, parent_precision: int) -> np.ndarray:
    """uint8 [N, K] -> uint8 [parent, N, ceil(K/8)], canonical."""

def planes_to_codes(planes: np.ndarray, in_features: int, precision: int) -> np.ndarray:
    """uint8 [>=b, N, ceil(K/8)] canonical -> uint8 [N, K] b-bit codes."""

class Checkpoint:
    """Memory-mapped reader; see include/anyprec/checkpoint.h."""

    def __init__(self, directory: str | os.PathLike[str], precisions: list[int] = ...) -> None: ...
    @property
    def config(self) -> dict[str, Any]:
        """The whole of config.json."""
    @property
    def available_precisions(self) -> list[int]: ...
    @property
    def precisions(self) -> list[int]: ...
    @property
    def modules(self) -> list[tuple[str, int, int]]:
        """(name, out_features, in_features) of every quantized linear."""
    @property
    def codebook(self) -> dict[str, Any]:
        """{"lut_bits": int, "cell_groups": str, "group_size": int}"""
    @property
    def bytes_mapped(self) -> int: ...
    @property
    def files(self) -> list[str]: ...
    def tensor_names(self) -> list[str]: ...
    def __contains__(self, name: str) -> bool: ...
    def dtype(self, name: str) -> str: ...
    def shape(self, name: str) -> list[int]: ...
    def data(self, name: str) -> np.ndarray:
        """The tensor's bytes, uint8 [nbytes], read-only, zero-copy; keeps the mapping alive."""

class CheckpointWriter:
    def __init__(
        self,
        directory: str | os.PathLike[str],
        config_json: str,
        options_json: str = "{}",
        overwrite: bool = False,
        shard_bytes: int = ...,
    ) -> None: ...
    def add(self, name: str, dtype: str, shape: list[int], data: np.ndarray) -> None:
        """data: any C-contiguous array with the right number of bytes."""
    def add_file(self, file_name: str, data: bytes) -> None: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...

def verify_checkpoint(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """{"tensors": int, "bytes": int, "problems": [str, ...]}"""

def cpu_isa() -> str: ...
