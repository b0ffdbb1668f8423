"""From an open checkpoint to a filled Hugging Face model.

The model is made with its parameters on the meta device, its quantized linears are replaced, and
everything is filled tensor by tensor from the mapped files: nothing is ever held twice, and no
quantized weight ever exists as a dense matrix.
"""

import contextlib
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from anyprec._core import Checkpoint, FormatError
from anyprec.dtypes import DTYPES
from anyprec.linear import AnyPrecisionLinear
from anyprec.precision import PrecisionController

# A message that names tensors names this many at most.
_NAMED = 5


def architecture_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The transformers class that config.json's `architectures` names, a causal LM."""
    for name in config.architectures or []:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    try:
        return AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        raise FormatError(
            f"config.json: architectures {config.architectures}: none is a class of transformers "
            f"{transformers.__version__}, and model_type {config.model_type!r} has no causal LM"
        ) from None


def fill(
    hf_class: type[PreTrainedModel],
    config: PretrainedConfig,
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    **model_kwargs: Any,
) -> tuple[PreTrainedModel, PrecisionController]:
    """Makes a model of `hf_class` and fills it. dtype: of everything that is not quantized."""
    with _parameters_on_meta():
        model = hf_class._from_config(config, dtype=dtype, **model_kwargs)
    controller = PrecisionController(
        [name for name, _, _ in checkpoint.modules], checkpoint.precisions
    )
    dense = _check_names(model, checkpoint)
    for index, (name, out_features, in_features) in enumerate(checkpoint.modules):
        check_linear(model, name, out_features, in_features)
        model.set_submodule(
            name, quantized_linear(checkpoint, name, in_features, controller, index, device)
        )
    # Whatever is filled below; a quantized linear's bias is a parameter like any other.
    for name in _biases(checkpoint):
        linear = model.get_submodule(name.removesuffix(".bias"))
        linear.bias = nn.Parameter(
            torch.empty(linear.out_features, dtype=dtype, device="meta"), requires_grad=False
        )
    plan = _dtype_plan(model, dtype)
    state = model.state_dict(keep_vars=True)
    for name in sorted(dense):
        _fill_tensor(model, name, state[name], checkpoint, device, plan)
    missing = _expected_names(model) - dense
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    _settle(model, device)
    return model, controller


def read_tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    """A tensor of the checkpoint as a read-only view of the mapped file."""
    with warnings.catch_warnings():
        # torch has no read-only tensors and says so; nothing here writes through the view.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        data = torch.from_numpy(checkpoint.data(name))
    dtype = DTYPES.get(checkpoint.dtype(name))
    if dtype is None:
        raise FormatError(
            f"{name}: dtype {checkpoint.dtype(name)}, wanted one of {', '.join(DTYPES)}"
        )
    return data.view(dtype).view(checkpoint.shape(name))


def quantized_linear(
    checkpoint: Checkpoint,
    name: str,
    in_features: int,
    controller: PrecisionController,
    index: int,
    device: torch.device,
) -> AnyPrecisionLinear:
    """One linear of the checkpoint, without its bias."""
    precisions = checkpoint.precisions
    planes = [read_tensor(checkpoint, f"{name}.plane.{i}") for i in range(max(precisions))]
    luts = {b: read_tensor(checkpoint, f"{name}.lut.{b}") for b in precisions}
    alphas = {
        b: read_tensor(checkpoint, f"{name}.alpha.{b}")
        for b in precisions
        if f"{name}.alpha.{b}" in checkpoint
    }
    codebook = checkpoint.codebook
    return AnyPrecisionLinear(
        torch.stack(planes).to(device),
        {b: lut.to(device, copy=True) for b, lut in luts.items()},
        {b: alpha.to(device, copy=True) for b, alpha in alphas.items()},
        in_features=in_features,
        cell_groups=codebook["cell_groups"],
        group_size=codebook["group_size"],
        controller=controller,
        index=index,
    )


