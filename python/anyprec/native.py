"""The native decode engine (include/anyprec/engine.h) from Python: thin, no logic of decoding."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import anyprec._ops  # noqa: F401  (registers torch.ops.anyprec)
from anyprec.precision import PrecisionRequest

# How a token's event tells that its sequence has ended.
_FINISH = {0: None, 1: "stop_token", 2: "length"}


@dataclass(frozen=True)
class TokenEvent:
    """One token of one sequence; finish: None, "stop_token" or "length"."""

    sequence: int
    token: int
    finish: str | None


class NativeEngine:
    """Decodes sequences of tokens together; made by one of the class methods.

    options of all of them: device, dtype, precisions, max_sequence_length, cache_tokens,
    block_size, max_batch, prefill_chunk, cuda_graphs, run_ahead (EngineOptions in
    include/anyprec/engine.h).
    They raise NotImplementedError where the model's config asks for what the engine lacks, and
    ValueError for malformed options and tensors.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str], **options: Any) -> NativeEngine:
        """An engine of a checkpoint directory, loaded without transformers."""
        return cls(torch.ops.anyprec.engine_from_directory(os.fspath(path), _json(options)))

    @classmethod
    def from_tensors(
        cls,
        config_json: str,
        modules: Iterable[tuple[str, int, int]],
        codebook: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        **options: Any,
    ) -> NativeEngine:
        """An engine on tensors that are there already, which it shares.

        modules: name, out_features, in_features of each quantized linear; codebook: lut_bits,
        cell_groups, group_size; tensors: as an AnyPrecisionLinear names its own, all on one device.
        """
        layout = {"modules": [list(module) for module in modules], "codebook": dict(codebook)}
        return cls(
            torch.ops.anyprec.engine_from_tensors(
                config_json, _json(layout), dict(tensors), _json(options)
            )
        )

    @classmethod
    def from_shape(
        cls,
        config: Mapping[str, Any],
        precisions: Sequence[int] = (),
        codebook: Mapping[str, Any] | None = None,
        quantize_head: bool = False,
        **options: Any,
    ) -> NativeEngine:
        """An engine with random weights of a config.json's shapes, to measure its speed.

        precisions: what the linears can run at; none: they are dense.
        """
        form = {"lut_bits": 8, "cell_groups": "one", "group_size": 0, **(codebook or {})}
        weights = {"precisions": list(precisions), "quantize_head": quantize_head, **form}
        return cls(
            torch.ops.anyprec.engine_from_shape(
                json.dumps(dict(config)), _json(weights), _json(options)
            )
        )

    def submit(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int = 128,
        stop_tokens: Sequence[int] = (),
        precision: PrecisionRequest | None = None,
        prefill_precision: PrecisionRequest | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> int:
        """Queues a sequence and returns its number (Request in include/anyprec/engine.h)."""
        request: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "stop_tokens": list(stop_tokens),
            "sampling": {
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "repetition_penalty": repetition_penalty,
                "seed": seed,
            },
        }
        if precision is not None:
            request["precision"] = _precision(precision)
        if prefill_precision is not None:
            request["prefill_precision"] = _precision(prefill_precision)
        return self._handle.submit([int(token) for token in prompt], _json(request))

    def step(self) -> list[TokenEvent]:
        """Advances every sequence; the tokens that came."""
        return [TokenEvent(s, t, _FINISH[finish]) for s, t, finish in self._handle.step()]

    def stop(self, sequence: int) -> None:
        """Ends a sequence at once; one that is not there is ignored."""
        self._handle.stop(sequence)

    @property
    def idle(self) -> bool:
        """Whether no sequence is waiting or running."""
        return self._handle.idle()

    def generate(self, prompt: Sequence[int], **request: Any) -> list[int]:
        """Submits, and steps until that sequence is done: its new tokens."""
        sequence = self.submit(prompt, **request)
        tokens: list[int] = []
        while True:
            for event in self.step():
                if event.sequence == sequence:
                    tokens.append(event.token)
                    if event.finish is not None:
                        return tokens

    def logits(self, tokens: Sequence[int], precision: PrecisionRequest | None = None) -> Tensor:
        """Of every token: fp32 [T, V], on the engine's device."""
        request = [] if precision is None else _precision(precision)
        return self._handle.logits([int(token) for token in tokens], _json(request))

    def weight_bytes(self, precision: PrecisionRequest | None = None) -> int:
        """Bytes of weights that a token must read."""
        return self._handle.weight_bytes(_json([] if precision is None else _precision(precision)))

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of keys and values of a token, all layers."""
        return self._handle.cache_bytes_per_token()

    @property
    def max_sequence_length(self) -> int:
        return self._handle.max_sequence_length()


def refusal(config_json: str) -> str:
    """Why the engine cannot run a model with this config.json; empty where it can."""
    return torch.ops.anyprec.engine_refusal(config_json)


def _precision(request: PrecisionRequest) -> Any:
    """An int, or pairs of a mapping in its order."""
    if isinstance(request, Mapping):
        return [[pattern, bits] for pattern, bits in request.items()]
    return request


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
