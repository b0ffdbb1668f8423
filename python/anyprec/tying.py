"""Output heads that share their weight with the input embedding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn


def tied_to_embedding(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of the named linears whose weight is also an embedding's."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return [name for name in names if id(model.get_submodule(name).weight) in embeddings]


@contextlib.contextmanager
def untied(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Inside, each named linear that is tied to the embedding has a parameter of its own.

    Both have the same values, in the same memory. So a gradient with respect to the head's weight
    is that of the head alone: once quantized, the head no longer is the embedding.
    """
    linears = [model.get_submodule(name) for name in tied_to_embedding(model, names)]
    before = [linear.weight for linear in linears]
    try:
        for linear, weight in zip(linears, before, strict=True):
            linear.weight = nn.Parameter(weight.data, requires_grad=weight.requires_grad)
        yield
    finally:
        for linear, weight in zip(linears, before, strict=True):
            linear.weight = weight
