"""How well a model predicts a text at each precision, beside the original model.

Protocol: the whole text, its lines ending in "\\n", is tokenized at once, by the tokenizer's own
rules for one text, and cut into windows of `seq_len` tokens that do not overlap; a last, shorter
piece is left out. Each window is scored on its own: a model sees its `seq_len` tokens and is scored
on the `seq_len - 1` that follow another one, with the softmax in fp32. Nothing is put in front of a
window.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from anyprec.datasets import DatasetError, documents
from anyprec.divergence import log_probabilities
from anyprec.precision import PrecisionRequest

# Rows of logits that are made fp32 at a time: [rows, vocabulary]; on a GPU enough to fill it.
_ROWS = {"cpu": 256, "cuda": 2048}
# Tokens in a pass on a GPU: as many windows as fit, at least one; launches bound small models.
_GPU_TOKENS = 8192


@dataclass(frozen=True)
class Score:
    """A model's figures over all windows.

    precision: what it ran at: an int, or the name of a precision map; None for the original.
    perplexity: exp of the mean negative log-likelihood of a token (nats).
    stderr: its standard error: that of the mean over windows (their sample standard deviation over
    the root of their number), times the perplexity, the derivative of exp (delta method). None for
    a single window.
    kl: mean KL divergence (nats a token) of the original's distribution to this model's; kl_stderr
    likewise over windows; top1: share of tokens where both rank the same token first. None where
    there was no original.
    """

    precision: int | str | None
    perplexity: float
    stderr: float | None
    kl: float | None = None
    kl_stderr: float | None = None
    top1: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: absent figures are left out, but for stderr; those that overflowed are null."""
        names = ("perplexity", "stderr", "kl", "kl_stderr", "top1")
        values = {name: getattr(self, name) for name in names}
        kind = "precision_map" if isinstance(self.precision, str) else "precision"
        report = {} if self.precision is None else {kind: self.precision}
        for name, value in values.items():
            if value is not None or name == "stderr":
                report[name] = value if value is None or math.isfinite(value) else None
        return report


@dataclass
class _Tally:
    """Means per window of one model: fp64 [windows] each, left on the device until the end."""

    nll: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)
    top1: list[Tensor] = field(default_factory=list)

    def score(self, precision: int | str | None) -> Score:
        nll, nll_stderr = mean_and_stderr(torch.cat(self.nll).tolist())
        perplexity = math.exp(nll) if nll < 700 else math.inf
        stderr = None if nll_stderr is None else perplexity * nll_stderr
        if not self.kl:
            return Score(precision, perplexity, stderr)
        kl, kl_stderr = mean_and_stderr(torch.cat(self.kl).tolist())
        top1, _ = mean_and_stderr(torch.cat(self.top1).tolist())
        return Score(precision, perplexity, stderr, kl, kl_stderr, top1)


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error; None for fewer than two values."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def load_text(dataset: str) -> str:
    """The test split of a known dataset ("wikitext2", ...), or a file or folder, as one text.

    Lines end in "\\n" whatever the platform that wrote a file; else a text is taken as it is.
    """
    _, texts = documents(dataset, split="test")
    return "\n\n".join(texts).replace("\r\n", "\n").replace("\r", "\n")


def windows(
    tokenizer: Any, text: str, seq_len: int = 2048, max_windows: int | None = None
) -> Tensor:
    """Cuts a text into windows of tokens: int64 [windows, seq_len].

    Raises DatasetError when the text is shorter than one window.
    """
    if seq_len < 2:
        raise DatasetError(f"seq_len {seq_len}: at least 2 is wanted")
    if max_windows is not None and max_windows < 1:
        raise DatasetError(f"max_windows {max_windows}: at least 1 is wanted")
    ids = tokenizer(text, verbose=False).input_ids
    count = len(ids) // seq_len
    if count == 0:
        raise DatasetError(f"the text has {len(ids)} tokens, fewer than one window of {seq_len}")
    if max_windows is not None:
        count = min(count, max_windows)
    return torch.tensor(ids[: count * seq_len], dtype=torch.int64).view(count, seq_len)


