"""What each linear of a checkpoint costs at each precision, in nats of KL divergence a token."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from anyprec.calibrate import CalibrationError
from anyprec.evaluate import evaluate
from anyprec.linear import AnyPrecisionLinear
from anyprec.model import AnyPrecisionForCausalLM

# Of the labels' draw: the same costs every time.
_SEED = 0


@dataclass(frozen=True)
class PrecisionCosts:
    """costs[linear][precision]: what the linear adds to the KL divergence at that precision.

    base_kl: the divergence with every linear at the widest precision, where costs are 0: 0 unless
    there was an original. uniform_kl: measured at each precision, on the same text.
    """

    costs: dict[str, dict[int, float]]
    base_kl: float
    uniform_kl: dict[int, float]

    def predicted_kl(self, precisions: dict[str, int]) -> float:
        return self.base_kl + sum(self.costs[name][b] for name, b in precisions.items())


def precision_costs(
    model: AnyPrecisionForCausalLM,
    tokens: np.ndarray,
    *,
    original: nn.Module | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> PrecisionCosts:
    """Estimates costs to second order from one backward pass a sequence, and scales them.

    For a small change D of the weights the KL divergence is half D^T F D, F the Fisher information.
    Of it the diagonal is taken: cost_i(b) is in proportion to the sum over the weights of linear i
    of F (W_b - W_widest)^2, the error that quantization minimised, under labels drawn from the
    model itself instead of the text's. The costs of all linears at precision b are then scaled to
    add up to the KL divergence measured with the whole model at b, which takes in what the second
    order leaves out; and no precision costs less than a wider one.

    model: all precisions of interest loaded; the widest is the reference of the estimate. tokens:
    integers [sequences, length]. original: the reference of the measured divergence, the model at
    its widest precision by default. on_step is called `measuring_steps` times.

    Deterministic on one device and number of threads. Raises CalibrationError where a linear takes
    no part in the predictions, or a gradient or a divergence is not finite.
    """
    windows = torch.from_numpy(tokens)
    errors = fisher_errors(model, windows, on_step)
    widest = model.precisions[-1]
    if original is None:
        # The model is its own reference, at the precision in force, where it diverges by nothing.
        with model.using_precision(widest):
            scores = evaluate(model, windows, model.precisions[:-1], model, on_step).results
        uniform_kl = {score.precision: score.kl for score in scores} | {widest: 0.0}
    else:
        scores = evaluate(model, windows, model.precisions, original, on_step).results
        uniform_kl = {score.precision: score.kl for score in scores}
    for b, kl in uniform_kl.items():
        if not math.isfinite(kl):
            raise CalibrationError(f"precision {b}: its KL divergence is {kl}; take another dtype")
    base_kl = uniform_kl[widest]
    names = model._precision.names
    costs: dict[str, dict[int, float]] = {name: {widest: 0.0} for name in names}
    for j, b in reversed(list(enumerate(model.precisions[:-1]))):
        total = float(errors[:, j].sum())
        scale = max(0.0, uniform_kl[b] - base_kl) / total if total > 0 else 0.0
        for name, error in zip(names, errors[:, j].tolist(), strict=True):
            costs[name][b] = max(scale * error, costs[name][model.precisions[j + 1]])
    return PrecisionCosts(costs, base_kl, uniform_kl)


def measuring_steps(model: AnyPrecisionForCausalLM, sequences: int, with_original: bool) -> int:
    """How often `precision_costs` calls on_step."""
    return sequences * (1 + len(model.precisions) + with_original)


def fisher_errors(
    model: AnyPrecisionForCausalLM, windows: Tensor, on_step: Callable[[], None] = lambda: None
) -> Tensor:
    """Half the Fisher-weighted squared error of each linear: fp64 [linears, precisions], in nats.

    The error is that against the widest precision, whose column is 0. A linear's Fisher diagonal
    is the mean over sequences of the squared gradient of their summed loss, per token: labels are
    drawn from the model's predictions, so the cross terms between tokens vanish on average.
    """
    precisions = model.precisions
    errors = torch.zeros(len(model._precision.names), len(precisions), dtype=torch.float64)
    seen = torch.zeros(len(errors), dtype=torch.bool)

    def add(linear: AnyPrecisionLinear, gradient: Tensor) -> None:
        seen[linear.index] = True
        widest = linear.dequantize(precisions[-1])
        for j, b in enumerate(precisions[:-1]):
            weighted = (gradient * (linear.dequantize(b) - widest)).flatten()
            errors[linear.index, j] += float(weighted.dot(weighted))

    generator = torch.Generator().manual_seed(_SEED)
    with torch.enable_grad(), _weight_gradients(model, add):
        for window in windows:
            ids = window.to(model.device).unsqueeze(0)
            output = model(input_ids=ids, use_cache=False, precision=precisions[-1])
            log_p = output.logits[0, :-1].float().log_softmax(-1)
            if torch.isnan(log_p).any():
                raise CalibrationError("the predictions are not numbers; take another dtype")
            drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
            (-log_p.gather(1, drawn.to(log_p.device)).sum()).backward()
            on_step()
    for name, used, row in zip(model._precision.names, seen, errors, strict=True):
        if not used:
            raise CalibrationError(f"{name}: the predictions do not depend on it")
        if not torch.isfinite(row).all():
            raise CalibrationError(f"{name}: its gradient is not finite; take another dtype")
    return errors / (2 * windows.shape[0] * (windows.shape[1] - 1))


@contextlib.contextmanager
def _weight_gradients(
    model: nn.Module, receive: Callable[[AnyPrecisionLinear, Tensor], None]
) -> Iterator[None]:
    """Hands over the gradient [N, K] in fp32 of every linear's weight as a backward pass meets it.

    Quantized weights are constants to autograd: the gradient is that of the output times the input.
    """

    def on_forward(linear: AnyPrecisionLinear, args: tuple, output: Tensor) -> None:
        x = args[0].detach().flatten(0, -2)

        def on_backward(grad: Tensor) -> None:
            receive(linear, grad.flatten(0, -2).float().T @ x.float())

        output.register_hook(on_backward)

    # Nothing in the model asks for gradients; from here on everything does.
    embeddings = model.get_input_embeddings()
    handles = [embeddings.register_forward_hook(lambda _, args, out: out.requires_grad_(True))]
    handles += [
        module.register_forward_hook(on_forward)
        for module in model.modules()
        if isinstance(module, AnyPrecisionLinear)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
