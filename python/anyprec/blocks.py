"""The decoder's blocks while codebooks are trained: recomputation, and masks for CUDA graphs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from anyprec.patching import replaced_forward


def block_names(linears: Iterable[str]) -> list[str]:
    """Of the blocks that linears are in: "model.layers.3" for model.layers.3.mlp.up_proj."""
    matches = (re.match(r"(?:[^.]+\.)*?\d+(?=\.)", name) for name in linears)
    return list(dict.fromkeys(match[0] for match in matches if match))


class Blocks:
    """The blocks of a model; inside `attached` their forward passes can do two things more.

    recompute: keep only each block's input, and compute the block again in the backward pass.

    Inside `captured`, while a CUDA graph is being captured, blocks are given the attention masks
    that they had in the last call before: transformers makes other ones while a stream captures
    (never None, so that attention takes a slow path). They are kept as long as this object.
    """

    def __init__(self, model: nn.Module, linears: Iterable[str]) -> None:
        self._blocks = [model.get_submodule(name) for name in block_names(linears)]
        self._masks: dict[int, Any] = {}
        self._fixed: dict[int, Any] = {}
        self._capturing = False
        self.recompute = False

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for block in self._blocks:
                stack.enter_context(replaced_forward(block, self._wrapped(block)))
            yield

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        self._fixed = dict(self._masks)
        self._capturing = True
        try:
            yield
        finally:
            self._capturing = False

    def _wrapped(self, block: nn.Module) -> Callable[..., Any]:
        forward = block.forward
        key = id(block)

        def call(*args: Any, **kwargs: Any) -> Any:
            if "attention_mask" in kwargs:
                if self._capturing:
                    kwargs["attention_mask"] = self._fixed[key]
                else:
                    self._masks[key] = kwargs["attention_mask"]
            if self.recompute and torch.is_grad_enabled():
                # Nothing in a block is random: models are in eval mode.
                return checkpoint(
                    forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
                )
            return forward(*args, **kwargs)

        return call
