"""Text for calibration: the packaged sample, a file or folder, or a named dataset of the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BUILTIN = "builtin"

# Of a hub dataset no more text is tokenized than this many times the windows asked for.
_POOL_FACTOR = 8
# What "all" means there.
HUB_EXAMPLES = 500


class DatasetError(ValueError):
    """A dataset that cannot be read, or that holds too little text."""


@dataclass(frozen=True)
class _HubDataset:
    """Arguments of datasets.load_dataset; `joined`: the rows are lines of one text."""

    path: str
    config: str | None
    splits: dict[str, str]
    column: str
    files: dict[str, str] | None = None
    joined: str | None = None


_PTB = "hf://datasets/ptb-text-only/ptb_text_only@refs%2Fconvert%2Fparquet/penn_treebank"
_HUB = {
    "c4": _HubDataset(
        "allenai/c4",
        None,
        {"train": "train", "test": "validation"},
        "text",
        files={
            "train": "en/c4-train.00000-of-01024.json.gz",
            "validation": "en/c4-validation.00000-of-00008.json.gz",
        },
    ),
    "wikitext2": _HubDataset(
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        {"train": "train", "test": "test"},
        "text",
        joined="\n\n",
    ),
    "ptb": _HubDataset(
        "parquet",
        None,
        {"train": "train", "test": "test"},
        "sentence",
        files={"train": f"{_PTB}/train/0000.parquet", "test": f"{_PTB}/test/0000.parquet"},
        joined=" ",
    ),
    "pileval": _HubDataset(
        "mit-han-lab/pile-val-backup",
        None,
        {"train": "validation", "test": "validation"},
        "text",
    ),
}

HUB_DATASETS = tuple(_HUB)


@dataclass(frozen=True)
class Tokens:
    """Calibration sequences and where they came from."""

    ids: np.ndarray  # int64 [num_examples, seq_len]
    dataset: str  # the name without any folder
    random_state: int | None

    @property
    def sha256(self) -> str:
        """SHA-256 of the token ids as little-endian int32, row by row."""
        return hashlib.sha256(np.ascontiguousarray(self.ids, dtype="<i4").tobytes()).hexdigest()

    def record(self) -> dict[str, Any]:
        """What a checkpoint stores about its calibration text."""
        return {
            "dataset": self.dataset,
            "num_examples": int(self.ids.shape[0]),
            "seq_len": int(self.ids.shape[1]),
            "random_state": self.random_state,
            "tokens_sha256": self.sha256,
        }


def documents(dataset: str, split: str = "train") -> tuple[str, Iterator[str]]:
    """Returns a dataset's name and its documents, in order.

    dataset: "builtin" (the packaged sample), one of HUB_DATASETS (through the `datasets` package),
    or a path: a .jsonl file has one document a line under "text", any other file is one document,
    a folder is its .txt and .jsonl files in the order of their paths. split ("train" or "test")
    only matters for datasets of the hub.
    """
    if dataset == BUILTIN:
        path = Path(__file__).resolve().parent / "data" / "calibration.txt"
        return BUILTIN, _file_documents(path)
    if dataset in _HUB:
        return dataset, _hub_documents(dataset, split)
    path = Path(dataset)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".jsonl") and p.is_file())
        if not files:
            raise DatasetError(f"{dataset}: the folder holds no .txt or .jsonl file")
        return path.resolve().name, (text for file in files for text in _file_documents(file))
    if path.is_file():
        return path.name, _file_documents(path)
    raise DatasetError(
        f"{dataset!r} is neither a file, a folder nor a known dataset "
        f"({', '.join((BUILTIN, *HUB_DATASETS))})"
    )


def _file_documents(path: Path) -> Iterator[str]:
    try:
        # Line ends become "\n", whatever system wrote the file: they are not part of the text.
        with path.open(encoding="utf-8") as file:
            if path.suffix != ".jsonl":
                yield file.read()
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _jsonl_text(line, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text: {error}") from error


def _jsonl_text(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DatasetError(f'{where}: wanted an object with a string under "text"')
    return row["text"]


def _hub_documents(name: str, split: str) -> Iterator[str]:
    try:
        import datasets
    except ImportError as error:
        raise DatasetError(
            f"dataset {name!r} needs the package `datasets` (pip install 'anyprec[datasets]'); "
            f"a text file or the default, {BUILTIN!r}, needs no download"
        ) from error
    spec = _HUB[name]
    hub_split = spec.splits[split]
    files = {hub_split: spec.files[hub_split]} if spec.files else None
    try:
        rows = datasets.load_dataset(
            spec.path, spec.config, data_files=files, split=hub_split, streaming=True
        )
        texts = (row[spec.column] for row in rows)
        if spec.joined is not None:
            texts = iter([spec.joined.join(texts)])
        yield from texts
    except (OSError, RuntimeError, ValueError) as error:
        raise DatasetError(
            f"dataset {name!r} could not be read from the hub ({type(error).__name__}: {error}); "
            f"offline, pass a text file or the default, {BUILTIN!r}"
        ) from error


def calibration_tokens(
    tokenizer: Any,
    dataset: str = BUILTIN,
    *,
    num_examples: int | None = 100,
    seq_len: int = 512,
    random_state: int | None = None,
) -> Tokens:
    """Cuts a dataset into windows of seq_len tokens and picks num_examples of them.

    None for num_examples takes all that a local text has, of a hub dataset HUB_EXAMPLES.

    The documents' tokens, joined by the tokenizer's end-of-text token, are cut into windows that do
    not overlap; a tokenizer that starts its texts with a BOS token gets one at the start of every
    window. Without a random_state the first windows are taken; with one, those with the smallest
    SHA-256 of (random_state, index), in the order of the text: the same everywhere, for ever. All
    the text of a local dataset takes part; of a hub dataset its beginning, until there are eight
    windows for each one asked for.

    Raises DatasetError when the text has fewer than num_examples windows.
    """
    if dataset in _HUB and num_examples is None:
        num_examples = HUB_EXAMPLES
    if (num_examples is not None and num_examples < 1) or seq_len < 2:
        raise DatasetError(
            f"wanted at least 1 example of 2 tokens, found num_examples {num_examples}, "
            f"seq_len {seq_len}"
        )
    name, texts = documents(dataset)
    prefix = _text_prefix(tokenizer)
    window = seq_len - len(prefix)
    limit = _POOL_FACTOR * num_examples * window if dataset in _HUB else None
    stream = _token_stream(tokenizer, texts, limit)
    available = len(stream) // window
    if num_examples is None:
        num_examples = max(available, 1)
    if available < num_examples:
        raise DatasetError(
            f"{name}: {len(stream)} tokens are {available} windows of {seq_len} tokens, "
            f"wanted {num_examples}: take a longer text, or a smaller --num-examples or --seq-len"
        )
    picked = range(num_examples)
    if random_state is not None:
        by_rank = sorted(range(available), key=lambda i: _rank(random_state, i))
        picked = sorted(by_rank[:num_examples])
    rows = stream[: available * window].reshape(available, window)[list(picked)]
    starts = np.tile(np.asarray(prefix, dtype=np.int64), (num_examples, 1))
    return Tokens(np.concatenate([starts, rows], axis=1), name, random_state)


def _rank(random_state: int, index: int) -> bytes:
    return hashlib.sha256(f"{random_state}:{index}".encode()).digest()


def _text_prefix(tokenizer: Any) -> list[int]:
    """[BOS] when the tokenizer starts every text with it, else nothing."""
    bos = getattr(tokenizer, "bos_token_id", None)
    ids = tokenizer("a").input_ids
    return [bos] if bos is not None and len(ids) > 1 and ids[0] == bos else []


def _token_stream(tokenizer: Any, texts: Iterable[str], limit: int | None) -> np.ndarray:
    """The documents' tokens in one row, int64; stops once there are `limit`."""
    separator = getattr(tokenizer, "eos_token_id", None)
    pieces: list[np.ndarray] = []
    length = 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if pieces and separator is not None:
            ids = [separator, *ids]
        pieces.append(np.asarray(ids, dtype=np.int64))
        length += len(ids)
        if limit is not None and length >= limit:
            break
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)