@dataclass(frozen=True)
class Evaluation:
    results: list[Score]  # one for each precision, in the order asked for
    original: Score | None
    windows: int
    seq_len: int

    def to_dict(self) -> dict[str, Any]:
        report: dict[str, Any] = {"results": [score.to_dict() for score in self.results]}
        if self.original is not None:
            report["original"] = self.original.to_dict()
        return {**report, "windows": self.windows, "seq_len": self.seq_len}


@torch.inference_mode()
def evaluate(
    model: nn.Module | None,
    tokens: Tensor,
    precisions: Iterable[int] = (),
    original: nn.Module | None = None,
    on_step: Callable[[], None] | None = None,
    precision_maps: Mapping[str, PrecisionRequest] | None = None,
) -> Evaluation:
    """Scores a model at each precision on windows of tokens, and the original beside it.

    precision_maps: further ones, by the names that their scores get, after the others.
    tokens: int64 [windows, seq_len]. on_step is called after each window of each model. Windows go
    one by one, on a GPU as many at a time as make 8192 tokens. The original's logits of one pass
    are all that is kept of it, so memory does not grow with the text.
    """
    wanted: dict[int | str, PrecisionRequest] = {b: b for b in precisions}
    wanted |= precision_maps or {}
    reference = _Tally()
    tallies = {precision: _Tally() for precision in wanted}
    for windows in tokens.split(_windows_in_a_pass(model or original, tokens.shape[1])):
        base = None
        if original is not None:
            base = _logits(original, windows)
            _tell(reference, base, windows, None)
            _step(on_step, len(windows))
        for precision, request in wanted.items():
            logits = _logits(model, windows, precision=request)
            _tell(tallies[precision], logits, windows, base)
            _step(on_step, len(windows))
    return Evaluation(
        results=[tallies[precision].score(precision) for precision in wanted],
        original=None if original is None else reference.score(None),
        windows=tokens.shape[0],
        seq_len=tokens.shape[1],
    )


def _windows_in_a_pass(model: nn.Module | None, seq_len: int) -> int:
    on_gpu = model is not None and model.device.type == "cuda"
    return max(1, _GPU_TOKENS // seq_len) if on_gpu else 1


def _step(on_step: Callable[[], None] | None, windows: int) -> None:
    for _ in range(windows if on_step is not None else 0):
        on_step()


def _logits(model: nn.Module, windows: Tensor, **kwargs: Any) -> Tensor:
    """The logits that predict tokens 1.. of each window: [windows, seq_len - 1, vocabulary]."""
    ids = windows.to(model.device)
    return model(input_ids=ids, use_cache=False, **kwargs).logits[:, :-1]


def _tell(tally: _Tally, logits: Tensor, windows: Tensor, base: Tensor | None) -> None:
    """Adds a pass to a tally; base: the original's logits."""
    targets = windows[:, 1:].to(logits.device)
    for index, rows in enumerate(logits):
        tally.nll.append(_mean(_nll(rows, targets[index])))
        if base is not None:
            kl, same = _divergence(base[index], rows)
            tally.kl.append(kl)
            tally.top1.append(same)


def _mean(chunks: Iterable[Tensor]) -> Tensor:
    return torch.cat(list(chunks)).double().mean().view(1)


def _chunks(logits: Tensor) -> Iterator[slice]:
    rows = _ROWS.get(logits.device.type, _ROWS["cpu"])
    for begin in range(0, logits.shape[0], rows):
        yield slice(begin, min(begin + rows, logits.shape[0]))


def _nll(logits: Tensor, targets: Tensor) -> Iterator[Tensor]:
    for rows in _chunks(logits):
        yield nn.functional.cross_entropy(logits[rows].float(), targets[rows], reduction="none")


def _divergence(base: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean KL(base || logits) of a token, and the share of tokens with the same first choice."""
    kl, same = [], []
    for rows in _chunks(logits):
        p, q = log_probabilities(base[rows].to(logits.device), logits[rows])
        kl.append(nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1))
        same.append((p.argmax(-1) == q.argmax(-1)).float())
    return _mean(kl), _mean(same)
