"""A causal LM run in segments: some of its decoder blocks at a time, with the model's own code.

The model's forward pass is run as it is, whatever the architecture does around its blocks and hands
to them. Only the blocks' own forward is replaced for the time: those before the segment hand
through what they get, the first of the segment gets the stored hidden state instead, and after the
last the pass is left. So embeddings, masks and rotary tables are the model's, computed again for
every segment, and nothing of them has to be known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anyprec.modules import ModuleSelectionError, decoder_blocks
from anyprec.patching import replaced_forward


class SegmentError(ValueError):
    """A model whose blocks do not form a plain chain, so that it cannot be run in segments."""


class _Left(Exception):
    """Leaves a forward pass behind the last block of a segment."""


def blocks_of(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The decoder's blocks in the order of their calls, and the name of their list.

    Empty where the model has none, or where two of them share a parameter: a gradient would then
    not be whole before both have been run.
    """
    try:
        stem, blocks = decoder_blocks(model)
    except ModuleSelectionError:
        return "", []
    parameters = [id(p) for block in blocks for p in block.parameters()]
    outside = {id(p) for p in _outside(model, blocks)}
    if len(set(parameters)) < len(parameters) or outside & set(parameters):
        return "", []
    return stem, list(blocks)


def outside_modules(model: nn.Module, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """Modules that are neither a block nor inside one."""
    inside = {id(module) for block in blocks for module in block.modules()}
    return [module for module in model.modules() if id(module) not in inside]


def _outside(model: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[nn.Parameter]:
    for module in outside_modules(model, blocks):
        yield from module.parameters(recurse=False)


class SegmentedModel:
    """Runs the blocks [first, last) of a model, with what comes before and after where due.

    The segment that begins at block 0 runs what comes before the blocks as part of it; the one that
    ends at the last block runs what comes after, up to the logits.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        self.model = model
        self.blocks = list(blocks)
        # What each block returns: None for a tensor, else the length of a tuple.
        self._forms: dict[int, int | None] = {}
        self._stubs: list[Tensor] = []

    def run(self, ids: Tensor, first: int, last: int, hidden: Tensor | None) -> Tensor:
        """The hidden state after block last - 1, or the logits when that is the last block.

        ids: int64 [1, length]. hidden: what block `first` gets; None where `first` is 0. Where it
        requires a gradient, a segment that something else than its hidden state flows into is
        found out. Raises SegmentError where the blocks are not called one after another, each on
        what the one before has returned and on nothing else that depends on them.
        """
        whole = first == 0 and last == len(self.blocks)
        if whole:
            return self.model(input_ids=ids, use_cache=False).logits
        chain = _Chain(self.blocks, self._forms, first, last, hidden)
        with chain.in_place():
            try:
                logits = self.model(input_ids=ids, use_cache=False).logits
            except _Left:
                return chain.output
        chain.check_ended()
        self._stubs = chain.stubs
        return logits

    def check_chain(self) -> None:
        """After a backward pass from the logits: nothing may have reached blocks left out."""
        if any(stub.grad is not None for stub in self._stubs):
            raise SegmentError(
                f"{type(self.model).__name__}: its logits depend on more than the last block"
            )
        self._stubs = []


class _Chain:
    """One pass through one segment."""

    def __init__(
        self,
        blocks: list[nn.Module],
        forms: dict[int, int | None],
        first: int,
        last: int,
        hidden: Tensor | None,
    ) -> None:
        self.blocks, self.forms = blocks, forms
        self.first, self.last, self.hidden = first, last, hidden
        self.stubs: list[Tensor] = []
        self.output = torch.empty(0)
        self._next = 0
        self._returned: Tensor | None = None

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for index, block in enumerate(self.blocks):
                stack.enter_context(replaced_forward(block, self._replaced(index, block.forward)))
            yield

    def check_ended(self) -> None:
        if self._next != len(self.blocks):
            raise SegmentError(
                f"{self._name(self._next)} was not called: the model cannot be run in segments"
            )

    def _replaced(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def stub_or_run(*args: Any, **kwargs: Any) -> Any:
            if index == self.last:  # an empty segment: what comes before the blocks has run
                raise _Left
            given, put = _hidden_argument(self._name(index), args, kwargs)
            self._check(index, given, args, kwargs)
            self._next = index + 1
            if index < self.first:
                return self._stub(index, given)
            if index == self.first and self.hidden is not None:
                args, kwargs = put(self.hidden)
            result = forward(*args, **kwargs)
            self._returned = self._hidden_of(index, result)
            if index == self.last - 1 and self.last < len(self.blocks):
                self.output = self._returned
                raise _Left
            return result

        return stub_or_run

    def _check(self, index: int, given: Tensor, args: tuple, kwargs: dict[str, Any]) -> None:
        if index != self._next:
            raise SegmentError(
                f"{self._name(index)} was called where block {self._next} was wanted: the model "
                "cannot be run in segments"
            )
        if self._returned is not None and given is not self._returned:
            raise SegmentError(
                f"{self._name(index)} does not get what the block before it returned: the model "
                "cannot be run in segments"
            )
        for value in _tensors((*args, *kwargs.values())):
            if value is not given and value.requires_grad and self.first > 0:
                raise SegmentError(
                    f"{self._name(index)} gets more than the hidden state from the blocks before "
                    "it: the model cannot be run in segments"
                )

    def _stub(self, index: int, given: Tensor) -> Any:
        # A leaf of its own: whatever is computed from it shows by requiring a gradient.
        out = given.detach().requires_grad_(torch.is_grad_enabled())
        self.stubs.append(out)
        self._returned = out
        length = self.forms[index]
        return out if length is None else (out, *(None,) * (length - 1))

    def _hidden_of(self, index: int, result: Any) -> Tensor:
        if isinstance(result, Tensor):
            self.forms[index] = None
            return result
        if (
            isinstance(result, tuple)
            and isinstance(result[0], Tensor)
            and not list(_tensors(result[1:]))
        ):
            self.forms[index] = len(result)
            return result[0]
        raise SegmentError(
            f"{self._name(index)} returns more than a hidden state: the model cannot be run in "
            "segments"
        )

    def _name(self, index: int) -> str:
        return f"block {index} ({type(self.blocks[min(index, len(self.blocks) - 1)]).__name__})"


def _hidden_argument(
    name: str, args: tuple, kwargs: dict[str, Any]
) -> tuple[Tensor, Callable[[Tensor], tuple[tuple, dict[str, Any]]]]:
    """The hidden state among a block's arguments, and the arguments with another in its place."""
    if args and isinstance(args[0], Tensor):
        return args[0], lambda hidden: ((hidden, *args[1:]), kwargs)
    if isinstance(kwargs.get("hidden_states"), Tensor):
        return (
            kwargs["hidden_states"],
            lambda hidden: (args, {**kwargs, "hidden_states": hidden}),
        )
    raise SegmentError(f"{name} gets no hidden state: the model cannot be run in segments")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
