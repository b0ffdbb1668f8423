"""A computation on a GPU as one CUDA graph, where launching its kernels takes longer than they."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from anyprec.blocks import Blocks


class CaptureError(RuntimeError):
    """A computation that cannot be captured, in one line."""


class Recording:
    """One computation on fixed buffers, captured once and replayed.

    It is first run as it is inside `beside`, on the stream that will capture it, so that whatever
    is made once is there. blocks: attached; they get the masks of that run (Blocks.captured).
    """

    def __init__(self, device: torch.device, blocks: Blocks) -> None:
        self._device, self._blocks = device, blocks
        self._stream = torch.cuda.Stream(device)
        self._graph = torch.cuda.CUDAGraph()

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """What is launched inside runs on the stream that captures, in its turn."""
        caller = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(caller)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            caller.wait_stream(self._stream)

    def capture(
        self, compute: Callable[[], Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        """Computes nothing; returns the tensor that every `replay` writes `compute`'s result to.

        generator: whose numbers `compute` draws; each replay draws the next ones. Raises
        CaptureError where an operation cannot be captured, OutOfMemoryError.
        """
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        if generator is not None:
            self._graph.register_generator_state(generator)
        try:
            with self._blocks.captured(), torch.cuda.graph(self._graph, stream=self._stream):
                result = compute()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CaptureError(str(error).splitlines()[0]) from error
        return result

    def replay(self) -> None:
        self._graph.replay()


class Replayed:
    """A function that leaves its results in place, called with many tensors of one shape.

    function(value, generator): generator is what it draws its numbers from. The first call is the
    function's own. Then it is captured, and later calls are replays; where it cannot be captured,
    they are its own as well.
    """

    def __init__(
        self,
        function: Callable[[Tensor, torch.Generator], Tensor],
        device: torch.device,
        blocks: Blocks,
        generator: torch.Generator,
    ) -> None:
        self._function, self._generator = function, generator
        self._recording: Recording | None = Recording(device, blocks)
        self._given: Tensor | None = None
        self._returned: Tensor | None = None

    def __call__(self, value: Tensor) -> Tensor:
        """What the function returns: a tensor that the next call may overwrite."""
        if self._recording is None:
            return self._function(value, self._generator)
        if self._given is None:
            self._given = value.clone()
            with self._recording.beside():
                return self._function(self._given, self._generator)
        if self._returned is None and not self._captured():
            return self._function(value, self._generator)
        self._given.copy_(value)
        self._recording.replay()
        return self._returned

    def _captured(self) -> bool:
        state = self._generator.get_state()
        try:
            self._returned = self._recording.capture(
                lambda: self._function(self._given, self._generator), self._generator
            )
        except (CaptureError, torch.OutOfMemoryError):
            self._recording = None
            # The one that was to be captured is of no use any more.
            self._generator = torch.Generator(self._generator.device)
            self._generator.set_state(state)
        return self._recording is not None
