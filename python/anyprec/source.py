"""Loading the model to quantize: a Hugging Face folder or hub name, or a GGUF file."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

_FLOAT_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class SourceError(ValueError):
    """A model that cannot be loaded, or cannot be quantized as it is."""


@dataclass
class Source:
    """A causal LM in its original precision."""

    model: nn.Module  # on the CPU, in eval mode; on the meta device when only described
    tokenizer: Any  # None when a live model came without one
    name: str  # without any folder
    dtype: torch.dtype  # the model's own dtype: what its unquantized tensors are stored in

    @property
    def config(self) -> Any:
        return self.model.config

    def config_dict(self) -> dict[str, Any]:
        """config.json as the model itself would save it, without where it was loaded from."""
        config = json.loads(self.config.to_json_string(use_diff=True))
        for key in ("_name_or_path", "_model_name_or_path", "quantization_config"):
            config.pop(key, None)
        config["architectures"] = [type(self.model).__name__]
        config["dtype"] = dtype_name(self.dtype)
        return config

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state dict; of tensors that the model ties, only the source, as Hugging Face does."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or {})
        state = self.model.state_dict(keep_vars=True)
        kept: dict[str, torch.Tensor] = {}
        owners = {id(tensor) for name, tensor in state.items() if name not in tied}
        for name, tensor in state.items():
            if name in tied and id(tensor) in owners:
                continue
            owners.add(id(tensor))
            kept[name] = tensor.detach()
        return kept

    def stored(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor as the checkpoint stores it: weights of the model's main dtype in `dtype`."""
        main = next(self.model.parameters()).dtype
        return tensor.to(self.dtype) if tensor.dtype == main else tensor

    def sha256(self) -> str:
        """SHA-256 over the names, dtypes, shapes and SHA-256 of the bytes of every tensor."""
        tensors = sorted(self.tensors().items())

        def line(named: tuple[str, torch.Tensor]) -> str:
            name, tensor = named
            digest = hashlib.sha256(tensor_bytes(tensor)).hexdigest()
            return f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest}\n"

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            lines = "".join(pool.map(line, tensors))
        return hashlib.sha256(lines.encode()).hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a CPU tensor, row-major; not copied when it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def dtype_name(dtype: torch.dtype) -> str:
    """ "float16" for torch.float16."""
    return str(dtype).removeprefix("torch.")


def parse_dtype(name: str) -> torch.dtype | None:
    """A torch dtype by name; None for "auto"."""
    if name == "auto":
        return None
    if name not in _FLOAT_DTYPES:
        raise SourceError(f"dtype {name!r}: wanted auto, {', '.join(_FLOAT_DTYPES)}")
    return _FLOAT_DTYPES[name]


def load_source(path: str | Path, dtype: str = "auto") -> Source:
    """Loads a causal LM and its tokenizer onto the CPU.

    path: a folder or hub name, or a .gguf file, whose weights are dequantized to float32. dtype:
    what the unquantized tensors are to be stored in; "auto" is the checkpoint's own dtype, and
    float16 for GGUF. The weights in memory keep the checkpoint's precision either way.

    Raises SourceError when there is no such model, or when it is quantized already.
    """
    return _load(path, dtype, weights=True)


def describe_source(path: str | Path, dtype: str = "auto") -> Source:
    """Like load_source, but on the meta device: names, shapes and config, no weights."""
    return _load(path, dtype, weights=False)


def source_of(model: nn.Module, tokenizer: Any = None, dtype: str = "auto") -> Source:
    """A Source of a live model, which is not changed; it must be on the CPU."""
    _refuse_quantized(getattr(model, "config", None), type(model).__name__)
    parameter = next(model.parameters())
    if parameter.device.type != "cpu":
        raise SourceError(f"{type(model).__name__} is on {parameter.device}, wanted it on the CPU")
    name = Path(getattr(model.config, "_name_or_path", "") or type(model).__name__).name
    return Source(model.eval(), tokenizer, name, parse_dtype(dtype) or parameter.dtype)


def _load(path: str | Path, dtype: str, weights: bool) -> Source:
    wanted = parse_dtype(dtype)
    try:
        if str(path).endswith(".gguf"):
            return _load_gguf(Path(path), wanted, weights)
        return _load_huggingface(str(path), wanted, weights)
    except OSError as error:
        raise SourceError(f"{path}: not a model that can be loaded: {error}") from error


def _load_huggingface(path: str, wanted: torch.dtype | None, weights: bool) -> Source:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(path)
    _refuse_quantized(config, path)
    if weights:
        model = AutoModelForCausalLM.from_pretrained(path, config=config, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(path)
        own = model.dtype
    else:
        model, tokenizer = _on_meta(config), None
        own = getattr(config.get_text_config(), "dtype", None) or torch.float32
    return Source(model.eval(), tokenizer, Path(path).resolve().name, wanted or own)


def _load_gguf(path: Path, wanted: torch.dtype | None, weights: bool) -> Source:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(path.parent),
        "gguf_file": path.name,
    }
    try:
        if not weights:
            config = _plain(AutoConfig.from_pretrained(**where))
            return Source(_on_meta(config), None, path.name, wanted or torch.float16)
        with _parsed_once():
            tokenizer = AutoTokenizer.from_pretrained(**where)
            loaded = AutoModelForCausalLM.from_pretrained(
                **where, dtype=torch.float32, **_dequantize_gguf()
            )
    except (ImportError, ValueError) as error:
        raise SourceError(f"{path}: transformers cannot read it: {error}") from error
    # transformers takes a model from GGUF for a quantized one (no .half(), no save_pretrained),
    # although its weights are plain by now: a fresh model of the same config takes them over.
    state = loaded.state_dict()
    model = _without_initialization(_plain(loaded.config))
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    generation = getattr(loaded, "generation_config", None)
    if generation is not None:
        model.generation_config = generation
    return Source(model.eval(), tokenizer, path.name, wanted or torch.float16)


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Inside, a GGUF file's header is parsed once, and the names of its tensors are listed once.

    transformers does the former for tokenizer, config and weights each, and the latter for every
    module of the model: most of the time that loading a small model takes. Raises ImportError
    where the gguf package is missing.
    """
    import gguf

    cached = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in cached.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in cached.items():
            setattr(gguf, name, function)


def _dequantize_gguf() -> dict[str, Any]:
    """Asks for plain weights where transformers can also keep GGUF blocks packed (from 5.23)."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _plain(config: Any) -> Any:
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    return config


def _without_initialization(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _on_meta(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).eval()


def _refuse_quantized(config: Any, name: str) -> None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return
    if not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    method = quantization.get("quant_method", "an unknown method")
    raise SourceError(f"{name}: already quantized ({method}); give the original model")
