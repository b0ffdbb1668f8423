"""A Hugging Face causal LM whose linears serve every loaded precision."""

import contextlib
import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

import anyprec.hf_quantizer  # noqa: F401  (registers it with transformers)
from anyprec import files, native_generation
from anyprec._core import Checkpoint, CheckpointWriter, FormatError, PrecisionError
from anyprec.dtypes import DTYPE_NAMES
from anyprec.linear import AnyPrecisionLinear
from anyprec.loading import architecture_class, fill
from anyprec.precision import PrecisionController, PrecisionRequest, check_type
from anyprec.precision_map import read_precision_map


class AnyPrecisionForCausalLM:
    """Base of every any-precision model; made by `from_quantized`.

    A model is an instance of a subclass of this class and of the transformers class that the
    checkpoint's config.json names, so that it is that model in every respect. What is added is the
    precision: `generate(..., precision=4)`, `model(input_ids, precision=3)`, `using_precision`,
    `set_precision`. A precision is an int, or a mapping from glob patterns of linears' names to
    ints, of which the first that matches decides. See anyprec/precision.py for the scopes.
    """

    _precision: PrecisionController
    _checkpoint_config: dict[str, Any]
    _directory: Path

    def __new__(cls, *args: Any, **kwargs: Any) -> "AnyPrecisionForCausalLM":
        if cls is AnyPrecisionForCausalLM:
            raise TypeError(
                "AnyPrecisionForCausalLM is made by AnyPrecisionForCausalLM.from_quantized(path)"
            )
        return super().__new__(cls)

    @classmethod
    def from_quantized(
        cls,
        path: str | os.PathLike[str],
        precisions: Iterable[int] | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        precision_map: str | os.PathLike[str] | Mapping[str, int] | None = None,
        **model_kwargs: Any,
    ) -> "AnyPrecisionForCausalLM":
        """Loads a checkpoint directory.

        precisions: those to load, all by default; a subset reads and holds only its own planes and
        codebooks. The default precision is the highest one.
        precision_map: a file that `anyprec allocate` wrote (anyprec/precision_map.py), or a mapping
        as `set_precision` takes it. It becomes the default precision, and what it needs is all that
        is loaded unless `precisions` is given.
        dtype: of activations and of everything that is not quantized; the checkpoint's by default.
        model_kwargs: for the transformers class, for instance attn_implementation="eager".

        Raises PrecisionError when a precision is not in the checkpoint, FormatError when the
        checkpoint is malformed or does not fit its architecture, or the map does not fit the
        checkpoint, OSError when it cannot be read.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory}: no such checkpoint directory")
        if isinstance(precision_map, (str, os.PathLike)):
            precision_map = read_precision_map(precision_map, Checkpoint(directory)).precisions
        if precisions is None and precision_map is not None:
            for pattern, precision in precision_map.items():
                check_type(precision, pattern)
            precisions = precision_map.values()
        wanted = [] if precisions is None else sorted(set(precisions))
        if precisions is not None and not wanted:
            raise PrecisionError("precisions is empty; name at least one, or None for all")
        checkpoint = Checkpoint(directory, wanted)
        config = AutoConfig.from_pretrained(directory)
        hf_class = architecture_class(config)
        model, controller = fill(
            any_precision_class(hf_class),
            config,
            checkpoint,
            device=_indexed(torch.device(device)),
            dtype=_resolve_dtype(dtype, config, checkpoint),
            **model_kwargs,
        )
        if precision_map is not None:
            controller.default = precision_map
        model.name_or_path = str(directory)
        adopt(model, controller, checkpoint, directory)
        if (directory / files.GENERATION).is_file():
            model.generation_config = GenerationConfig.from_pretrained(directory)
        return model

    @property
    def precisions(self) -> list[int]:
        """The loaded precisions, rising."""
        return list(self._precision.precisions)

    @property
    def precision(self) -> PrecisionRequest:
        """The precision in force here and now: an int, or the mapping that was set."""
        request = self._precision.request
        return dict(request) if isinstance(request, dict) else request

    def set_precision(self, precision: PrecisionRequest) -> None:
        """Sets the default, for every thread. Raises PrecisionError as `using_precision` does."""
        self._precision.default = precision

    @contextlib.contextmanager
    def using_precision(self, precision: PrecisionRequest) -> Iterator[None]:
        """Puts a precision in force inside the block, for this thread or asyncio task only.

        Blocks nest; the outer precision returns however the block is left. Raises PrecisionError
        where a precision is not loaded, a linear matches no pattern or a pattern no linear.
        """
        with self._precision.using(precision):
            yield

    # torch.compile traces the model below this frame: the look-up of the precision stays outside,
    # and what it resolves to is guarded on, thread by thread.
    @torch._dynamo.disable(recursive=False)
    def __call__(self, *args: Any, precision: PrecisionRequest | None = None, **kwargs: Any) -> Any:
        before = self._precision.begin_forward(precision)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self._precision.end_forward(before)

    @torch.no_grad()
    def generate(
        self,
        *args: Any,
        precision: PrecisionRequest | None = None,
        prefill_precision: PrecisionRequest | None = None,
        engine: str = "auto",
        **kwargs: Any,
    ) -> Any:
        """Hugging Face's generate, at `precision` (the one in force by default).

        prefill_precision: at which the prompt is read, `precision` by default; the native engine's.
        engine: "native", the decode engine (docs/engine.md), which raises NotImplementedError with
        the reason where it does not serve this model or these arguments; "huggingface"; or "auto":
        native where it serves them, else Hugging Face's path, which is said once. Sampling
        draws other numbers on the two paths; torch.manual_seed decides both.
        """
        if engine not in ("auto", "native", "huggingface"):
            raise ValueError(f"engine {engine!r}: auto, native or huggingface is wanted")
        request = self._precision.request if precision is None else precision
        decode = self._precision.resolve(request)
        prefill = (
            decode if prefill_precision is None else self._precision.resolve(prefill_precision)
        )
        if engine != "huggingface":
            try:
                native_generation.check_model(self)
                call = native_generation.read_call(self, args, kwargs)
                resident = native_generation.resident_engine(self, call)
            except NotImplementedError as reason:
                if engine == "native" or prefill != decode:
                    raise
                native_generation.tell_once(str(reason))
            else:
                return native_generation.generate(self, resident, call, decode, prefill)
        elif prefill != decode:
            raise NotImplementedError("Hugging Face's path reads and writes at one precision")
        with self._precision.using(request):
            return super().generate(*args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        shard_bytes: int | None = None,
    ) -> None:
        """Writes a checkpoint of the loaded precisions; reloading it gives the same logits.

        Tokenizer and other small files are copied from the directory that was loaded, where it
        still exists. Raises PrecisionError unless the loaded precisions are consecutive, as the
        format demands; ValueError when the directory exists, is not empty, and overwrite is false.
        """
        _check_consecutive(self.precisions)
        directory = Path(save_directory)
        if directory.is_dir() and not any(directory.iterdir()):
            overwrite = True
        limits = {} if shard_bytes is None else {"shard_bytes": shard_bytes}
        writer = CheckpointWriter(
            directory,
            json.dumps(self._saved_config(), indent=2, ensure_ascii=False) + "\n",
            json.dumps(_manifest_options(self._directory)),
            overwrite=overwrite,
            **limits,
        )
        try:
            for name, tensor in self._saved_tensors():
                flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                writer.add(name, DTYPE_NAMES[tensor.dtype], list(tensor.shape), flat.numpy())
            for name, data in self._saved_files():
                writer.add_file(name, data)
            writer.finish()
        except BaseException:
            writer.abort()
            raise

    def _saved_config(self) -> dict[str, Any]:
        config = json.loads(json.dumps(self._checkpoint_config))
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = str(self.dtype).removeprefix("torch.")
        quantization = config["quantization_config"]
        quantization["precisions"] = self.precisions
        # The format wants the seed inside the precisions that are there.
        seed = quantization["seed_precision"]
        quantization["seed_precision"] = min(max(seed, self.precisions[0]), self.precisions[-1])
        return config

    def _saved_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor under its name in the checkpoint; of tied ones the first."""
        own = set()
        for name, module in self.named_modules():
            if not isinstance(module, AnyPrecisionLinear):
                continue
            own |= {f"{name}.{buffer}" for buffer in module._buffers}
            for i, plane in enumerate(module.canonical_planes()):
                yield f"{name}.plane.{i}", plane
            for b in module.precisions:
                for kind in ("lut", "alpha"):
                    tensor = getattr(module, f"{kind}_{b}")
                    if tensor is not None:
                        yield f"{name}.{kind}.{b}", tensor
        saved = set()
        tied = dict(self.all_tied_weights_keys)
        state = {n: t for n, t in self.state_dict(keep_vars=True).items() if n not in own}
        for name in sorted(state, key=lambda n: n in tied):  # sources before what is tied to them
            if id(state[name]) not in saved:
                saved.add(id(state[name]))
                yield name, state[name]

    def _saved_files(self) -> Iterator[tuple[str, bytes]]:
        if self.can_generate():
            text = self.generation_config.to_json_string(use_diff=True)
            yield files.GENERATION, text.encode()
        if not self._directory.is_dir():
            return
        for file in files.files_to_copy(self._directory):
            if file.name != files.GENERATION:
                yield file.name, file.read_bytes()

    def __reduce_ex__(self, protocol: Any) -> tuple:
        hf_class = next(c for c in type(self).__mro__ if not issubclass(c, AnyPrecisionForCausalLM))
        return _restore, (hf_class,), self.__dict__

    def _get_name(self) -> str:
        return f"AnyPrecision[{super()._get_name()}]"


