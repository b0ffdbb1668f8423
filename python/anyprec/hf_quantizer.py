"""Makes transformers' own from_pretrained load checkpoints, once anyprec.model is imported.

All precisions are loaded; from_quantized can choose. Hugging Face fills what is not quantized, and
meets a placeholder where a quantized linear will be.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from anyprec._core import Checkpoint
from anyprec.loading import check_linear, quantized_linear
from anyprec.precision import PrecisionController

_METHOD = "anyprec"


@register_quantization_config(_METHOD)
class AnyPrecisionConfig(QuantizationConfigMixin):
    """config.json's quantization_config, as it is."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update({**fields, "quant_method": _METHOD})


class _Placeholder(nn.Module):
    """Stands for a quantized linear while Hugging Face loads its bias."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias


@register_quantizer(_METHOD)
class AnyPrecisionQuantizer(HfQuantizer):
    """Replaces the quantized linears of a model that transformers is loading."""

    requires_calibration = True  # a checkpoint is made by `anyprec quantize`, not on the fly

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        if not checkpoint_files:
            raise ValueError("an anyprec model is loaded from a checkpoint directory")
        self.directory = Path(checkpoint_files[0]).parent
        self.checkpoint = Checkpoint(self.directory)
        for name, out_features, in_features in self.checkpoint.modules:
            check_linear(model, name, out_features, in_features)
            model.set_submodule(name, _Placeholder(model.get_submodule(name)))
        model._keys_to_ignore_on_load_unexpected.add(r"\.(plane|lut|alpha)\.\d+$")
        return model

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        from anyprec.model import adopt

        names = [name for name, _, _ in self.checkpoint.modules]
        controller = PrecisionController(names, self.checkpoint.precisions)
        for index, (name, _, in_features) in enumerate(self.checkpoint.modules):
            bias = model.get_submodule(name).bias
            device = _device_of(model, name)
            linear = quantized_linear(self.checkpoint, name, in_features, controller, index, device)
            linear.bias = bias
            model.set_submodule(name, linear)
        model.requires_grad_(False)
        adopt(model, controller, self.checkpoint, self.directory)
        del self.checkpoint  # the model keeps this object, and shall not keep the mapped files
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _device_of(model: PreTrainedModel, name: str) -> torch.device:
    """Where the layer around a linear is: that of the nearest parameters in its parents."""
    while name:
        name = name.rpartition(".")[0]
        for parameter in model.get_submodule(name).parameters():
            if not parameter.is_meta:
                return parameter.device
    return model.device
