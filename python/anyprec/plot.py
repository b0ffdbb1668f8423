"""Quality against size: perplexity and KL divergence over bits per weight, codebooks counted.

Series come from reports of `anyprec eval --json`. Reference points of other methods are data
(data/references.json); they are shown beside reports of the same text, windows and model, which is
told by the number and length of the windows and by the original's perplexity.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMATS = (".png", ".svg")
REFERENCES = Path(__file__).parent / "data" / "references.json"
# Of the original's perplexity: kernels and dtypes differ by less, models by more.
_SAME_ORIGINAL = 0.005
# Times the lowest perplexity: what lies above is named at the border.
_HIGHEST = 4.5


class PlotError(ValueError):
    """A report or a request that cannot be plotted."""


@dataclass(frozen=True)
class Point:
    """name: the precision, or the file of a precision map. kl: nats a token, where known."""

    name: str
    bits_per_weight: float
    perplexity: float
    kl: float | None = None


@dataclass(frozen=True)
class Series:
    """Points of one checkpoint or method, by bits per weight.

    original: the original model's perplexity, where known; reference: of another method, from data.
    """

    label: str
    points: tuple[Point, ...]
    windows: int
    seq_len: int
    original: float | None = None
    reference: bool = False


def read_reports(paths: Sequence[str | Path], labels: Sequence[str] = ()) -> list[Series]:
    """One series for each report.

    paths: reports, and directories, of which every report directly inside is taken in order of
    names. labels: one for each report; by default the files' names without ".json". Raises
    PlotError where a file is not a report, or a directory has none.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise PlotError(f"{path}: no such file or directory")
        files += _reports_in(path) if path.is_dir() else [path]
    if labels and len(labels) != len(files):
        raise PlotError(
            f"{len(labels)} labels for {len(files)} reports, wanted one for each: "
            + ", ".join(file.name for file in files)
        )
    names = labels or [file.stem for file in files]
    return [_series(_json(file), name, file) for file, name in zip(files, names, strict=True)]


def read_references(path: str | Path = REFERENCES) -> list[Series]:
    """Reference points: a JSON list of {label, windows, seq_len, original, points}."""
    entries = _json(Path(path))
    if not isinstance(entries, list):
        raise PlotError(f"{path}: found a {type(entries).__name__}, wanted a list of references")
    series = []
    for entry in entries:
        report = {**_fields(entry, path), "results": _fields(entry, path).get("points")}
        report["original"] = {"perplexity": report.get("original")}
        label = report.get("label")
        if not isinstance(label, str):
            raise PlotError(f"{path}: a reference without a label")
        series.append(_series(report, label, Path(path), reference=True))
    return series


def comparable(references: Iterable[Series], series: Sequence[Series]) -> list[Series]:
    """The references that were measured as one of the series was, on the same original."""
    return [ref for ref in references if any(_same_measurement(ref, one) for one in series)]


def draw(series: Sequence[Series], out: str | Path, title: str = "") -> None:
    """Draws perplexity and, where a series has it, KL divergence; both on log axes.

    out: a .png or .svg file, written anew. The same series give the same bytes with the same
    matplotlib. Raises PlotError where there is nothing to draw or the format is another, and
    ImportError without matplotlib.
    """
    out = Path(out)
    if out.suffix not in FORMATS:
        raise PlotError(f"{out}: found {out.suffix or 'no'} ending, wanted .png or .svg")
    if not any(one.points for one in series):
        raise PlotError("nothing to plot: no report has a finite perplexity")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'anyprec[plot]'") from error

    with_kl = any(point.kl is not None for one in series for point in one.points)
    with matplotlib.rc_context({"svg.hashsalt": "anyprec", "font.size": 10}):
        figure = Figure(figsize=(11 if with_kl else 6, 4.5), layout="constrained")
        panels = figure.subplots(1, 2 if with_kl else 1, squeeze=False)[0]
        _panel(panels[0], series, "perplexity", "perplexity")
        _originals(panels[0], series)
        panels[0].legend(frameon=False)
        if with_kl:
            _panel(panels[1], series, "kl", "KL divergence to the original (nats a token)")
        if title:
            figure.suptitle(title)
        out.parent.mkdir(parents=True, exist_ok=True)
        # Without the time of drawing.
        metadata = {"Date": None} if out.suffix == ".svg" else {"Software": None}
        figure.savefig(out, dpi=160, metadata=metadata)


