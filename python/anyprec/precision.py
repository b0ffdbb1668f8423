"""Which precision each linear layer runs at: the request, its resolution and its scope.

A request is an int (every linear) or a mapping from glob patterns of module names to ints (the
first pattern that matches a linear decides). Three scopes, the innermost wins:

1. one call: `model(..., precision=3)`, `model.generate(..., precision=3)`;
2. a `with model.using_precision(3):` block, seen only by the thread or asyncio task that is inside
   it (a context variable), restored however the block is left;
3. the model's default, set by `set_precision`, seen by every thread.
"""

import contextlib
import contextvars
import threading
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch

from anyprec._core import PrecisionError

PrecisionRequest = int | Mapping[str, int]

# Assignments kept per model, so that a request is matched against patterns only once.
_CACHED = 256

# A message lists this many patterns at most.
_SHOWN = 20


class PrecisionController:
    """The precisions of a model's linears, shared by all of them.

    An assignment, what a request resolves to, is a tuple of one precision for each linear, in the
    order of `names`.
    """

    def __init__(self, names: Sequence[str], precisions: Sequence[int]) -> None:
        """names: the quantized linears; precisions: the loaded ones (at least one)."""
        self.names = tuple(names)
        self.precisions = tuple(sorted(precisions))
        self._indices = {name: index for index, name in enumerate(self.names)}
        self._resolved: dict[object, tuple[int, ...]] = {}
        self._default: PrecisionRequest = self.precisions[-1]
        self._scoped: contextvars.ContextVar[PrecisionRequest | None] = contextvars.ContextVar(
            "anyprec_precision", default=None
        )
        # The assignment of the forward pass that this thread is inside, if any. torch.compile
        # guards on a thread-local attribute, and re-specialises when it changes; it cannot trace
        # reading a context variable.
        self.running = threading.local()

    def resolve(self, request: PrecisionRequest) -> tuple[int, ...]:
        """The precision of each linear under `request`.

        Raises PrecisionError where a precision is not loaded, a linear matches no pattern, or a
        pattern matches no linear; TypeError where the request is not an int or a mapping to ints.
        """
        # Types are part of the key: True and 4.0 equal ints, but are no precisions.
        if isinstance(request, Mapping):
            key = tuple((pattern, type(p), p) for pattern, p in request.items())
        else:
            key = (type(request), request)
        try:
            if key in self._resolved:
                return self._resolved[key]
        except TypeError:  # not hashable, so not an int
            return self._resolve(request)
        assignment = self._resolve(request)
        if len(self._resolved) >= _CACHED:
            self._resolved.clear()
        self._resolved[key] = assignment
        return assignment

    def _resolve(self, request: PrecisionRequest) -> tuple[int, ...]:
        if not isinstance(request, Mapping):
            self._check_loaded(request)
            return (request,) * len(self.names)
        assignment: list[int | None] = [None] * len(self.names)
        for pattern, precision in request.items():
            self._check_loaded(precision, pattern)
            matches = self._matches(pattern)
            if not matches:
                raise PrecisionError(
                    f"precision pattern {pattern!r} matches none of the model's {len(self.names)} "
                    f"quantized linears (the first is {self.names[0]!r})"
                )
            for index in matches:
                if assignment[index] is None:
                    assignment[index] = precision
        if None in assignment:
            patterns = list(request)
            shown = str(patterns) if len(patterns) <= _SHOWN else f"{len(patterns)} of them"
            raise PrecisionError(
                f"no precision pattern matches {self.names[assignment.index(None)]!r} (patterns: "
                f'{shown}); add a last pattern "*" for all other linears'
            )
        return tuple(assignment)

    def _matches(self, pattern: str) -> list[int]:
        # A map names every linear: no pattern matching for each pair of them.
        if pattern in self._indices:
            return [self._indices[pattern]]
        return [index for index, name in enumerate(self.names) if fnmatchcase(name, pattern)]

    def _check_loaded(self, precision: object, pattern: str | None = None) -> None:
        check_type(precision, pattern)
        where = _where(pattern)
        if precision not in self.precisions:
            loaded = ", ".join(map(str, self.precisions))
            raise PrecisionError(
                f"precision {precision}{where} is not loaded; loaded: {loaded} (load others with "
                "from_quantized(..., precisions=[...]))"
            )

    @property
    def default(self) -> PrecisionRequest:
        return self._default

    @default.setter
    def default(self, request: PrecisionRequest) -> None:
        self.resolve(request)
        self._default = _frozen(request)

    @property
    def request(self) -> PrecisionRequest:
        """The request in force here and now: the block's, or else the default."""
        scoped = self._scoped.get()
        return self._default if scoped is None else scoped

    @contextlib.contextmanager
    def using(self, request: PrecisionRequest) -> Iterator[None]:
        """Puts `request` in force for this thread or task until the block is left."""
        self.resolve(request)
        token = self._scoped.set(_frozen(request))
        try:
            yield
        finally:
            self._scoped.reset(token)

    # Called around a forward pass that torch.compile may trace: neither is traced itself.
    @torch.compiler.disable
    def begin_forward(self, request: PrecisionRequest | None) -> tuple:
        """Fixes the assignment of a forward pass on this thread; None: the one in force.

        Returns what end_forward takes back.
        """
        assignment = self.resolve(self.request if request is None else request)
        token = None if request is None else self._scoped.set(_frozen(request))
        outer = getattr(self.running, "assignment", None)
        self.running.assignment = assignment
        return outer, token

    @torch.compiler.disable
    def end_forward(self, before: tuple) -> None:
        """Restores what was before begin_forward."""
        self.running.assignment, token = before
        if token is not None:
            self._scoped.reset(token)

    def precision_of(self, index: int) -> int:
        """The precision that linear `index` runs at here and now."""
        assignment = getattr(self.running, "assignment", None)
        if assignment is None:
            assignment = self.resolve(self.request)
        return assignment[index]

    def __deepcopy__(self, memo: dict) -> "PrecisionController":
        copy = PrecisionController(self.names, self.precisions)
        copy._default = self._default
        memo[id(self)] = copy
        return copy

    def __reduce__(self) -> tuple:
        return _restore, (self.names, self.precisions, self._default)


def check_type(precision: object, pattern: str | None = None) -> None:
    """Raises TypeError unless it is an int. pattern: whose precision it is in a mapping."""
    if not isinstance(precision, int) or isinstance(precision, bool):
        raise TypeError(
            f"precision{_where(pattern)} is {precision!r} ({type(precision).__name__}); an int or "
            "a mapping from glob patterns to ints is wanted"
        )


def _where(pattern: str | None) -> str:
    return "" if pattern is None else f" for pattern {pattern!r}"


def _frozen(request: PrecisionRequest) -> PrecisionRequest:
    """A copy that later changes to the caller's mapping do not reach."""
    return dict(request) if isinstance(request, Mapping) else request


def _restore(
    names: Sequence[str], precisions: Sequence[int], default: PrecisionRequest
) -> PrecisionController:
    controller = PrecisionController(names, precisions)
    controller.default = default
    return controller
