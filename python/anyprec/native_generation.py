"""Hugging Face's generate by the native engine, where model and arguments allow it."""

from __future__ import annotations

import logging
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from anyprec.linear import AnyPrecisionLinear
from anyprec.native import NativeEngine, refusal

if TYPE_CHECKING:
    from anyprec.model import AnyPrecisionForCausalLM

logger = logging.getLogger(__name__)

# An engine's cache and longest sequence are at least this many tokens, so that growing requests do
# not make a new engine each time.
_LEAST_TOKENS = 1024
# Keys of a generation config that the engine follows, or that change nothing here.
_FOLLOWED = {
    "max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p",
    "repetition_penalty", "eos_token_id", "pad_token_id", "bos_token_id", "use_cache",
    "transformers_version", "_from_model_config", "cache_implementation",
}  # fmt: skip


class NotNative(NotImplementedError):
    """A model or arguments that the native engine does not serve; the message says why."""


@dataclass(frozen=True)
class Call:
    """One call of generate, as the engine takes it."""

    input_ids: Tensor  # int64 [B, T]
    prompts: list[list[int]]  # without padding
    new_tokens: int
    stop_tokens: list[int]
    pad_token: int
    sampling: dict[str, Any]
    streamer: Any


@dataclass
class Resident:
    """A model's engine; valid while the model's tensors are those that it shares."""

    engine: NativeEngine
    key: tuple
    sequence: int
    batch: int
    lock: threading.Lock = field(default_factory=threading.Lock)


_residents: weakref.WeakKeyDictionary[Any, Resident] = weakref.WeakKeyDictionary()
_making = threading.Lock()
_told: set[str] = set()


def tell_once(reason: str) -> None:
    """Says that the Hugging Face path is taken, once for each reason."""
    if reason not in _told:
        _told.add(reason)
        logger.warning("generating with Hugging Face's path, not the native engine: %s", reason)


def check_model(model: AnyPrecisionForCausalLM) -> None:
    """Raises NotNative unless the engine computes what the model does."""
    reason = refusal(model.config.to_json_string(use_diff=False))
    if reason:
        raise NotNative(reason)
    for name in model._precision.names:
        found = type(model.get_submodule(name))
        if found is not AnyPrecisionLinear:
            raise NotNative(f"{name}: found a {found.__name__} (an adapter?)")
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            raise NotNative(f"{name or 'the model'} has a hook or a forward of its own")
    devices = {tensor.device for tensor in model.state_dict(keep_vars=True).values()}
    if len(devices) != 1:
        raise NotNative(f"its tensors are on {len(devices)} devices")


def read_call(model: AnyPrecisionForCausalLM, args: tuple, kwargs: dict[str, Any]) -> Call:
    """What generate(*args, **kwargs) asks for. Raises NotNative where the engine lacks it."""
    kwargs = dict(kwargs)
    if len(args) > 1:
        raise NotNative("positional arguments beyond the prompt")
    streamer = kwargs.pop("streamer", None)
    given_config = kwargs.pop("generation_config", None)
    # Before transformers' own default, which counts new tokens, is put in its place.
    lengths = [kwargs.get("max_length")]
    lengths += [
        getattr(each, "max_length", None) for each in (given_config, model.generation_config)
    ]
    longest = next((length for length in lengths if length is not None), None)
    config, rest = model._prepare_generation_config(given_config, **kwargs)
    given = [*args, rest.pop("inputs", None), rest.pop("input_ids", None)]
    given = [each for each in given if each is not None]
    mask = rest.pop("attention_mask", None)
    unknown = sorted(name for name, value in rest.items() if value is not None)
    if unknown:
        raise NotNative(f"argument {unknown[0]!r}")
    if len(given) != 1 or given[0].dim() != 2 or given[0].is_floating_point():
        raise NotNative("the prompt is not one tensor [B, T] of tokens")
    ids = given[0]
    _check_config(config)
    new_tokens = config.max_new_tokens
    if new_tokens is None:
        if longest is None:
            raise NotNative("neither max_new_tokens nor max_length is given")
        new_tokens = longest - ids.shape[1]
    positions = model.config.get_text_config().max_position_embeddings
    if new_tokens < 1 or ids.shape[1] + new_tokens > positions:
        raise NotNative(f"{ids.shape[1]} + {new_tokens} tokens, the model has {positions}")
    stop = config.eos_token_id
    stop = [] if stop is None else [stop] if isinstance(stop, int) else [int(s) for s in stop]
    pad = config.pad_token_id if config.pad_token_id is not None else (stop or [0])[0]
    if streamer is not None and ids.shape[0] != 1:
        raise NotNative("a streamer for more than one sequence")
    return Call(ids, _prompts(ids, mask), new_tokens, stop, pad, _sampling(config), streamer)


