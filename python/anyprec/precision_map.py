"""A precision for each quantized linear of one checkpoint, as a JSON file.

{"format": "anyprec precision map", "format_version": 1,
 "checkpoint": {"codes_sha256": "..."},      of the checkpoint that it was made for; may be absent
 "made": {"target_bits": 3.5, ...},          how it was made, for people; may be absent
 "precisions": {"model.layers.0.self_attn.q_proj": 4, ...}}   every quantized linear, by its name
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyprec._core import Checkpoint, FormatError, PrecisionError

_FORMAT = "anyprec precision map"
_VERSION = 1


@dataclass(frozen=True)
class PrecisionMap:
    """precisions: of each linear; codes_sha256: of the checkpoint it was made for, None for any."""

    precisions: Mapping[str, int]
    codes_sha256: str | None = None
    made: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        content: dict[str, Any] = {"format": _FORMAT, "format_version": _VERSION}
        if self.codes_sha256 is not None:
            content["checkpoint"] = {"codes_sha256": self.codes_sha256}
        content |= {"made": dict(self.made), "precisions": dict(self.precisions)}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")


def read_precision_map(path: str | os.PathLike[str], checkpoint: Checkpoint) -> PrecisionMap:
    """Reads a map and checks it against a checkpoint.

    Raises OSError where the file cannot be read, FormatError where it is malformed, was made for
    other codes or does not name exactly the checkpoint's linears, PrecisionError where the
    checkpoint lacks a precision.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of the encoding or of the JSON
        raise FormatError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise FormatError(f"{path}: found {_shown(content)}, wanted an object")
    _expect(path, "format", content.get("format"), _FORMAT)
    _expect(path, "format_version", content.get("format_version"), _VERSION)
    precisions = _object(path, content, "precisions")
    made = _object(path, content, "made") if "made" in content else {}
    codes_sha256 = None
    if "checkpoint" in content:
        codes_sha256 = _object(path, content, "checkpoint").get("codes_sha256")
        _expect(path, "checkpoint.codes_sha256", codes_sha256, checkpoint_identity(checkpoint))
    _check_precisions(path, precisions, checkpoint)
    return PrecisionMap(precisions, codes_sha256, made)


def checkpoint_identity(checkpoint: Checkpoint) -> str:
    """SHA-256 of the name, shape and first plane of every quantized linear.

    It tells one quantization from another, and stays what it is where a checkpoint is saved with
    fewer precisions or gets other tables.
    """
    digest = hashlib.sha256()
    for name, out_features, in_features in checkpoint.modules:
        digest.update(f"{name} {out_features} {in_features}\n".encode())
        digest.update(checkpoint.data(f"{name}.plane.0"))
    return digest.hexdigest()


def _check_precisions(
    path: str | os.PathLike[str], precisions: dict[str, Any], checkpoint: Checkpoint
) -> None:
    names = [name for name, _, _ in checkpoint.modules]
    available = checkpoint.available_precisions
    for name in sorted(precisions.keys() - set(names)):
        raise FormatError(
            f"{path}: precisions: found {name!r}, wanted only the checkpoint's {len(names)} "
            f"quantized linears (the first is {names[0]!r})"
        )
    for name in names:
        if name not in precisions:
            raise FormatError(f"{path}: precisions: {name!r} is missing, wanted every linear")
        found = precisions[name]
        if not isinstance(found, int) or isinstance(found, bool):
            raise FormatError(f"{path}: precisions.{name}: found {_shown(found)}, wanted an int")
        if found not in available:
            raise PrecisionError(
                f"{path}: precisions.{name}: found {found}, wanted one of the checkpoint's "
                f"precisions {', '.join(map(str, available))}"
            )


def _object(path: str | os.PathLike[str], content: dict[str, Any], entry: str) -> dict[str, Any]:
    found = content.get(entry)
    if not isinstance(found, dict):
        raise FormatError(f"{path}: {entry}: found {_shown(found)}, wanted an object")
    return found


def _expect(path: str | os.PathLike[str], entry: str, found: Any, wanted: Any) -> None:
    if type(found) is not type(wanted) or found != wanted:
        raise FormatError(f"{path}: {entry}: found {_shown(found)}, wanted {_shown(wanted)}")


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