@functools.cache
def any_precision_class(hf_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The subclass of AnyPrecisionForCausalLM and `hf_class`.

    It keeps the name of the latter, by which pipelines and other tools know what a model can do.
    """
    return type(
        hf_class.__name__,
        (AnyPrecisionForCausalLM, hf_class),
        {
            "__module__": __name__,
            "__qualname__": f"any_precision_class({hf_class.__name__})",
            "__doc__": hf_class.__doc__,
        },
    )


def _restore(hf_class: type[PreTrainedModel]) -> PreTrainedModel:
    """An empty model for copy and pickle, which cannot find the class by its name."""
    cls = any_precision_class(hf_class)
    return cls.__new__(cls)


def adopt(
    model: PreTrainedModel,
    controller: PrecisionController,
    checkpoint: Checkpoint,
    directory: Path,
) -> None:
    """Gives a model whose linears are quantized the class, and what it needs."""
    if not isinstance(model, AnyPrecisionForCausalLM):
        model.__class__ = any_precision_class(type(model))
    model._precision = controller
    model._checkpoint_config = checkpoint.config
    model._directory = directory.resolve()


def _indexed(device: torch.device) -> torch.device:
    """ "cuda" as the device that tensors put there report."""
    return torch.empty(0, device=device).device


def _resolve_dtype(
    dtype: str | torch.dtype | None, config: Any, checkpoint: Checkpoint
) -> torch.dtype:
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype, dtype)
    elif dtype is None or dtype == "auto":
        dtype = getattr(config.get_text_config(), "dtype", None) or config.dtype
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        if dtype is None:
            raise FormatError(
                "config.json has no dtype: pass one, dtype=torch.bfloat16 for example"
            )
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype {dtype!r}: float32, bfloat16 or float16 is wanted")
    return dtype


def _check_consecutive(precisions: list[int]) -> None:
    wanted = list(range(precisions[0], precisions[-1] + 1))
    if precisions != wanted:
        raise PrecisionError(
            f"the loaded precisions {precisions} cannot be saved: a checkpoint holds consecutive "
            f"ones; load {wanted} instead"
        )


def _manifest_options(directory: Path) -> dict[str, Any]:
    """The options that made the loaded checkpoint, from its manifest, where it is still there."""
    try:
        manifest = json.loads((directory / files.MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest.get("options", {})