def _panel(axes: Any, series: Sequence[Series], figure: str, label: str) -> None:
    top = _HIGHEST * _lowest(series) if figure == "perplexity" else math.inf
    named: set[tuple[str, int]] = set()
    for index, one in enumerate(series):
        points = [point for point in one.points if getattr(point, figure) is not None]
        if not points:
            continue
        bits = [point.bits_per_weight for point in points]
        values = [getattr(point, figure) for point in points]
        style = {"linestyle": "--", "marker": "x"} if one.reference else {"marker": "o"}
        axes.plot(bits, values, color=f"C{index}", label=one.label, markersize=4, **style)
        for point, value in zip(points, values, strict=True):
            at = (point.bits_per_weight, value)
            place = (point.name, round(2 * point.bits_per_weight))
            if value > top:
                continue
            if place not in named:  # once for several series whose points lie side by side
                axes.annotate(point.name, at, (3, 4), textcoords="offset points", fontsize=7)
            named.add(place)
    axes.set_xlabel("bits per weight, codebooks counted")
    axes.set_ylabel(label)
    axes.set_yscale("log")
    if figure == "perplexity":
        _above(axes, series, top)
        _plain_numbers(axes)
    axes.grid(True, which="both", alpha=0.25)


def _lowest(series: Sequence[Series]) -> float:
    return min(point.perplexity for one in series for point in one.points)


def _above(axes: Any, series: Sequence[Series], top: float) -> None:
    """Where a few points would squeeze all others together they are named at the upper border."""
    over = [
        (point.perplexity, index, point)
        for index, one in enumerate(series)
        for point in one.points
        if point.perplexity > top
    ]
    if not over:
        return
    axes.set_ylim(0.93 * _lowest(series), top)
    text = axes.get_xaxis_transform()  # heights as a share of the axes
    for line, (value, index, point) in enumerate(sorted(over, key=lambda item: item[0])):
        axes.annotate(
            f"{point.name} bits: {value:.4g} \N{UPWARDS ARROW}",
            (point.bits_per_weight, 0.97 - 0.045 * line),
            xytext=(36, 0),
            xycoords=text,
            textcoords="offset points",
            color=f"C{index}",
            fontsize=7,
            verticalalignment="top",
        )


def _plain_numbers(axes: Any) -> None:
    from matplotlib.ticker import LogLocator

    steps = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    low, high = axes.get_ylim()
    wide = high / low > 10
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if wide else steps))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def _originals(axes: Any, series: Sequence[Series]) -> None:
    """A line for each original among the reports."""
    shown: list[float] = []
    for one in series:
        value = one.original
        if one.reference or value is None or any(_same(value, other) for other in shown):
            continue
        axes.axhline(value, color="0.4", linewidth=0.8, label="" if shown else "original")
        shown.append(value)


def _same_measurement(one: Series, other: Series) -> bool:
    return (
        (one.windows, one.seq_len) == (other.windows, other.seq_len)
        and one.original is not None
        and other.original is not None
        and _same(one.original, other.original)
    )


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= _SAME_ORIGINAL * other


def _reports_in(directory: Path) -> list[Path]:
    found = []
    for file in sorted(directory.glob("*.json")):
        content = _json(file)
        results = content.get("results") if isinstance(content, dict) else None
        # Other JSON may lie there: configs, reports of other commands.
        if isinstance(results, list) and results and "windows" in content:
            found.append(file)
    if not found:
        raise PlotError(f"{directory}: no report of anyprec eval --json in it")
    return found


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PlotError(f"{file}: not JSON ({error})") from None


def _fields(value: Any, file: str | Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlotError(f"{file}: found a {type(value).__name__}, wanted a report of anyprec eval")
    return value


def _series(report: Any, label: str, file: Path, reference: bool = False) -> Series:
    report = _fields(report, file)
    rows = report.get("results")
    if not isinstance(rows, list):
        raise PlotError(f"{file}: no results, wanted a report of anyprec eval --json")
    original = report.get("original")
    points = [point for row in rows if (point := _point(row, file)) is not None]
    return Series(
        label,
        tuple(sorted(points, key=lambda point: point.bits_per_weight)),
        windows=_number(report, "windows", file),
        seq_len=_number(report, "seq_len", file),
        original=None if original is None else _fields(original, file).get("perplexity"),
        reference=reference,
    )


def _point(row: Any, file: Path) -> Point | None:
    """None where the perplexity overflowed."""
    row = _fields(row, file)
    name = row.get("precision", row.get("precision_map"))
    if name is None:
        raise PlotError(f"{file}: a result without precision or precision_map")
    bits = _number(row, "bits_per_weight", file)
    if row.get("perplexity") is None and "perplexity" in row:
        return None
    perplexity = _number(row, "perplexity", file)
    # A logarithm has no place for zero, which is what a model has to itself.
    kl = _number(row, "kl", file) if row.get("kl") else None
    return Point(str(name), bits, perplexity, kl)


def _number(fields: dict[str, Any], name: str, file: Path) -> Any:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PlotError(f"{file}: {name} is {value!r}, wanted a number")
    if value <= 0:
        raise PlotError(f"{file}: {name} is {value!r}, wanted a positive number")
    return value