def check_linear(model: PreTrainedModel, name: str, out_features: int, in_features: int) -> None:
    """Raises FormatError unless the model has such a linear layer."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise FormatError(
            f"config.json lists the quantized linear {name}, which {type(model).__name__} lacks"
        ) from None
    if not isinstance(module, nn.Linear):
        raise FormatError(
            f"config.json lists the quantized linear {name}, which is a {type(module).__name__} "
            f"in {type(model).__name__}"
        )
    found, wanted = (out_features, in_features), (module.out_features, module.in_features)
    if found != wanted:
        raise FormatError(
            f"{name}: config.json says out_features x in_features {found[0]} x {found[1]}, "
            f"{type(model).__name__} has {wanted[0]} x {wanted[1]}"
        )


def quantized_tensor_names(checkpoint: Checkpoint) -> set[str]:
    """The open planes, look-up tables and alphas."""
    names = set()
    for name, _, _ in checkpoint.modules:
        names |= {f"{name}.plane.{i}" for i in range(max(checkpoint.available_precisions))}
        for b in checkpoint.available_precisions:
            names |= {f"{name}.lut.{b}", f"{name}.alpha.{b}"}
    return names & set(checkpoint.tensor_names())


def _biases(checkpoint: Checkpoint) -> set[str]:
    return {f"{name}.bias" for name, _, _ in checkpoint.modules} & set(checkpoint.tensor_names())


def _expected_names(model: PreTrainedModel) -> set[str]:
    """Parameters and persistent buffers that are not quantized."""
    quantized = {
        f"{name}.{buffer}"
        for name, module in model.named_modules()
        if isinstance(module, AnyPrecisionLinear)
        for buffer in module._buffers
    }
    return set(model.state_dict()) - quantized


def _check_names(model: PreTrainedModel, checkpoint: Checkpoint) -> set[str]:
    """Compares the model's tensors with the checkpoint's dense ones; returns those to fill."""
    weights = {f"{name}.weight" for name, _, _ in checkpoint.modules}
    expected = _expected_names(model) - weights
    found = set(checkpoint.tensor_names()) - quantized_tensor_names(checkpoint)
    unexpected = {
        name
        for name in found - expected
        # Buffers that older versions of transformers saved and newer ones compute.
        if not _matches_any(name, model._keys_to_ignore_on_load_unexpected)
        and not name.endswith(("rotary_emb.inv_freq", "position_ids"))
    }
    if unexpected:
        raise FormatError(
            f"the checkpoint holds tensors that {type(model).__name__} has no place for: "
            f"{_some(unexpected)}"
        )
    absent = expected - found
    tied: dict[str, set[str]] = {}
    for target, source in model.all_tied_weights_keys.items():
        tied.setdefault(source, {source}).add(target)
    for group in tied.values():
        if group & found:  # one of them is enough
            absent -= group
    absent = {n for n in absent if not _matches_any(n, model._keys_to_ignore_on_load_missing)}
    if absent:
        raise FormatError(
            f"the checkpoint lacks tensors that {type(model).__name__} needs: {_some(absent)}"
        )
    return found & expected


def _matches_any(name: str, patterns: Any) -> bool:
    return any(re.search(pattern, name) for pattern in patterns or ())


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _dtype_plan(model: PreTrainedModel, dtype: torch.dtype) -> dict[re.Pattern[str], torch.dtype]:
    """The modules that the architecture keeps in fp32 whatever the model's dtype."""
    return {
        re.compile(re.escape(pattern).replace(r"\*", ".*")): kept
        for pattern, kept in model._get_dtype_plan(dtype).items()
    }


def _fill_tensor(
    model: PreTrainedModel,
    name: str,
    placeholder: Tensor,
    checkpoint: Checkpoint,
    device: torch.device,
    plan: dict[re.Pattern[str], torch.dtype],
) -> None:
    stored = read_tensor(checkpoint, name)
    if stored.shape != placeholder.shape:
        raise FormatError(
            f"{name}: found shape {list(stored.shape)}, {type(model).__name__} has "
            f"{list(placeholder.shape)}"
        )
    # The placeholder's dtype: the model's, or what the architecture fixed for this one.
    dtype = next((kept for p, kept in plan.items() if p.search(name)), placeholder.dtype)
    if not stored.dtype.is_floating_point:
        dtype = stored.dtype
    tensor = stored.to(device=device, dtype=dtype, copy=True)
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def _settle(model: PreTrainedModel, device: torch.device) -> None:
    """Moves computed buffers to the device, and makes sure that nothing was left unfilled."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device != device and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
    unfilled = {n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta}
    if unfilled:
        raise FormatError(
            f"the checkpoint lacks tensors that {type(model).__name__} needs: {_some(unfilled)}"
        )
    model.requires_grad_(False)
    model.eval()


_patching = threading.Lock()


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made by this thread get meta parameters, while buffers are computed for real.

    Rotary frequencies, embedding scales and masks are buffers that no checkpoint holds; on the meta
    device they would be lost.
    """
    thread = threading.get_ident()
    original = nn.Module.register_parameter

    def register_parameter(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and threading.get_ident() == thread and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=False)
        original(module, name, param)

    with _patching:
        nn.Module.register_parameter = register_parameter
        try:
            yield
        finally:
            nn.Module.register_parameter = original
