"""A causal LM in two parts: its last hidden states, and the head that makes logits of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from anyprec.patching import replaced_forward


class HeadError(ValueError):
    """A model whose logits are not those of its output head."""


@dataclass(frozen=True)
class OutputHead:
    """From the last hidden states to logits, as the model itself goes.

    scale: of the module's output (Cohere's logit_scale, one over Granite's logits_scaling).
    softcap: logits become softcap * tanh(logits / softcap) (Gemma 2).
    """

    module: nn.Module
    vocabulary: int
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden: [..., d] -> [..., V]"""
        logits = self.module(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def kept(self) -> OutputHead:
        """With a copy of the module, which stays where it is when the model is moved."""
        return replace(self, module=copy.deepcopy(self.module).requires_grad_(False))


def output_head(model: nn.Module) -> OutputHead:
    """The head of a Hugging Face causal LM. Raises HeadError where it has none."""
    module = model.get_output_embeddings()
    if module is None:
        raise HeadError(f"{type(model).__name__} has no output embeddings, wanted a language model")
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return OutputHead(
        module,
        vocabulary=config.vocab_size,
        scale=scale / divisor,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def last_hidden(model: nn.Module, ids: Tensor) -> Tensor:
    """What the model's head is given: [B, T, d] for ids int64 [B, T]. Keeps the graph."""
    module = model.get_output_embeddings()
    states: list[Tensor] = []

    def capture(hidden: Tensor) -> Tensor:
        states.append(hidden)
        return hidden[..., :1]  # what the model does with logits costs next to nothing

    with replaced_forward(module, capture):
        model(input_ids=ids, use_cache=False)
    if len(states) != 1 or states[0].shape[:2] != ids.shape:
        found = ", ".join(str(list(state.shape)) for state in states) or "nothing"
        raise HeadError(
            f"{type(model).__name__}: its head was given {found}, wanted one tensor "
            f"[{ids.shape[0]}, {ids.shape[1]}, d]"
        )
    return states[0]


@torch.no_grad()
def check_head(model: nn.Module, head: OutputHead, ids: Tensor) -> None:
    """Raises HeadError unless head and hidden states give the model's own logits for ids [1, T]."""
    wanted = model(input_ids=ids, use_cache=False).logits.float()
    found = head(last_hidden(model, ids)).float()
    if found.shape != wanted.shape:
        raise HeadError(
            f"{type(model).__name__}: its head gives {list(found.shape)}, wanted the "
            f"{list(wanted.shape)} of its logits"
        )
    error = (found - wanted).abs().max().item()
    if not error <= 1e-2 * wanted.abs().max().item():
        raise HeadError(
            f"{type(model).__name__}: its head's output is off its logits by up to {error:g}; it "
            "does something to them that is not known here"
        )
