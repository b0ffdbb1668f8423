"""How calibration fits into memory: in how many segments, and what is kept where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from anyprec.memory import MemoryLimitError, format_memory, free_memory
from anyprec.segments import blocks_of, outside_modules
from anyprec.tying import untied

# Of what is free, what a plan may use when nobody states a limit.
_SHARE = 0.9
# What a fit to a Hessian takes on a GPU for the rows that it has at once, at most and for each
# weight (src/fit/fit.cpp).
_FIT_BYTES, _FIT_BYTES_OF_WEIGHT = 4 << 30, 150


@dataclass(frozen=True)
class Plan:
    """A way to calibrate.

    segments: ranges of blocks [first, last), in order; one alone is the plain forward and backward
    pass, more mean that each is run forward once more. resident: the whole model stays on the
    device; otherwise only what is outside the blocks does, and the blocks come in by segments.
    states: where hidden states between segments are kept: "device", "memory" or "disk".
    device_bytes, memory_bytes: the most that is taken on the device and of RAM (the same where the
    device is the CPU), the model as it was loaded included; disk_bytes: of scratch files.
    """

    segments: tuple[tuple[int, int], ...]
    resident: bool
    states: str
    device_bytes: int
    memory_bytes: int
    disk_bytes: int = 0

    def __str__(self) -> str:
        parts = f"in {len(self.segments)} segments" if len(self.segments) > 1 else "in one pass"
        moved = "" if self.resident else ", blocks moved to the device in turn"
        return f"{parts}{moved}, at most {format_memory(self.device_bytes)}"


@dataclass(frozen=True)
class _Costs:
    """Bytes, for each block and for what is outside the blocks."""

    own: int  # the whole model as loaded
    weights: list[int]  # in the dtype to compute in
    outside_weights: int
    sums: list[int]
    outside_sums: int
    activations: list[int]  # what one sequence's backward pass keeps
    logits: int
    transient: int  # one linear's gradient, and its fit
    states: int  # hidden states of all sequences at one border

    def held(self, segment: tuple[int, int], blocks: int, weights: bool) -> int:
        """While one segment's sums are made: with or without its blocks' weights."""
        first, last = segment
        ends = first == 0 or last == blocks
        activations = sum(self.activations[first:last]) + (self.logits if last == blocks else 0)
        return (
            sum(self.sums[first:last])
            + (self.outside_sums if ends else 0)
            + max(activations, self.transient)
            + (sum(self.weights[first:last]) if weights else 0)
        )


def make_plan(
    model: nn.Module,
    names: Sequence[str],
    tokens: tuple[int, int],
    *,
    device: torch.device,
    dtype: torch.dtype,
    hessians: bool,
    max_memory: int | None = None,
) -> Plan:
    """The quickest way that fits: as few segments as possible, resident where possible.

    names: the linears whose sums are wanted. tokens: sequences and their length. max_memory: bytes
    of the device, and also of RAM; None for nine tenths of what is free. Of the device's memory the
    model in `dtype`, the sums of one segment (4 (N K + K^2) bytes a linear, without hessians 4 N K)
    and the activations of one sequence are taken.

    Raises MemoryLimitError, with the least amount that would do, where nothing fits.
    """
    with untied(model, names):
        stem, blocks = blocks_of(model)
        costs = _costs(model, names, stem, blocks, tokens, dtype, hessians, device.type)
    copied = device.type != "cpu" or dtype != next(model.parameters()).dtype
    ways = list(_ways(costs, len(blocks), device, copied))
    memory = torch.device("cpu")
    ram = int(_SHARE * free_memory(memory)) + costs.own if max_memory is None else max_memory
    on_device = ram
    if device.type != "cpu":
        on_device = int(_SHARE * free_memory(device)) if max_memory is None else max_memory
    for plan in ways:
        if plan.device_bytes <= on_device and plan.memory_bytes <= ram:
            return plan
    least = min(ways, key=lambda plan: max(plan.device_bytes - on_device, plan.memory_bytes - ram))
    needs = f"{format_memory(least.device_bytes)} on {device}"
    if device.type != "cpu":
        needs += f" and {format_memory(least.memory_bytes)} of RAM"
    has = format_memory(on_device)
    if device.type != "cpu" and max_memory is None:
        has += f" and {format_memory(ram)} of RAM"
    limit = "free memory" if max_memory is None else "max memory"
    raise MemoryLimitError(
        f"{limit} {has}: calibration with {tokens[0]} x {tokens[1]} tokens needs at least {needs}"
        + ("" if blocks else " (the model cannot be calibrated in segments)")
    )


def _ways(costs: _Costs, blocks: int, device: torch.device, copied: bool) -> Iterator[Plan]:
    """All plans, the quickest first. copied: computing takes copies of the weights."""
    cpu = device.type == "cpu"
    for count in range(1, max(1, blocks) + 1):
        segments = tuple((i * blocks // count, (i + 1) * blocks // count) for i in range(count))
        kept = (count - 1) * costs.states
        for resident in (True, False) if count > 1 else (True,):
            held = max(costs.held(segment, blocks, copied and not resident) for segment in segments)
            if copied:
                held += costs.outside_weights + (sum(costs.weights) if resident else 0)
            # One segment has nothing between; on a CPU the device's memory is the memory.
            for states in ("device", "disk") if cpu else ("device", "memory", "disk"):
                if count == 1 and states != "device":
                    continue
                on_device = held + (kept if states == "device" else 0)
                in_memory = costs.own + (kept if states == "memory" else 0)
                if cpu:
                    on_device = in_memory = on_device + costs.own
                disk = kept if states == "disk" else 0
                yield Plan(segments, resident, states, on_device, in_memory, disk)


def _costs(
    model: nn.Module,
    names: Sequence[str],
    stem: str,
    blocks: Sequence[nn.Module],
    tokens: tuple[int, int],
    dtype: torch.dtype,
    hessians: bool,
    device: str,
) -> _Costs:
    sequences, length = tokens
    main = next(model.parameters()).dtype
    config = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config

    def placed_bytes(parameters: Iterable[nn.Parameter]) -> int:
        unique = {id(p): p for p in parameters}.values()
        return sum(
            p.numel() * (dtype.itemsize if p.dtype == main else p.element_size()) for p in unique
        )

    def sums_of(chosen: Iterable[str]) -> int:
        shapes = {id(w): w.shape for w in (model.get_submodule(n).weight for n in chosen)}
        return sum(4 * (n * k + (k * k if hessians else 0)) for n, k in shapes.values())

    outside = outside_modules(model, blocks)
    inside = [[n for n in names if n.startswith(f"{stem}.{i}.")] for i in range(len(blocks))]
    others = set(names) - {n for group in inside for n in group}
    heads = getattr(text, "num_attention_heads", 0) or 0
    eager = getattr(config, "_attn_implementation", None) == "eager"
    scores = heads * length * length * max(dtype.itemsize, 4)

    def transient(n: int, k: int) -> int:
        """A gradient in the dtype and in fp32; the fit's copies of the weight and of the Hessian,
        and its rows."""
        fit = 24 * k * k if hessians else 0
        if hessians and device != "cpu":
            fit += min(_FIT_BYTES, _FIT_BYTES_OF_WEIGHT * n * k)
        return n * k * (16 + dtype.itemsize) + fit

    linears = [m for m in outside if isinstance(m, nn.Linear)]
    largest = [model.get_submodule(n).weight.shape for n in names]
    hidden = getattr(text, "hidden_size", None) or max((s[1] for s in largest), default=0)
    return _Costs(
        own=sum(p.numel() * p.element_size() for p in model.parameters()),
        weights=[placed_bytes(block.parameters()) for block in blocks],
        outside_weights=placed_bytes(p for m in outside for p in m.parameters(recurse=False)),
        sums=[sums_of(group) for group in inside],
        outside_sums=sums_of(others),
        activations=[
            length * _width(block) * dtype.itemsize * 9 // 4 + (3 * scores if eager else 0)
            for block in blocks
        ],
        # The logits in the dtype, in fp32, their softmax and two gradients; and one block's
        # attention scores, where no fused kernel spares them.
        logits=length
        * max((m.out_features for m in linears), default=0)
        * (2 * dtype.itemsize + 12)
        + 3 * scores,
        transient=max((transient(n, k) for n, k in largest), default=0),
        states=sequences * length * hidden * dtype.itemsize,
    )


def _width(block: nn.Module) -> int:
    """Elements a token that a block's linears read and write."""
    return sum(
        module.in_features + module.out_features
        for module in block.modules()
        if isinstance(module, nn.Linear)
    )