def generate(
    model: AnyPrecisionForCausalLM,
    resident: Resident,
    call: Call,
    decode: tuple[int, ...],
    prefill: tuple[int, ...],
) -> Tensor:
    """Runs a call: int64 [B, T + new tokens], as Hugging Face returns it.

    decode, prefill: the precision of each linear in the two phases.
    """
    precisions = {
        name: each[0]
        if len(set(each)) == 1
        else dict(zip(model._precision.names, each, strict=True))
        for name, each in (("precision", decode), ("prefill_precision", prefill))
    }
    # Of torch's generator, so that torch.manual_seed decides the text as it does elsewhere.
    seed = int(torch.randint(2**62, ()).item()) if call.sampling["temperature"] > 0 else 0
    with resident.lock:
        return _run(resident.engine, call, precisions, seed)


def _run(engine: NativeEngine, call: Call, precisions: dict[str, Any], seed: int) -> Tensor:
    if call.streamer is not None:
        call.streamer.put(call.input_ids.cpu())
    order: dict[int, list[int]] = {}
    try:
        for i, prompt in enumerate(call.prompts):
            sequence = engine.submit(
                prompt,
                max_new_tokens=call.new_tokens,
                stop_tokens=call.stop_tokens,
                seed=seed + i,
                **precisions,
                **call.sampling,
            )
            order[sequence] = []
        while not engine.idle:
            for event in engine.step():
                order[event.sequence].append(event.token)
                if call.streamer is not None:
                    call.streamer.put(torch.tensor([event.token]))
    finally:
        for sequence in order:  # those that an exception of the streamer left behind
            engine.stop(sequence)
    if call.streamer is not None:
        call.streamer.end()
    longest = max(len(tokens) for tokens in order.values())
    new = torch.full((len(order), longest), call.pad_token, dtype=torch.long)
    for row, tokens in zip(new, order.values(), strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return torch.cat([call.input_ids, new.to(call.input_ids.device)], dim=1)


def _check_config(config: GenerationConfig) -> None:
    defaults = GenerationConfig().to_dict()
    neutral = {**defaults, **GenerationConfig._get_default_generation_params()}
    for name, value in config.to_dict().items():
        usual = value is None or value is False or value in (defaults.get(name), neutral.get(name))
        if name not in _FOLLOWED and not usual:
            raise NotNative(f"generation option {name}={value!r}")
    if config.cache_implementation is not None:
        raise NotNative(f"generation option cache_implementation={config.cache_implementation!r}")
    if config.use_cache is False:
        raise NotNative("generation option use_cache=False")


def _sampling(config: GenerationConfig) -> dict[str, Any]:
    penalty = {"repetition_penalty": config.repetition_penalty or 1.0}
    if not config.do_sample:
        return {"temperature": 0.0, **penalty}
    return {
        "temperature": 1.0 if config.temperature is None else config.temperature,
        "top_k": config.top_k or 0,
        "top_p": 1.0 if config.top_p is None else config.top_p,
        "min_p": config.min_p or 0.0,
        **penalty,
    }


def _prompts(ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    if mask is None:
        return ids.tolist()
    if mask.shape != ids.shape:
        raise NotNative(f"attention_mask of shape {list(mask.shape)}")
    if not bool((mask[:, 1:] >= mask[:, :-1]).all()) or not bool(mask[:, -1].all()):
        raise NotNative("an attention_mask that is not padding on the left")
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def resident_engine(model: AnyPrecisionForCausalLM, call: Call) -> Resident:
    """The model's engine, made anew where its tensors have changed or the call needs more room.

    Raises NotImplementedError where the engine lacks something on the model's device.
    """
    state = {name: t.detach() for name, t in model.state_dict(keep_vars=True).items()}
    key = (model.dtype, *map(_identity, state.values()))
    positions = model.config.get_text_config().max_position_embeddings
    length = min(positions, _round_up(call.input_ids.shape[1] + call.new_tokens))
    batch = len(call.prompts)
    with _making:
        found = _residents.get(model)
        kept = found is not None and found.key == key
        if kept and found.sequence >= length and found.batch >= batch:
            return found
        if kept:
            length, batch = max(length, found.sequence), max(batch, found.batch)
        # The old cache goes first: there may be no room for two.
        _residents.pop(model, None)
        del found
        engine = NativeEngine.from_tensors(
            model.config.to_json_string(use_diff=False),
            [
                (name, linear.out_features, linear.in_features)
                for name in model._precision.names
                for linear in (model.get_submodule(name),)
            ],
            model._checkpoint_config["quantization_config"]["codebook"],
            state,
            device=str(next(iter(state.values())).device),
            dtype=str(model.dtype).removeprefix("torch."),
            precisions=list(model._precision.precisions),
            max_sequence_length=length,
            cache_tokens=length * batch,
            max_batch=batch,
        )
        _residents[model] = Resident(engine, key, length, batch)
        return _residents[model]


def _identity(tensor: Tensor) -> tuple:
    """Changes when a tensor is replaced or written to: the engine may hold a copy of it."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.dtype, tensor.device, version


def _round_up(tokens: int) -> int:
    return max(_LEAST_TOKENS, 1 << (tokens - 1).bit_length())
