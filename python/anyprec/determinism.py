"""The same bytes from every run on one device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def deterministic(device: torch.device, strict: bool) -> Iterator[None]:
    """Lets torch use deterministic kernels only: CUDA's fastest ones add in any order.

    strict: an operator that has none raises RuntimeError with "deterministic" in its message;
    otherwise torch warns of it. On a CPU there is nothing to do.
    """
    if device.type != "cuda":
        yield
        return
    # cuBLAS reads this when its handle is made; without it torch refuses to be deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # Fills of empty tensors are for finding bugs, and cost a pass over every activation.
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill
