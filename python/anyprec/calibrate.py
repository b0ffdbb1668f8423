"""Sums over calibration text: how much the loss minds an error in each weight.

Two kinds: the diagonal Fisher information (how sensitive the loss is to each single weight), and
guided Hessians (which errors in a row of weights cancel or add up).
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyprec.blocks import Blocks
from anyprec.calibration_plan import Plan
from anyprec.determinism import deterministic
from anyprec.hidden_states import HiddenStates
from anyprec.placement import on_device
from anyprec.recording import Replayed
from anyprec.segments import SegmentedModel, blocks_of, outside_modules
from anyprec.training import frozen, matmul_precision
from anyprec.tying import untied

# The loss is scaled before the backward pass so that small gradients survive fp16 and bf16. The
# factor stays in the sums: the quantizer uses only their ratios.
LOSS_SCALE = 1000.0


class CalibrationError(ValueError):
    """The gradients cannot be used: not finite, or missing."""


class Borders(Protocol):
    """Keeps the gradients at a border between segments, for a run that is interrupted."""

    def load(self, block: int) -> Tensor | None:
        """Those that were saved last, where it was for the border before `block`."""

    def save(self, block: int, gradients: Tensor) -> None:
        """gradients: [sequences, ...], of the loss by what `block` gets."""


@dataclass(frozen=True)
class Sums:
    """One linear's sums over all sequences, on the device that computed them.

    sensitivities: fp32 [N, K], sum over sequences t of (dL_t / dw)^2: the diagonal empirical Fisher
    of SqueezeLLM (arXiv 2306.07629) and Any-Precision LLM (arXiv 2402.10517).
    hessian: fp32 [K, K], symmetric, sum over positions of s x x^T, with x the input there and s the
    mean over output channels of (dL / dy)^2: the guided Hessian of GuidedQuant (arXiv 2505.07004)
    with one group of channels. None where it was not asked for.
    """

    sensitivities: Tensor
    hessian: Tensor | None = None


def sensitivities(
    model: nn.Module,
    names: Sequence[str],
    tokens: np.ndarray,
    *,
    on_sequence: Callable[[int, float], None] | None = None,
) -> dict[str, Tensor]:
    """The sensitivities of `calibrate`, in one pass, on the model's own device and in its dtype.

    Returns fp32 [out_features, in_features] per name; names that share one weight share one tensor.
    """
    found: dict[str, Tensor] = {}
    parameter = next(model.parameters())
    calibrate(
        model,
        names,
        tokens,
        lambda name, sums: found.update({name: sums.sensitivities}),
        device=parameter.device,
        dtype=parameter.dtype,
        on_sequence=on_sequence,
    )
    return found


def calibrate(
    model: nn.Module,
    names: Sequence[str],
    tokens: np.ndarray,
    on_sums: Callable[[str, Sums], None],
    *,
    device: torch.device,
    dtype: torch.dtype,
    hessians: bool = False,
    labels: str = "text",
    plan: Plan | None = None,
    scratch: Path | None = None,
    borders: Borders | None = None,
    on_sequence: Callable[[int, float], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> None:
    """Sums squared gradients, and guided Hessians, of the loss for chosen linear layers.

    For each sequence t the loss L_t is the mean over its positions of the next-token cross-entropy
    (fp32), times LOSS_SCALE. With labels "model" (recipes.LABELS) the next tokens are drawn from
    the model's own predictions instead: sums are then of the Fisher information itself, the second
    derivative of the KL divergence from the model, where the text's tokens give the empirical one.
    A weight that the forward pass uses several times has the gradient of all its uses. The model is
    run as `plan` says (`calibration_plan.make_plan`; None: in one pass): in segments from the last
    to the first, where every segment but the last first runs forward to leave its hidden states,
    and then forward and backward from the gradient that the segment behind it left. The sums are
    those of one pass.

    model: any causal LM that returns `.logits`; it is put in eval mode, otherwise it is as before
    when this is done. names: modules whose `.weight` counts; that of an output head which is tied
    to the embedding counts as the head's alone. tokens: integers [sequences, length].
    on_sums(name, sums) is called as soon as a segment's sums are whole, which are dropped
    afterwards. device, dtype: to compute on and in. scratch: a folder for hidden states, where the
    plan keeps them on disk. borders: where a segment's end is noted, and where the pass goes on if
    nothing is wanted of the segments behind it. on_sequence(index, loss) is called after each
    sequence's loss, which is unscaled, on_step() after each sequence in each segment and direction
    (`steps` says how many).

    On a GPU a single pass goes by a CUDA graph from the second sequence on, where the model can be
    captured. Deterministic on one device and number of threads. Raises CalibrationError when a sum
    is not finite or a weight took no part in the loss, SegmentError when the model cannot be run in
    segments.
    """
    model.eval()
    with untied(model, names):
        run = _Calibration(
            model, names, tokens, on_sums, device, dtype, hessians, labels, plan, scratch
        )
        run.on_sequence = on_sequence or run.on_sequence
        run.on_step = on_step or run.on_step
        run.borders = borders
        try:
            run.calibrate(strict=True)
        except RuntimeError as error:
            if "deterministic" not in str(error):
                raise
            # An operator of this model has no deterministic kernel; found in the first sequence.
            warnings.warn(f"calibration will not be reproducible to the bit: {error}", stacklevel=2)
            run.calibrate(strict=False)


def steps(plan: Plan, sequences: int) -> int:
    """How often `calibrate` calls on_step."""
    return sequences * (2 * len(plan.segments) - 1)


class _Calibration:
    """One call of `calibrate`."""

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        tokens: np.ndarray,
        on_sums: Callable[[str, Sums], None],
        device: torch.device,
        dtype: torch.dtype,
        hessians: bool,
        labels: str,
        plan: Plan | None,
        scratch: Path | None,
    ) -> None:
        self.model, self.names, self.tokens = model, list(names), tokens
        self.on_sums, self.device, self.dtype = on_sums, device, dtype
        self.hessians, self.labels, self.scratch = hessians, labels, scratch
        self.own = next(model.parameters()).dtype
        self.stem, blocks = blocks_of(model)
        self.segments = plan.segments if plan else ((0, len(blocks)),)
        self.resident = plan.resident if plan else True
        self.states_on = plan.states if plan else "device"
        self.runner = SegmentedModel(model, blocks)
        self.on_sequence: Callable[[int, float], None] = lambda index, loss: None
        self.on_step: Callable[[], None] = lambda: None
        self.borders: Borders | None = None

    def calibrate(self, strict: bool) -> None:
        self.numbers = torch.Generator(self.device).manual_seed(0)  # of labels that are drawn
        states: dict[int, HiddenStates] = {}
        always = list(self.model.modules()) if self.resident else self._outside()
        try:
            with on_device(always, self.device, self.dtype, self.own), matmul_precision("highest"):
                before = self._before_blocks()
                wanted = [self._names_of(index, before) for index in range(len(self.segments))]
                end = self._resumed(wanted, states)
                for index in range(end - 1):
                    states[index + 1] = self._new_states(index + 1)
                    self._forward(index, states, strict)
                for index in reversed(range(end)):
                    if any(wanted[: index + 1]):
                        self._backward(index, wanted[index], states, strict)
                        if index and self.borders is not None:
                            self.borders.save(self.segments[index][0], states[index].all)
        finally:
            for state in states.values():
                state.close()

    def _resumed(self, wanted: list[list[str]], states: dict[int, HiddenStates]) -> int:
        """How many segments are to be done; the gradient that the last starts from is put in place,
        where it was kept."""
        count = len(self.segments)
        for index in range(1, count) if self.borders is not None else ():
            gradients = None
            if not any(wanted[index:]):
                gradients = self.borders.load(self.segments[index][0])
            if gradients is not None and len(gradients) == len(self.tokens):
                states[index] = self._new_states(index)
                for t, gradient in enumerate(gradients):
                    states[index][t] = gradient
                for _ in range((2 * (count - index)) * len(self.tokens)):
                    self.on_step()
                return index
        return count

    def _forward(self, index: int, states: dict[int, HiddenStates], strict: bool) -> None:
        """Leaves what the next segment gets."""
        first, last = self.segments[index]
        with self._present(index), _only_trainable(self.model, ()), torch.no_grad():
            for t in range(len(self.tokens)):
                hidden = states[index][t].to(self.device) if index else None
                with deterministic(self.device, strict):
                    states[index + 1][t] = self.runner.run(self._ids(t), first, last, hidden)
                self.on_step()

    def _backward(
        self, index: int, names: list[str], states: dict[int, HiddenStates], strict: bool
    ) -> None:
        """The sums of one segment; leaves the gradient for the one before in its states."""
        weights = {name: self.model.get_submodule(name).weight for name in names}
        sums = _Accumulator(self.hessians)
        with (
            self._present(index),
            _only_trainable(self.model, weights.values()),
            sums.observing(self.model, weights),
        ):
            if len(self.segments) == 1 and self.device.type == "cuda":
                self._one_pass(strict)
            else:
                for t in range(len(self.tokens)):
                    with deterministic(self.device, strict):
                        self._sequence(index, t, states)
                    self.on_step()
            if index + 1 in states:
                states.pop(index + 1).close()
        for position, name in enumerate(names):
            later = names[position + 1 :]
            shared = any(weights[other] is weights[name] for other in later)
            self.on_sums(name, sums.taken(name, weights[name], drop=not shared))

    def _sequence(self, index: int, t: int, states: dict[int, HiddenStates]) -> None:
        """Adds one sequence's part to the sums of a segment."""
        first, last = self.segments[index]
        hidden = None
        if index:
            hidden = states[index][t].to(self.device, copy=True).requires_grad_()
        output = self.runner.run(self._ids(t), first, last, hidden)
        if index == len(self.segments) - 1:
            loss = self._backward_from_loss(self._ids(t), output, self.numbers)
            self.runner.check_chain()
            self.on_sequence(t, loss.item())
        else:
            output.backward(states[index + 1][t].to(self.device))
        if hidden is not None:
            states[index][t] = hidden.grad

    def _one_pass(self, strict: bool) -> None:
        """All sequences through the one segment that there is, on a GPU."""

        def gradients(ids: Tensor, numbers: torch.Generator) -> Tensor:
            logits = self.runner.run(ids, *self.segments[0], None)
            return self._backward_from_loss(ids, logits, numbers)

        masks = Blocks(self.model, self.names)
        replayed = Replayed(gradients, self.device, masks, self.numbers)
        with masks.attached():
            for t in range(len(self.tokens)):
                with deterministic(self.device, strict):
                    loss = replayed(self._ids(t))
                self.on_sequence(t, loss.item())
                self.on_step()

    def _backward_from_loss(self, ids: Tensor, logits: Tensor, numbers: torch.Generator) -> Tensor:
        """Returns the loss, unscaled, detached."""
        logits = logits[0, :-1].float()
        wanted = ids[0, 1:] if self.labels == "text" else drawn(logits.detach(), numbers)
        loss = F.cross_entropy(logits, wanted)
        (loss * LOSS_SCALE).backward()
        return loss.detach()

    def _ids(self, t: int) -> Tensor:
        row = np.asarray(self.tokens[t], dtype=np.int64)
        return torch.as_tensor(row, device=self.device)[None]

    def _outside(self) -> list[nn.Module]:
        return outside_modules(self.model, self.runner.blocks)

    def _present(self, index: int) -> contextlib.AbstractContextManager[None]:
        """The segment's blocks on the device."""
        if self.resident:
            return contextlib.nullcontext()
        first, last = self.segments[index]
        modules = [m for block in self.runner.blocks[first:last] for m in block.modules()]
        return on_device(modules, self.device, self.dtype, self.own)

    def _new_states(self, index: int) -> HiddenStates:
        device = self.device if self.states_on == "device" else torch.device("cpu")
        file = None
        if self.states_on == "disk":
            if self.scratch is None:
                raise CalibrationError("the plan keeps hidden states on disk: pass scratch=")
            file = self.scratch / f"hidden-states-{index}"
        return HiddenStates(len(self.tokens), device, file)

    def _before_blocks(self) -> set[str]:
        """Of the linears outside the blocks, those that run before the first block."""
        others = [name for name in self.names if self._block_of(name) is None]
        if len(self.segments) == 1 or not others:
            return set()
        called: set[str] = set()
        handles = [
            self.model.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: called.add(name)
            )
            for name in others
        ]
        try:
            with torch.no_grad():
                self.runner.run(self._ids(0), 0, 0, None)
        finally:
            for handle in handles:
                handle.remove()
        return called

    def _block_of(self, name: str) -> int | None:
        rest = name.removeprefix(f"{self.stem}.") if self.stem else name
        number = rest.split(".")[0]
        return int(number) if rest != name and number.isdigit() else None

    def _names_of(self, index: int, before: set[str]) -> list[str]:
        if len(self.segments) == 1:
            return self.names
        first, last = self.segments[index]
        outside = -1 if index == 0 else len(self.runner.blocks)
        chosen = []
        for name in self.names:
            block = self._block_of(name)
            if block is None:
                block = -1 if name in before else len(self.runner.blocks)
            if first <= block < last or (block == outside and index in (0, len(self.segments) - 1)):
                chosen.append(name)
        return chosen


def drawn(logits: Tensor, numbers: torch.Generator) -> Tensor:
    """A token for each row of logits [rows, V], by its probability there.

    Of exponential variates with these probabilities for their rates, the least one is that of a
    token with just the token's probability.
    """
    waits = torch.empty_like(logits).exponential_(generator=numbers)
    return (logits - waits.log_()).argmax(1)


class _Accumulator:
    """Sums of a segment's linears, by their weights."""

    def __init__(self, hessians: bool) -> None:
        self._hessians_wanted = hessians
        self._fisher: dict[int, Tensor] = {}
        self._hessians: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def observing(self, model: nn.Module, weights: dict[str, nn.Parameter]) -> Iterator[None]:
        unique = {id(weight): weight for weight in weights.values()}
        handles = [w.register_post_accumulate_grad_hook(self._add_fisher) for w in unique.values()]
        if self._hessians_wanted:
            handles += [
                model.get_submodule(name).register_forward_hook(self._watch) for name in weights
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def taken(self, name: str, weight: nn.Parameter, drop: bool) -> Sums:
        """A linear's sums, checked; not kept here any longer where they are dropped."""
        fisher = self._fisher.get(id(weight))
        if fisher is None:
            raise CalibrationError(f"{name}.weight: the loss does not depend on it")
        hessian = self._hessians.get(id(weight))
        if self._hessians_wanted and hessian is None:
            raise CalibrationError(
                f"{name}: its weight is used, but the layer is never called, so that its inputs "
                "are not known"
            )
        if not all(torch.isfinite(total).all() for total in (fisher, hessian) if total is not None):
            raise CalibrationError(
                f"{name}.weight: its gradient in {weight.dtype} is not finite; "
                "calibrate in float32 or bfloat16 (--calibration-dtype)"
            )
        if drop:
            self._fisher.pop(id(weight))
            self._hessians.pop(id(weight), None)
        return Sums(fisher, None if hessian is None else (hessian + hessian.T).mul_(0.5))

    def _add_fisher(self, weight: nn.Parameter) -> None:
        # Runs as soon as this weight's gradient is whole, and frees it: at any time only one
        # layer's gradient is alive.
        gradient = weight.grad
        weight.grad = None
        if id(weight) not in self._fisher:
            self._fisher[id(weight)] = torch.zeros_like(gradient, dtype=torch.float32)
        # Squared in fp32, whatever its dtype, without a copy in fp32.
        self._fisher[id(weight)].addcmul_(gradient, gradient)

    def _watch(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        if output.requires_grad:
            x = args[0].detach()
            output.register_hook(lambda gradient: self._add_hessian(module.weight, x, gradient))

    def _add_hessian(self, weight: nn.Parameter, x: Tensor, gradient: Tensor) -> None:
        n, k = weight.shape
        scale = gradient.detach().reshape(-1, n).float().square().mean(1).sqrt()
        x = x.reshape(-1, k).float() * scale[:, None]
        if id(weight) not in self._hessians:
            self._hessians[id(weight)] = x.new_zeros(k, k)
        _add_square(self._hessians[id(weight)], x)


def _add_square(total: Tensor, x: Tensor) -> None:
    """Adds to total [K, K] what, symmetric, is x^T x; x: fp32 [n, K].

    On a GPU by tensor cores, x as the sum of two of bf16, with an error of 2^-16 in each term:
    h^T h + h^T l + l^T h, of which h^T (h + 2 l) is as much as all where the sum's transpose is
    added in the end.
    """
    if not x.is_cuda:
        total.addmm_(x.T, x)
        return
    high = x.bfloat16()
    low = (x - high).bfloat16()
    left, right = torch.cat([high, high]), torch.cat([high, 2 * low])
    torch.addmm(total, left.T, right, out_dtype=torch.float32, out=total)


@contextlib.contextmanager
def _only_trainable(model: nn.Module, weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients for these weights only; none is left, and every flag is put back afterwards."""
    with frozen(model):
        for weight in weights:
            weight.requires_grad_(True)
            weight.grad = None
        try:
            yield
        finally:
            for parameter in model.parameters():
                parameter.grad = None


@contextlib.contextmanager
def placed(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[nn.Module]:
    """The model on a device, its parameters in a dtype; afterwards it is as it was.

    Buffers keep their dtype (rotary frequencies are float32 in every model). Where the dtype cannot
    hold the weights exactly, a copy is placed instead, so that the weights survive.
    """
    own = next(model.parameters()).dtype
    exact = dtype == own or (dtype == torch.float32 and own in (torch.float16, torch.bfloat16))
    if not exact:
        model = copy.deepcopy(model)
    before = [(p, p.data.dtype, p.data.device) for p in model.parameters()]
    try:
        model.to(device)
        for parameter, old, _ in before:
            if old == own:
                parameter.data = parameter.data.to(dtype)
        yield model
    finally:
        if exact:
            for parameter, old, _ in before:
                parameter.data = parameter.data.to(old)
            model.to("cpu")
