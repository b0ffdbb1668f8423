"""A precision for each linear, so that a checkpoint predicts best at a given size."""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from anyprec._core import Checkpoint, PrecisionError, __version__
from anyprec.calibrate import placed
from anyprec.datasets import BUILTIN, calibration_tokens
from anyprec.knapsack import cheapest_choice
from anyprec.model import AnyPrecisionForCausalLM
from anyprec.precision_map import PrecisionMap, checkpoint_identity
from anyprec.progress import Reporter, Silent
from anyprec.report import LinearSize, bits_per_weight, linear_sizes
from anyprec.sensitivity import PrecisionCosts, measuring_steps, precision_costs
from anyprec.source import load_source


@dataclass(frozen=True)
class Allocation:
    """A map and what is expected of it.

    bits_per_weight: what the map takes, codebooks counted; at most target_bits. predicted_kl: nats
    a token on the text. quantum_bits: the unit of the budget in which the choice is exact, in bits
    per weight. uniform: for each precision its bits per weight and its KL, measured on the text.
    """

    map: PrecisionMap
    target_bits: float
    bits_per_weight: float
    predicted_kl: float
    quantum_bits: float
    uniform: dict[int, tuple[float, float]]

    @property
    def linears_at(self) -> dict[int, int]:
        """How many linears run at each precision."""
        return dict(sorted(Counter(self.map.precisions.values()).items()))

    def to_dict(self) -> dict[str, Any]:
        return {
            "target_bits": self.target_bits,
            "bits_per_weight": self.bits_per_weight,
            "predicted_kl": self.predicted_kl,
            "quantum_bits": self.quantum_bits,
            "linears": {str(b): count for b, count in self.linears_at.items()},
            "uniform": [
                {"precision": b, "bits_per_weight": bits, "kl": kl}
                for b, (bits, kl) in self.uniform.items()
            ],
            "precisions": dict(self.map.precisions),
        }


def allocate(
    directory: str | os.PathLike[str],
    targets: Sequence[float],
    *,
    dataset: str = BUILTIN,
    num_examples: int = 16,
    seq_len: int = 512,
    random_state: int | None = None,
    original: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    reporter: Reporter | None = None,
) -> list[Allocation]:
    """The best map for each target, in bits per weight with codebooks; the text is measured once.

    dataset, num_examples, seq_len, random_state: the text, as in `calibration_tokens`. original:
    the model that the checkpoint was made from, for the divergence to it; else that to the widest
    precision. Raises PrecisionError, before any work, where a target is below the size of the
    checkpoint's lowest precision.
    """
    directory = Path(directory)
    reporter = reporter or Silent()
    checkpoint = Checkpoint(directory)
    sizes = linear_sizes(checkpoint)
    for target in targets:
        _check_target(target, sizes, checkpoint)
    model = AnyPrecisionForCausalLM.from_quantized(directory, device=device, dtype=dtype)
    tokens = calibration_tokens(
        AutoTokenizer.from_pretrained(directory),
        dataset,
        num_examples=num_examples,
        seq_len=seq_len,
        random_state=random_state,
    )
    with contextlib.ExitStack() as stack:
        reference = None
        if original is not None:
            source = load_source(original).model
            reference = stack.enter_context(placed(source, model.device, model.dtype))
        total = measuring_steps(model, num_examples, reference is not None)
        step = stack.enter_context(reporter.stage("measuring sensitivities", total))
        costs = precision_costs(model, tokens.ids, original=reference, on_step=step)
    made = {
        "text": tokens.record(),
        "reference": "widest precision" if original is None else "original",
        "producer": f"anyprec {__version__}",
    }
    identity = checkpoint_identity(checkpoint)
    return [solve(sizes, costs, target, made=made, codes_sha256=identity) for target in targets]


def solve(
    sizes: Sequence[LinearSize],
    costs: PrecisionCosts,
    target: float,
    *,
    made: dict[str, Any] | None = None,
    codes_sha256: str | None = None,
) -> Allocation:
    """The map of least predicted KL whose bits per weight are at most `target`."""
    weights = sum(size.weights for size in sizes)
    precisions = sorted(sizes[0].bytes)
    choice = cheapest_choice(
        [[size.bytes[b] for b in precisions] for size in sizes],
        [[costs.costs[size.name][b] for b in precisions] for size in sizes],
        # Exact targets, a precision's own size for example, survive their rounding as floats.
        budget=math.floor(target * weights / 8 + 1e-6),
    )
    if choice is None:
        raise PrecisionError(f"target_bits {target}: no map is that small")
    chosen = {
        size.name: precisions[option] for size, option in zip(sizes, choice.options, strict=True)
    }
    uniform = {
        b: (bits_per_weight(sizes, dict.fromkeys(chosen, b)), costs.uniform_kl[b])
        for b in precisions
    }
    bits = bits_per_weight(sizes, chosen)
    predicted_kl = costs.predicted_kl(chosen)
    made = {
        "target_bits": target,
        "bits_per_weight": bits,
        "predicted_kl": predicted_kl,
        **(made or {}),
    }
    return Allocation(
        PrecisionMap(chosen, codes_sha256, made),
        target,
        bits,
        predicted_kl,
        quantum_bits=8 * choice.quantum / weights,
        uniform=uniform,
    )


def _check_target(target: float, sizes: Sequence[LinearSize], checkpoint: Checkpoint) -> None:
    lowest = min(checkpoint.precisions)
    least = bits_per_weight(sizes, {size.name: lowest for size in sizes})
    if not least <= target < math.inf:
        raise PrecisionError(
            f"target_bits {target}: wanted a number of at least {least:.4g}, what precision "
            f"{lowest}, the checkpoint's lowest, takes with its codebooks"
        )
