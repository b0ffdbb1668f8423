"""Loads the libtorch operators, torch.ops.anyprec.*, and makes them differentiable in x.

Schemas and shapes are documented in src/ops/schema.cpp. Quantized weights are constants: gradients
flow to the activations and the bias, so that adapters and prompts can be trained through them.
"""

from pathlib import Path

import torch

torch.ops.load_library(Path(__file__).with_name("libanyprec_torch.so"))


def _setup_context(ctx, inputs, output):
    _, planes, lut, alpha, bias, *form = inputs
    ctx.save_for_backward(planes, lut, alpha)
    ctx.form = form
    ctx.has_bias = bias is not None


def _backward(ctx, grad):
    planes, lut, alpha = ctx.saved_tensors
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        weight = torch.ops.anyprec.dequantize(planes, lut, alpha, *ctx.form, grad.dtype)
        grad_x = grad @ weight
    if ctx.has_bias and ctx.needs_input_grad[4]:
        grad_bias = grad.flatten(0, -2).sum(0)
    return grad_x, None, None, None, grad_bias, None, None, None, None


torch.library.register_autograd("anyprec::linear", _backward, setup_context=_setup_context)
