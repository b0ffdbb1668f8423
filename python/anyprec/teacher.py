"""What the original model made of a text, computed once: its last hidden states, and its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from anyprec.output_head import OutputHead, check_head, last_hidden, output_head

# Of a GPU's free memory hidden states take this much at most; more of them wait in pinned RAM.
GPU_SHARE = 0.25
_BATCH = 8
_CHECKED = 16  # tokens that the head is checked on


@dataclass(frozen=True)
class Windows:
    """Windows of text and the original's last hidden states.

    ids: int64 [n, T], on the device to compute on. hidden: [n, T, d] in the dtype to compute in, on
    the same device or in pinned RAM.
    """

    ids: Tensor
    hidden: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, rows: Sequence[int], ids: Tensor, hidden: Tensor) -> None:
        """Copies windows into buffers [B, T] and [B, T, d] on the device."""
        for to, row in enumerate(rows):
            ids[to].copy_(self.ids[row], non_blocking=True)
            hidden[to].copy_(self.hidden[row], non_blocking=True)

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Windows as new tensors on the device."""
        ids = self.ids.new_empty((len(rows), *self.ids.shape[1:]))
        hidden = self.hidden.new_empty((len(rows), *self.hidden.shape[1:]), device=ids.device)
        self.load(rows, ids, hidden)
        return ids, hidden


@dataclass(frozen=True)
class Teacher:
    """All that distillation needs of the original model, which can go once this is made."""

    head: OutputHead
    training: Windows
    held_out: Windows


@torch.no_grad()
def teach(model: nn.Module, training: np.ndarray, held_out: np.ndarray) -> Teacher:
    """Runs the original over all windows, int64 [n, T] each.

    model: on the device and in the dtype to compute in. Takes n T d elements of that dtype: on the
    GPU where they fit into GPU_SHARE of what is free there, else in pinned RAM. Raises HeadError
    where the model's logits are not those of its head.
    """
    device = model.device
    head = output_head(model)
    check_head(model, head, torch.as_tensor(held_out[:1, :_CHECKED], device=device))
    windows = [_windows(model, ids, len(training) + len(held_out)) for ids in (training, held_out)]
    return Teacher(head.kept(), *windows)


def _windows(model: nn.Module, rows: np.ndarray, total: int) -> Windows:
    """total: windows that there will be altogether, of which these are some."""
    device = model.device
    ids = torch.as_tensor(rows, dtype=torch.int64, device=device)
    batch = _BATCH if device.type == "cuda" else 1
    hidden = None
    for at in range(0, len(ids), batch):
        states = last_hidden(model, ids[at : at + batch])
        if hidden is None:
            place = _place(device, total * states[0].numel() * states.element_size())
            hidden = torch.empty(
                (len(ids), *states.shape[1:]),
                dtype=states.dtype,
                device=place,
                pin_memory=place != device,
            )
        hidden[at : at + batch].copy_(states)
    return Windows(ids, hidden)


def _place(device: torch.device, size: int) -> torch.device:
    if device.type == "cuda" and size > GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
        return torch.device("cpu")
    return device
