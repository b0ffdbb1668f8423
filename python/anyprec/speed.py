"""Decode speed: tokens a second of generation, token by token."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer


class TokenClock(BaseStreamer):
    """Notes when each token comes; hands what it gets on to another streamer, if given."""

    def __init__(self, inner: BaseStreamer | None = None) -> None:
        self.inner = inner
        self.times: list[float] = []  # seconds, of the prompt's end and of every token
        self._prompt = True

    def put(self, value: Tensor) -> None:
        if self._prompt:  # generate first shows the prompt, before any work is done
            self._prompt = False
        else:
            self.times.append(time.perf_counter())
        if self.inner is not None:
            self.inner.put(value)

    def end(self) -> None:
        if self.inner is not None:
            self.inner.end()

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first, whose time is the prompt's; None before there are two."""
        if len(self.times) < 2 or self.times[-1] <= self.times[0]:
            return None
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


@dataclass(frozen=True)
class DecodeSpeed:
    tokens_per_second: float  # the median of the repetitions
    repetitions: tuple[float, ...]
    new_tokens: int


def decode_speed(
    model: Any,
    input_ids: Tensor | None = None,
    *,
    precision: int | None = None,
    new_tokens: int = 32,
    repetitions: int = 3,
) -> DecodeSpeed:
    """Measures greedy generation of `new_tokens` tokens after a warm-up of a few.

    input_ids: the prompt, int64 [1, T]; 8 arbitrary tokens by default. precision: None for a model
    that has none, or for the one in force. The prompt's own time does not count, and generation
    does not stop at an end-of-text token.
    """
    if new_tokens < 2:
        raise ValueError(f"new_tokens {new_tokens}: at least 2 are needed to measure a speed")
    if input_ids is None:
        input_ids = torch.arange(1, 9)[None]
    input_ids = input_ids.to(model.device)
    options = {} if precision is None else {"precision": precision}
    no_token = model.config.get_text_config().vocab_size  # the engine has no least length

    def run(count: int) -> TokenClock:
        clock = TokenClock()
        model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=no_token,
            streamer=clock,
            **options,
        )
        return clock

    run(min(new_tokens, 4))
    speeds = sorted(run(new_tokens).tokens_per_second or 0.0 for _ in range(repetitions))
    return DecodeSpeed(speeds[len(speeds) // 2], tuple(speeds), new_tokens)
