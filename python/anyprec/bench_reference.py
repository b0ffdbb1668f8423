"""A Hugging Face model's decode step as one CUDA graph: the yardstick of `anyprec bench`."""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, StaticCache

from anyprec.bench import Case, Speed, synchronize

_WARM_STEPS = 3


def reference_model(
    config: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A model of a config.json's shapes with random weights, made on the device."""
    fields = {k: v for k, v in config.items() if k not in ("quantization_config", "model_type")}
    made = AutoConfig.for_model(config["model_type"], **fields)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(made, dtype=dtype, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


@torch.no_grad()
def reference_speed(model: PreTrainedModel, case: Case, bandwidth: float) -> Speed:
    """Prompts in one pass, then steps over a static cache; on a GPU the step is one CUDA graph."""
    device = model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    ids = torch.arange(case.batch * case.context, device=device).reshape(case.batch, -1)
    ids = ids % case.token_range
    cache = StaticCache(config=model.config, max_cache_len=case.context + case.new_tokens + 16)
    # Versions of transformers differ in the argument's name.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    arguments = {name: cache, "use_cache": True}
    synchronize(device)
    begin = time.perf_counter()
    model(input_ids=ids, logits_to_keep=1, **arguments)
    synchronize(device)
    prefill = time.perf_counter() - begin

    # Every step is that of one position, so that a captured one can be repeated.
    token = torch.ones(case.batch, 1, dtype=torch.long, device=device)
    place = torch.full((case.batch, 1), case.context, device=device)

    def step() -> Tensor:
        return model(input_ids=token, position_ids=place, **arguments).logits[:, -1].argmax(-1)

    run = _captured(step) if device.type == "cuda" else step
    times = []
    for _ in range(case.new_tokens):
        begin = time.perf_counter()
        run().cpu()
        times.append(time.perf_counter() - begin)
    embedding = model.get_input_embeddings().weight
    weights = {t.data_ptr(): t.nbytes for t in model.parameters()}
    if model.get_output_embeddings().weight is not embedding:
        weights.pop(embedding.data_ptr())
    text = model.config.get_text_config()
    heads = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token_bytes = 2 * text.num_hidden_layers * text.num_key_value_heads * heads
    held = case.batch * case.context * token_bytes * embedding.element_size()
    size = sum(weights.values()) + held
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    name = f"HF, {str(model.dtype).removeprefix('torch.')}"
    return Speed.of(name, case, prefill, times, size, bandwidth, peak)


def _captured(step: Any) -> Any:
    """Replays one step; its result is written over by the next one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    gc.collect()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
