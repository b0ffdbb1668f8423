"""Parts of a model on a device for a while, in the dtype to compute in; the original stays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn


@contextlib.contextmanager
def on_device(
    modules: Iterable[nn.Module], device: torch.device, dtype: torch.dtype, own: torch.dtype
) -> Iterator[None]:
    """Own parameters and buffers of `modules` (not of what is inside them) on a device.

    Parameters of dtype `own`, the model's, are cast to `dtype`; others and buffers keep theirs
    (rotary frequencies are float32 in every model). What was there is kept, and put back
    afterwards untouched: copies are dropped, never copied back. Parameters stay the same objects,
    so that what is tied stays tied.
    """
    modules = list(modules)
    parameters = {id(p): p for module in modules for p in module.parameters(recurse=False)}
    originals = [(p, p.data) for p in parameters.values()]
    buffers = [
        (module, name, buffer)
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    moved: dict[int, torch.Tensor] = {}
    try:
        for parameter, data in originals:
            parameter.data = data.to(device, dtype if data.dtype == own else data.dtype)
        for module, name, buffer in buffers:
            module._buffers[name] = moved.setdefault(id(buffer), buffer.to(device))
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
