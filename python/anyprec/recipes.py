"""Recipes: which steps make a checkpoint's codes and codebooks, as data (configs/recipes/*.json).

Every recipe calibrates and builds the tree of exact k-means and exact splits. What it adds:

- `refit`: guided Hessians are summed in calibration, and codebooks fitted to them by least squares
  (`metric`: or to something plainer);
- `descent`: codes of several precisions at once by joint nested descent, and then, bit by bit,
  those of wider ones;
- `binary`: what of that is otherwise for binary coding;
- `distillation`: at the end, codebooks of some precisions learn from the original model.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from anyprec.modules import config_directories

DEFAULT_RECIPE = "fast"

# What an error in a row of weights costs: e^T H e with the guided Hessian, with the diagonal of the
# sensitivities' sum over rows, or with the identity.
METRICS = ("guided", "fisher", "plain")
# What calibration's loss takes for the next tokens: those of the text, or ones drawn from the
# model's own predictions.
LABELS = ("text", "model")
# What codes of binary coding begin with, beside clusters (torch.ops.anyprec.binary_codes).
BINARY_STARTS = ("range", "greedy")


class RecipeError(ValueError):
    """A recipe that is not there, or that is not well-formed."""


@dataclass(frozen=True)
class Descent:
    """Joint nested descent over some precisions.

    taus: the weight of each precision's energy in the sum that is minimized, positive. rounds: of
    {one sweep over all columns, refit}. child_sweeps: over each bit beyond the widest of them.
    seeds: further seed precisions; there is a descent from the clusters of each of them too, and a
    row keeps what has the least sum.
    """

    taus: dict[int, float]
    rounds: int
    child_sweeps: int
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_by_precision("descent.taus", self.taus)
        _check_integer("descent.rounds", self.rounds, 1)
        _check_integer("descent.child_sweeps", self.child_sweeps, 0)
        if not isinstance(self.seeds, (list, tuple)):
            raise RecipeError(f"descent.seeds: found {self.seeds!r}, wanted a list of precisions")
        if not all(seed in range(2, 9) for seed in self.seeds):
            raise RecipeError(f"descent.seeds: found {self.seeds!r}, wanted precisions of 2 to 8")

    def weights(self, precisions: Sequence[int]) -> list[float]:
        """The tau of each precision, 0 for one that takes no part."""
        return [float(self.taus.get(precision, 0.0)) for precision in precisions]


@dataclass(frozen=True)
class Binary:
    """What a recipe does otherwise for binary coding.

    start: one of BINARY_STARTS, the codes that a descent begins with before any clusters. descent:
    in place of the recipe's own; None: that one.
    """

    start: str = "range"
    descent: Descent | None = None

    def __post_init__(self) -> None:
        _check_choice("binary.start", self.start, BINARY_STARTS)


@dataclass(frozen=True)
class Distillation:
    """How codebooks are distilled; see `anyprec.refine`.

    steps: of the optimizer, for each precision that is distilled. dataset: None for the text of
    calibration. num_examples: None for all windows that it has. learning_rates: one for each of
    those precisions; None for what suits the checkpoint's codebooks
    (anyprec.distill.default_learning_rate).
    """

    steps: dict[int, int]
    learning_rates: dict[int, float] | None = None
    dataset: str | None = None
    num_examples: int | None = None
    seq_len: int = 512
    held_out: int = 20
    batch_size: int = 8

    def __post_init__(self) -> None:
        _check_by_precision("distillation.steps", self.steps)
        for precision, steps in self.steps.items():
            _check_integer(f"distillation.steps.{precision}", steps, 1)
        if self.learning_rates is not None:
            _check_by_precision("distillation.learning_rates", self.learning_rates)
            if sorted(self.learning_rates) != sorted(self.steps):
                raise RecipeError(
                    f"distillation.learning_rates: found {sorted(self.learning_rates)}, wanted the "
                    f"{sorted(self.steps)} of distillation.steps"
                )
        if self.dataset is not None and not isinstance(self.dataset, str):
            raise RecipeError(f"distillation.dataset: found {self.dataset!r}, wanted text or null")
        if self.num_examples is not None:
            _check_integer("distillation.num_examples", self.num_examples, 2)
        _check_integer("distillation.seq_len", self.seq_len, 2)
        for name in ("held_out", "batch_size"):
            _check_integer(f"distillation.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class Recipe:
    """One recipe; `load_recipe` reads one. labels, passes: of calibration, which goes so many times
    over its text, labels one of LABELS (several passes where each draws labels of its own).
    metric: one of METRICS, for what refit and descent minimize."""

    name: str
    refit: bool
    description: str = ""
    descent: Descent | None = None
    distillation: Distillation | None = None
    metric: str = "guided"
    binary: Binary = field(default_factory=Binary)
    labels: str = "text"
    passes: int = 1

    def __post_init__(self) -> None:
        for name in ("name", "description"):
            if not isinstance(getattr(self, name), str):
                raise RecipeError(f"{name}: found {getattr(self, name)!r}, wanted text")
        if not self.name:
            raise RecipeError("name: found '', wanted some text")
        if not isinstance(self.refit, bool):
            raise RecipeError(f"refit: found {self.refit!r}, wanted true or false")
        _check_choice("metric", self.metric, METRICS)
        _check_choice("labels", self.labels, LABELS)
        _check_integer("passes", self.passes, 1)
        if self.passes > 1 and self.labels == "text":
            raise RecipeError(
                f"passes: found {self.passes} over labels of the text, which are the same in each"
            )
        if self.metric != "guided" and not self.refit:
            raise RecipeError(f"metric: found {self.metric!r} where refit is false")
        for name, descent in (("descent", self.descent), ("binary.descent", self.binary.descent)):
            if descent is not None and not self.refit:
                raise RecipeError(
                    f"{name}: wanted null where refit is false: it needs the Hessians"
                )

    @property
    def hessians(self) -> bool:
        """Whether calibration sums guided Hessians."""
        return self.refit and self.metric == "guided"

    def descent_of(self, codebook: str) -> Descent | None:
        """The joint descent of a kind of codebook (options.CODEBOOKS)."""
        return (self.binary.descent if codebook == "bcq" else None) or self.descent

    def distilled(self, precisions: Sequence[int]) -> list[int]:
        """Those of `precisions` whose codebooks are distilled."""
        wanted = self.distillation.steps if self.distillation else ()
        return [precision for precision in precisions if precision in wanted]

    def check(self, precisions: Sequence[int], codebook: str) -> None:
        """Raises RecipeError where a step has none of `precisions` to work on."""
        descent = self.descent_of(codebook)
        steps = {
            "descent": (descent, descent is not None and any(descent.weights(precisions))),
            "distillation": (self.distillation, bool(self.distilled(precisions))),
        }
        for step, (wanted, possible) in steps.items():
            if wanted is not None and not possible:
                raise RecipeError(
                    f"recipe {self.name}: its {step} is for none of the precisions asked for, "
                    f"{', '.join(map(str, precisions))}"
                )

    def sums_record(self) -> dict[str, Any]:
        """What determines the sums over calibration text (JSON values)."""
        return {"labels": self.labels, "passes": self.passes}

    def fit_record(self) -> dict[str, Any]:
        """What determines the fit of one linear (JSON values)."""
        return {
            "refit": self.refit,
            "metric": self.metric,
            "descent": _json(self.descent),
            "binary": _json(self.binary),
        }

    def record(self) -> dict[str, Any]:
        """All that determines the result (JSON values); the description does not."""
        distillation = _json(self.distillation)
        if distillation is not None and distillation["dataset"] is not None:
            distillation["dataset"] = Path(distillation["dataset"]).name
        return {
            "name": self.name,
            **self.sums_record(),
            **self.fit_record(),
            "distillation": distillation,
        }


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(
        {
            path.stem
            for directory in config_directories()
            for path in (directory / "recipes").glob("*.json")
        }
    )


def load_recipe(recipe: str | os.PathLike[str] | Recipe) -> Recipe:
    """A recipe by its name among those of the package, or out of a JSON file.

    Raises RecipeError where there is none, a key is unknown or missing, or a value is not as it
    should be: the message names the file, the key, what was found and what was wanted.
    """
    if isinstance(recipe, Recipe):
        return recipe
    text = os.fspath(recipe)
    shipped = [directory / "recipes" / f"{text}.json" for directory in config_directories()]
    named = [path for path in shipped if Path(text).name == text and path.is_file()]
    path = named[0] if named else Path(text)
    if not path.is_file():
        raise RecipeError(f"recipe {text!r}: neither one of {', '.join(recipe_names())} nor a file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return _parse(found)
    except (RecipeError, ValueError) as error:
        raise RecipeError(f"{path}: {error}") from error


def _parse(found: Any) -> Recipe:
    values = _known("", Recipe, found)
    values["descent"] = _descent("descent", values.get("descent"))
    if "binary" in values:
        binary = _known("binary.", Binary, values["binary"])
        values["binary"] = Binary(
            **{**binary, "descent": _descent("binary.descent", binary.get("descent"))}
        )
    if values.get("distillation") is not None:
        distillation = _known("distillation.", Distillation, values["distillation"])
        rates = distillation.get("learning_rates")
        if rates is not None:
            rates = _by_precision("distillation.learning_rates", rates)
        distillation["learning_rates"] = rates
        distillation["steps"] = _by_precision("distillation.steps", distillation["steps"])
        values["distillation"] = Distillation(**distillation)
    return Recipe(**values)


def _descent(name: str, found: Any) -> Descent | None:
    if found is None:
        return None
    descent = _known(f"{name}.", Descent, found)
    descent["taus"] = _by_precision(f"{name}.taus", descent["taus"])
    return Descent(**descent)


_Step = TypeVar("_Step", Recipe, Binary, Descent, Distillation)


def _known(prefix: str, step: type[_Step], found: Any) -> dict[str, Any]:
    """A copy of a JSON object that has exactly the fields of a step, those with defaults aside."""
    if not isinstance(found, dict):
        raise RecipeError(f"{prefix.rstrip('.') or 'a recipe'}: found {found!r}, wanted an object")
    keys = {each.name for each in fields(step)}
    optional = {
        each.name
        for each in fields(step)
        if each.default is not MISSING or each.default_factory is not MISSING
    }
    unknown = sorted(set(found) - keys)
    if unknown:
        raise RecipeError(f"{prefix}{unknown[0]}: unknown, wanted one of {', '.join(sorted(keys))}")
    missing = sorted(keys - optional - set(found))
    if missing:
        raise RecipeError(f"{prefix}{missing[0]}: missing")
    return dict(found)


def _by_precision(name: str, found: Any) -> dict[int, float]:
    if not isinstance(found, dict) or not all(str(key).isdigit() for key in found):
        raise RecipeError(f"{name}: found {found!r}, wanted a number for each precision")
    return {int(key): value for key, value in found.items()}


def _check_by_precision(name: str, values: dict[int, float]) -> None:
    for precision, value in values.items():
        if not 2 <= precision <= 8:
            raise RecipeError(f"{name}: found precision {precision}, wanted 2 to 8")
        if not _is_number(value) or not (math.isfinite(value) and value > 0):
            raise RecipeError(f"{name}.{precision}: found {value!r}, wanted a positive number")
    if not values:
        raise RecipeError(f"{name}: empty, wanted at least one precision")


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise RecipeError(f"{name}: found {value!r}, wanted one of {', '.join(choices)}")


def _check_integer(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RecipeError(f"{name}: found {value!r}, wanted an integer of at least {least}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _json(step: Binary | Descent | Distillation | None) -> dict[str, Any] | None:
    """As a manifest that was written and read again has it: lists, and keys as text."""
    return None if step is None else json.loads(json.dumps(asdict(step)))
