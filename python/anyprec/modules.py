"""Which linear layers are quantized: by a family's list, a search, or the user's patterns."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

# A mixture-of-experts router decides with few weights which experts run; it is never quantized. (A
# gated MLP's gate is called gate_proj, not gate.)
_ROUTERS = {"gate", "router", "shared_expert_gate"}
# Parts of a multi-modal model that are not the language model.
_TOWERS = ("vision", "visual", "audio", "image", "multi_modal_projector", "speech")


@dataclass(frozen=True)
class Linear:
    """One linear layer to quantize; its weight is [out_features, in_features]."""

    name: str
    out_features: int
    in_features: int


@dataclass(frozen=True)
class Selection:
    """The linears to quantize, in the model's order, and where the choice came from."""

    linears: tuple[Linear, ...]
    origin: str  # "configs/llama.json", "automatic" or "patterns"
    patterns: tuple[str, ...]  # the globs that chose them; empty when automatic

    def __str__(self) -> str:
        weights = sum(linear.out_features * linear.in_features for linear in self.linears)
        return f"{len(self.linears)} linear layers ({self.origin}), {weights:,} weights"


class ModuleSelectionError(ValueError):
    """No linear layer can be chosen, or a chosen one cannot be quantized."""


def config_directories() -> list[Path]:
    """Where families' files may be: inside the installed package, or in the source tree."""
    package = Path(__file__).resolve().parent
    return [package / "configs", package.parent.parent / "configs"]


def family_patterns(model_type: str) -> tuple[str, ...] | None:
    """The globs of configs/<model_type>.json, or None when the family has no file."""
    if not model_type or Path(model_type).name != model_type:
        return None
    for directory in config_directories():
        path = directory / f"{model_type}.json"
        if not path.is_file():
            continue
        family = json.loads(path.read_text(encoding="utf-8"))
        if family.get("model_type") != model_type or not family.get("linears"):
            raise ModuleSelectionError(
                f'{path}: wanted {{"model_type": "{model_type}", "linears": [...]}}, found {family}'
            )
        return tuple(family["linears"])
    return None


def select_linears(model: nn.Module, patterns: Sequence[str] = (), head: bool = False) -> Selection:
    """Chooses the linear layers to quantize.

    With patterns (globs over module names, ``*`` also matching dots): every nn.Linear that one of
    them matches. Without: those that configs/<model_type>.json lists, and for a family without a
    file every nn.Linear inside the decoder's blocks except routers. A layer that is reachable under
    two names is chosen under both.

    head: the output head too. One whose weight is tied to the embedding is chosen in this way only:
    it becomes a matrix of its own, and the embedding stays as it is.

    Raises ModuleSelectionError when a pattern matches no linear layer, when nothing is left, and
    for layers that hold transposed weights (GPT-2's Conv1D).
    """
    selection = _select(model, patterns)
    return _with_head(model, selection) if head else selection


def _select(model: nn.Module, patterns: Sequence[str]) -> Selection:
    if patterns:
        return _by_pattern(model, tuple(patterns), origin="patterns", all_must_match=True)
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    family = family_patterns(model_type)
    if family is not None:
        return _by_pattern(model, family, f"configs/{model_type}.json", all_must_match=False)
    return _automatic(model)


def _with_head(model: nn.Module, selection: Selection) -> Selection:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    linears = _named_linears(model)
    names = {name for name, linear in linears.items() if linear is head}
    if not names:
        raise ModuleSelectionError(
            f"{type(model).__name__}: its output head is "
            f"{'not known' if head is None else 'a ' + type(head).__name__}, wanted a linear layer"
        )
    chosen = names | {linear.name for linear in selection.linears}
    origin = f"{selection.origin} and the output head"
    return _selection(linears, chosen, origin, selection.patterns)


def _named_linears(model: nn.Module) -> dict[str, nn.Linear]:
    modules = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if isinstance(module, nn.Linear)}


def _embedding_weights(model: nn.Module) -> set[int]:
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}


def _by_pattern(
    model: nn.Module, patterns: tuple[str, ...], origin: str, all_must_match: bool
) -> Selection:
    linears = _named_linears(model)
    chosen: set[str] = set()
    for pattern in patterns:
        matches = set(fnmatch.filter(linears, pattern))
        if not matches and all_must_match:
            _refuse_conv1d(model, pattern)
            raise ModuleSelectionError(
                f"pattern {pattern!r} matches no linear layer of {type(model).__name__}; "
                f"its linear layers are named like {_examples(linears)}"
            )
        chosen |= matches
    if not chosen:
        raise ModuleSelectionError(
            f"{origin} matches no linear layer of {type(model).__name__}; its linear layers are "
            f"named like {_examples(linears)}: choose with --modules"
        )
    embeddings = _embedding_weights(model)
    for name in chosen:
        if id(linears[name].weight) in embeddings:
            raise ModuleSelectionError(
                f"{name}: its weight is tied to the embedding, which is not quantized; "
                "--quantize-head makes the head a matrix of its own"
            )
    return _selection(linears, chosen, origin, patterns)


def _automatic(model: nn.Module) -> Selection:
    stem, blocks = decoder_blocks(model)
    linears = _named_linears(model)
    embeddings = _embedding_weights(model)
    chosen = {
        name
        for name, linear in linears.items()
        if name.startswith(stem + ".")
        and name.rsplit(".", 1)[-1] not in _ROUTERS
        and not _in_tower(name)
        and id(linear.weight) not in embeddings
    }
    _refuse_conv1d(model, stem + ".*")
    if not chosen:
        raise ModuleSelectionError(
            f"no linear layers found in {stem} ({len(blocks)} blocks) of {type(model).__name__}: "
            "choose with --modules"
        )
    return _selection(linears, chosen, "automatic", ())


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks: the outermost ModuleList with the most parameters."""
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not _in_tower(name):
            size = sum(parameter.numel() for parameter in module.parameters())
            # Named outer before inner: a list inside a block never holds more than its outer list.
            if best is None or size > best[0]:
                best = (size, name, module)
    if best is None:
        raise ModuleSelectionError(
            f"{type(model).__name__} has no list of decoder blocks: choose layers with --modules"
        )
    return best[1], best[2]


def _in_tower(name: str) -> bool:
    return any(part.startswith(_TOWERS) for part in name.split("."))


def _refuse_conv1d(model: nn.Module, pattern: str) -> None:
    for name, module in model.named_modules():
        if type(module).__name__ == "Conv1D" and fnmatch.fnmatch(name, pattern):
            raise ModuleSelectionError(
                f"{name} is a Conv1D layer (GPT-2 style, weights stored transposed); only "
                "torch.nn.Linear layers can be quantized"
            )


def _selection(
    linears: dict[str, nn.Linear], chosen: set[str], origin: str, patterns: tuple[str, ...]
) -> Selection:
    ordered = (name for name in linears if name in chosen)
    return Selection(
        tuple(Linear(n, linears[n].out_features, linears[n].in_features) for n in ordered),
        origin,
        patterns,
    )


def _examples(linears: dict[str, nn.Linear]) -> str:
    # One of each kind: the last part of the name tells the kinds apart.
    kinds = {name.rsplit(".", 1)[-1]: name for name in reversed(linears)}
    return ", ".join(sorted(kinds.values())[:8]) or "(it has none)"
