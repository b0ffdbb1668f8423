"""Hidden states between segments: a tensor for each sequence, in memory or in a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


class HiddenStates:
    """As many tensors of one shape and dtype as there are sequences; each can be overwritten.

    device: where they are kept; with `file` (then on the CPU) they are the contents of that file,
    which the system holds in memory only as far as there is room. The file is made at once and
    deleted by `close`.
    """

    def __init__(self, count: int, device: torch.device, file: Path | None = None) -> None:
        self._count, self._device, self._file = count, device, file
        self._all: Tensor | None = None

    def __len__(self) -> int:
        return self._count

    def __setitem__(self, index: int, state: Tensor) -> None:
        if self._all is None:
            self._all = self._allocate(state)
        self._all[index].copy_(state)

    def __getitem__(self, index: int) -> Tensor:
        return self.all[index]

    @property
    def all(self) -> Tensor:
        """[sequences, ...], not a copy."""
        assert self._all is not None, "read before it was written"
        return self._all

    def close(self) -> None:
        self._all = None
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _allocate(self, state: Tensor) -> Tensor:
        shape = (self._count, *state.shape)
        if self._file is None:
            return torch.empty(shape, dtype=state.dtype, device=self._device)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        flat = torch.from_file(
            str(self._file), shared=True, size=self._count * state.numel(), dtype=state.dtype
        )
        return flat.view(shape)
