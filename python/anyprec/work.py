"""The work directory of a quantization: results of single steps, trusted by content alone."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from anyprec.source import tensor_bytes


class WorkError(RuntimeError):
    """The work directory cannot be used."""


@dataclass(frozen=True)
class Piece:
    """The result of one step."""

    tensors: dict[str, torch.Tensor]
    info: dict[str, Any]  # JSON
    sha256: str  # over tensors and info


def key_of(**determinants: Any) -> str:
    """SHA-256 of everything that determines a step's result (JSON values)."""
    return hashlib.sha256(json.dumps(determinants, sort_keys=True).encode()).hexdigest()


def content_hash(tensors: Mapping[str, torch.Tensor], info: Mapping[str, Any]) -> str:
    """SHA-256 over info and every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(info, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


class WorkDirectory:
    """Pieces of a run on disk, one safetensors file each.

    A piece counts as done when its file is whole, its bytes have the SHA-256 that the file states,
    and it was made under the same key, kind and name; whatever else is found in its place is
    replaced. One process at a time holds the directory. A context manager: leaving it releases the
    directory but keeps the pieces, `remove` deletes them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> WorkDirectory:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / "lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise WorkError(f"{self.path}: another run is working in it") from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def load(self, kind: str, name: str, key: str) -> Piece | None:
        """The piece, or None when it is missing, damaged or made under another key."""
        try:
            with safe_open(self._file(kind, name), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != key_of(key=key, kind=kind, name=name):
                    return None
                tensors = {tensor: file.get_tensor(tensor) for tensor in file.keys()}  # noqa: SIM118
            info = json.loads(metadata["info"])
            stated = metadata["sha256"]
        except (SafetensorError, OSError, KeyError, ValueError):
            return None
        return Piece(tensors, info, stated) if content_hash(tensors, info) == stated else None

    def store(
        self, kind: str, name: str, key: str, tensors: dict[str, torch.Tensor], info: dict[str, Any]
    ) -> Piece:
        """Writes a piece under a temporary name, syncs it and renames it into place."""
        piece = Piece(tensors, info, content_hash(tensors, info))
        path = self._file(kind, name)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        metadata = {
            "key": key_of(key=key, kind=kind, name=name),
            "sha256": piece.sha256,
            "info": json.dumps(info, sort_keys=True),
        }
        save_file(tensors, temporary, metadata=metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return piece

    def remove(self) -> None:
        """Deletes the directory and every piece in it."""
        shutil.rmtree(self.path)

    def _file(self, kind: str, name: str) -> Path:
        return self.path / kind / f"{name}.safetensors"
