"""Sensitivities: how much the loss minds an error in each weight (diagonal empirical Fisher)."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# The loss is scaled before the backward pass so that small gradients survive fp16 and bf16. The
# factor stays in the sensitivities: the quantizer uses only their ratios.
LOSS_SCALE = 1000.0


class CalibrationError(ValueError):
    """The gradients cannot be used: not finite, or missing."""


def sensitivities(
    model: nn.Module,
    names: Sequence[str],
    tokens: np.ndarray,
    *,
    on_sequence: Callable[[int, float], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Sums the squared per-sequence gradients of the loss for chosen linear layers.

    For each sequence t the loss L_t is the mean over its positions of the next-token cross-entropy
    (fp32), times LOSS_SCALE; the sensitivity of a weight is sum_t (dL_t / dw)^2, the diagonal
    empirical Fisher of SqueezeLLM (arXiv 2306.07629) and Any-Precision LLM (arXiv 2402.10517). A
    weight that the forward pass uses several times has the gradient of all its uses.

    model: any causal LM that returns `.logits`, on the device and in the dtype to compute in; it is
    put in eval mode, and its parameters' requires_grad flags are restored. names: modules whose
    `.weight` counts. tokens: integers [sequences, length]. on_sequence(index, loss) is called after
    each backward pass, with the unscaled loss.

    Returns fp32 [out_features, in_features] per name, on the weight's device; names that share one
    weight share one tensor. Deterministic on one device and number of threads.
    Raises CalibrationError when a sensitivity is not finite or a weight took no part in the loss.
    """
    weights = {name: model.get_submodule(name).weight for name in names}
    model.eval()
    try:
        sums = _accumulate(model, weights, tokens, on_sequence, strict=True)
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        # An operator of this model has no deterministic kernel; found in the first sequence.
        warnings.warn(f"calibration will not be reproducible to the bit: {error}", stacklevel=2)
        sums = _accumulate(model, weights, tokens, on_sequence, strict=False)

    for name, weight in weights.items():
        total = sums.get(id(weight))
        if total is None:
            raise CalibrationError(f"{name}.weight: the loss does not depend on it")
        if not torch.isfinite(total).all():
            raise CalibrationError(
                f"{name}.weight: its gradient in {weight.dtype} is not finite; "
                "calibrate in float32 or bfloat16 (--calibration-dtype)"
            )
    return {name: sums[id(weight)] for name, weight in weights.items()}


def _accumulate(
    model: nn.Module,
    weights: dict[str, nn.Parameter],
    tokens: np.ndarray,
    on_sequence: Callable[[int, float], None] | None,
    strict: bool,
) -> dict[int, torch.Tensor]:
    """The sums by the weight's id; a weight that never had a gradient has none."""
    sums: dict[int, torch.Tensor] = {}

    def accumulate(weight: nn.Parameter) -> None:
        # Runs as soon as this weight's gradient is whole, and frees it: at any time only one
        # layer's gradient is alive.
        gradient = weight.grad.float()
        weight.grad = None
        if id(weight) not in sums:
            sums[id(weight)] = torch.zeros_like(gradient)
        sums[id(weight)].addcmul_(gradient, gradient)

    device = next(iter(weights.values())).device
    with _only_trainable(model, weights.values()), _hooks(weights.values(), accumulate):
        for index, row in enumerate(tokens):
            ids = torch.as_tensor(np.asarray(row, dtype=np.int64), device=device)[None]
            with _deterministic(device, strict):
                logits = model(input_ids=ids, use_cache=False).logits
                loss = F.cross_entropy(logits[0, :-1].float(), ids[0, 1:])
                (loss * LOSS_SCALE).backward()
            if on_sequence is not None:
                on_sequence(index, loss.item())
    return sums


@contextlib.contextmanager
def _only_trainable(model: nn.Module, weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients for these weights only; every flag is put back afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
            weight.grad = None
        yield
    finally:
        for parameter, flag in flags:
            parameter.grad = None
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def _hooks(weights: Iterable[nn.Parameter], hook: Callable[[nn.Parameter], None]) -> Iterator[None]:
    unique = {id(weight): weight for weight in weights}
    handles = [weight.register_post_accumulate_grad_hook(hook) for weight in unique.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _deterministic(device: torch.device, strict: bool) -> Iterator[None]:
    """The same bytes from every run on one device: CUDA's fastest kernels add in any order."""
    if device.type != "cuda":
        yield
        return
    # cuBLAS reads this when its handle is made; without it torch refuses to be deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # Fills of empty tensors are for finding bugs, and cost a pass over every activation.
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill


@contextlib.contextmanager
def placed(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[nn.Module]:
    """The model on a device, its parameters in a dtype; afterwards it is as it was.

    Buffers keep their dtype (rotary frequencies are float32 in every model). Where the dtype cannot
    hold the weights exactly, a copy is placed instead, so that the weights survive.
    """
    own = next(model.parameters()).dtype
    exact = dtype == own or (dtype == torch.float32 and own in (torch.float16, torch.bfloat16))
    if not exact:
        model = copy.deepcopy(model)
    before = [(p, p.data.dtype, p.data.device) for p in model.parameters()]
    try:
        model.to(device)
        for parameter, old, _ in before:
            if old == own:
                parameter.data = parameter.data.to(dtype)
        yield model
    finally:
        if exact:
            for parameter, old, _ in before:
                parameter.data = parameter.data.to(old)
            model.to("cpu")
