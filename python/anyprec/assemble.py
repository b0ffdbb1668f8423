"""Writing the checkpoint of a quantized model."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyprec import _core
from anyprec.datasets import Tokens
from anyprec.dtypes import DTYPE_NAMES
from anyprec.modules import Linear, Selection
from anyprec.options import Options
from anyprec.source import Source, dtype_name, tensor_bytes
from anyprec.tying import tied_to_embedding
from anyprec.work import Piece

FORMAT_VERSION = 1
PRODUCER = f"anyprec {_core.__version__}"


@dataclass(frozen=True)
class Request:
    """A model and everything that determines the checkpoint made of it."""

    source: Source
    selection: Selection
    options: Options
    tokens: Tokens
    source_sha256: str
    device: torch.device
    calibration_dtype: torch.dtype
    distillation_tokens: Tokens | None = None  # None for a recipe without distillation

    def calibration_record(self) -> dict[str, Any]:
        return {
            **self.tokens.record(),
            "device": self.device.type,
            "dtype": dtype_name(self.calibration_dtype),
        }

    def record(self) -> dict[str, Any]:
        """For the manifest: equal requests, and only they, have equal records."""
        tokens = self.distillation_tokens
        return {
            "producer": PRODUCER,
            "source": {"name": self.source.name, "sha256": self.source_sha256},
            "dtype": dtype_name(self.source.dtype),
            "modules": {
                "from": self.selection.origin,
                "patterns": list(self.selection.patterns),
                "names": [linear.name for linear in self.selection.linears],
            },
            "calibration": self.calibration_record(),
            "precisions": list(self.options.precisions),
            "seed_precision": self.options.seed_precision,
            "group_size": self.options.group_size,
            "codebook": self.options.codebook,
            "codebook_form": list(self.options.form),
            "recipe": self.options.recipe.record(),
            "distillation_text": tokens.record() if tokens else None,
        }

    @functools.cached_property
    def base(self) -> dict[str, torch.Tensor]:
        """Every tensor that is not quantized, by name, as the checkpoint stores it."""
        tensors = base_tensors(self.source, self.selection)
        return {name: self.source.stored(tensor) for name, tensor in tensors.items()}

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """config.json: the model's own with `quantization_config`."""
        config = self.source.config_dict()
        names = [linear.name for linear in self.selection.linears]
        if tied_to_embedding(self.source.model, names):
            _untie(config)
        config["quantization_config"] = {
            "quant_method": "anyprec",
            "format_version": FORMAT_VERSION,
            "codebook": {
                "lut_bits": self.options.form[0],
                "cell_groups": self.options.form[1],
                "group_size": self.options.group_size,
            },
            "precisions": list(self.options.precisions),
            "seed_precision": self.options.seed_precision,
            "modules": [asdict(linear) for linear in self.selection.linears],
            "modules_from": self.selection.origin,
            "calibration": self.calibration_record(),
            "recipe": self.options.recipe.name,
            "producer": PRODUCER,
        }
        return config

    def prepare(self) -> None:
        """Takes from the model what the checkpoint needs of it, before calibration puts copies in
        place of its parameters and unties its head for a while."""
        _ = self.base, self.config


def _untie(config: dict[str, Any]) -> None:
    """The head is a matrix of its own now, whatever part of the config says otherwise."""
    config["tie_word_embeddings"] = False
    for part in config.values():
        if isinstance(part, dict) and part.get("tie_word_embeddings"):
            part["tie_word_embeddings"] = False


def base_tensors(source: Source, selection: Selection) -> dict[str, torch.Tensor]:
    """Every tensor that is not quantized, by name."""
    weights = {f"{linear.name}.weight" for linear in selection.linears}
    return {name: t for name, t in source.tensors().items() if name not in weights}


def write_checkpoint(
    request: Request, out: Path, pieces: Iterable[tuple[Linear, Piece]], overwrite: bool
) -> None:
    """Writes everything under a temporary name and renames it to `out`.

    pieces: for every linear "planes" uint8 [parent, N, ceil(K/8)], "lut.<b>" and, where the
    codebook has some, "alpha.<b>", as docs/format.md has them.
    """
    config_json = json.dumps(request.config, indent=2, ensure_ascii=False) + "\n"
    options_json = json.dumps(request.record(), sort_keys=True)
    writer = _core.CheckpointWriter(out, config_json, options_json, overwrite=overwrite)
    try:
        for name, tensor in request.base.items():
            data = np.asarray(tensor_bytes(tensor))
            writer.add(name, DTYPE_NAMES[tensor.dtype], list(tensor.shape), data)
        for linear, piece in pieces:
            _add_linear(writer, linear, piece, request.options.precisions)
        for file_name, content in _companions(request.source).items():
            writer.add_file(file_name, content)
        writer.finish()
    except BaseException:
        writer.abort()
        raise


def _add_linear(writer: Any, linear: Linear, piece: Piece, precisions: Iterable[int]) -> None:
    for index, plane in enumerate(piece.tensors["planes"].numpy()):
        writer.add(f"{linear.name}.plane.{index}", "U8", list(plane.shape), plane)
    for precision in precisions:
        for kind in ("lut", "alpha"):
            tensor = piece.tensors.get(f"{kind}.{precision}")
            if tensor is not None:
                name = f"{linear.name}.{kind}.{precision}"
                writer.add(name, "F16", list(tensor.shape), tensor.numpy())


def _companions(source: Source) -> dict[str, bytes]:
    """Generation config and tokenizer files, by name."""
    files: dict[str, bytes] = {}
    generation = getattr(source.model, "generation_config", None)
    if generation is not None:
        files["generation_config.json"] = generation.to_json_string().encode()
    with tempfile.TemporaryDirectory() as folder:
        source.tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                files[path.relative_to(folder).as_posix()] = path.read_bytes()
    return files
