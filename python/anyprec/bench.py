"""Speed of the native engine: prompts and decoding by precision, beside the limit of memory."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from anyprec.native import NativeEngine

# Steps before the clock starts: libraries load, and a decode graph is captured.
_WARM_STEPS = 4
# Prompt tokens of one step.
_CHUNK = 2048


@dataclass(frozen=True)
class Case:
    """batch sequences of `context` prompt tokens each, then new_tokens of decoding.

    vocabulary: of the model; prompts are made of its first tokens.
    """

    batch: int
    context: int
    new_tokens: int
    vocabulary: int

    @property
    def token_range(self) -> int:
        """Prompts are made of tokens below this."""
        return min(997, self.vocabulary)

    @property
    def tokens(self) -> int:
        """New tokens of a sequence, those before the clock starts included."""
        # The first sequences decode while the prompts of the last ones are read.
        return 1 + -(-self.batch * self.context // _CHUNK) + _WARM_STEPS + self.new_tokens


@dataclass(frozen=True)
class Speed:
    """One row: rates in tokens a second over all sequences, bytes of one decode step."""

    name: str  # "4 bits", "float16"
    batch: int
    context: int
    new_tokens: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    decode_step_seconds: float  # the median
    step_bytes: int  # weights, and the keys and values of all sequences
    bytes_per_second: float
    limit_share: float  # of the time that copying as many bytes takes, over the step's
    peak_bytes: int  # of the GPU's memory that torch allocated; of the process on a CPU

    @classmethod
    def of(
        cls,
        name: str,
        case: Case,
        prefill: float,
        steps: list[float],
        step_bytes: int,
        bandwidth: float,
        peak_bytes: int,
    ) -> Speed:
        """prefill, steps: seconds of reading the prompts, and of each decode step."""
        step = sorted(steps)[len(steps) // 2]
        return cls(
            name,
            case.batch,
            case.context,
            case.new_tokens,
            prefill_tokens_per_second=case.batch * case.context / prefill,
            decode_tokens_per_second=case.batch / step,
            decode_step_seconds=step,
            step_bytes=step_bytes,
            bytes_per_second=step_bytes / step,
            limit_share=step_bytes / bandwidth / step,
            peak_bytes=peak_bytes,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of the best of several large copies."""
    size = 1 << (30 if device.type == "cuda" else 28)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(6):
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(4):
            target.copy_(source)
        synchronize(device)
        best = max(best, 4 * 2 * size / (time.perf_counter() - begin))
    return best


def measure(
    make: Callable[[dict[str, int]], NativeEngine],
    runs: Iterable[tuple[str, int | None]],
    cases: list[Case],
    device: torch.device,
    bandwidth: float,
    on_row: Callable[[Speed], None],
) -> None:
    """Runs every case at every precision on one engine, which is freed afterwards.

    make: an engine with these options; runs: a row's name, and its precision.
    """
    _forget(device)
    tokens = {(case.batch, case.context + case.tokens) for case in cases}
    longest = max(length for _, length in tokens)
    block = 16
    room = max(batch * -(-length // block) * block for batch, length in tokens)
    engine = make(
        {
            "max_sequence_length": longest,
            "cache_tokens": max(room, longest),
            "max_batch": max(case.batch for case in cases),
            "prefill_chunk": _CHUNK,
        }
    )
    for name, precision in runs:
        for case in cases:
            on_row(_row(engine, name, precision, case, device, bandwidth))
    del engine
    _forget(device)


def _row(
    engine: NativeEngine,
    name: str,
    precision: int | None,
    case: Case,
    device: torch.device,
    bandwidth: float,
) -> Speed:
    _one_run(engine, precision, replace(case, new_tokens=1))  # warms up
    prefill, steps = _one_run(engine, precision, case)
    held = case.context + _WARM_STEPS + case.new_tokens // 2
    size = engine.weight_bytes(precision) + case.batch * held * engine.cache_bytes_per_token
    return Speed.of(name, case, prefill, steps, size, bandwidth, _peak(device))


def _one_run(engine: NativeEngine, precision: int | None, case: Case) -> tuple[float, list[float]]:
    """Seconds of reading the prompts, and of each decode step after the warm ones."""
    for i in range(case.batch):
        prompt = [(31 * i + 17 * j) % case.token_range for j in range(case.context)]
        engine.submit(prompt, max_new_tokens=case.tokens, precision=precision)
    begin = time.perf_counter()
    first: set[int] = set()
    while len(first) < case.batch:
        first |= {event.sequence for event in engine.step()}
    prefill = time.perf_counter() - begin
    steps = []
    while not engine.idle:
        begin = time.perf_counter()
        events = engine.step()
        if len(events) == case.batch:  # none has ended yet
            steps.append(time.perf_counter() - begin)
    return prefill, steps[_WARM_STEPS:]


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
