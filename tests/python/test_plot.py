"""anyprec plot: reading reports, choosing references, and what is drawn."""

import json

import pytest
from typer.testing import CliRunner

from anyprec.cli.app import app
from anyprec.plot import (
    PlotError,
    Series,
    comparable,
    draw,
    read_references,
    read_reports,
)


def report(**changes):
    rows = [
        {"precision": 4, "bits_per_weight": 4.375, "perplexity": 25.0, "stderr": 0.1, "kl": 0.2},
        {"precision": 3, "bits_per_weight": 3.19, "perplexity": 40.0, "stderr": 0.1, "kl": 0.6},
        {"precision_map": "map-3.5", "bits_per_weight": 3.5, "perplexity": 33.0, "stderr": None},
        {"precision": 2, "bits_per_weight": 2.1, "perplexity": None, "stderr": None},
    ]
    return {
        "results": rows,
        "original": {"perplexity": 21.98, "stderr": 0.1},
        "windows": 147,
        "seq_len": 2048,
    } | changes


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "best.json", report())
    write(tmp_path / "fast.json", report(original=None, windows=10))
    write(tmp_path / "config.json", {"model_type": "llama"})
    write(tmp_path / "refined.json", {"results": [{"precision": 2, "before": 1.0}]})
    return tmp_path


def test_series_are_the_reports_by_bits_per_weight(folder):
    best, fast = read_reports([folder])
    assert (best.label, fast.label) == ("best", "fast")
    assert [point.name for point in best.points] == ["3", "map-3.5", "4"]  # 2 has overflowed
    assert [point.kl for point in best.points] == [0.6, None, 0.2]
    assert best.original == 21.98 and fast.original is None
    (named,) = read_reports([folder / "fast.json"], ["quick"])
    assert named.label == "quick"


def test_references_stand_beside_the_same_measurement_only(folder):
    references = read_references()
    best, fast = read_reports([folder])
    assert [one.label for one in comparable(references, [best, fast])] == ["Any-Precision LLM"]
    assert comparable(references, [fast]) == []
    other = Series("other model", best.points, 147, 2048, original=21.0)
    assert comparable(references, [other]) == []
    assert all(one.reference and len(one.points) > 1 for one in references)


def test_what_is_no_report_is_named(tmp_path):
    with pytest.raises(PlotError, match=r"missing\.json: no such file"):
        read_reports([tmp_path / "missing.json"])
    with pytest.raises(PlotError, match="no report of anyprec eval"):
        read_reports([tmp_path])
    file = tmp_path / "a.json"
    file.write_text("{", encoding="utf-8")
    with pytest.raises(PlotError, match=r"a\.json: not JSON"):
        read_reports([file])
    for content, message in [
        ([], "found a list"),
        ({}, "no results"),
        (report(windows=0), "windows is 0, wanted a positive"),
        (report(results=[{"precision": 3, "perplexity": 2.0}]), "bits_per_weight is None"),
        (report(results=[{"bits_per_weight": 3}]), "without precision"),
        (report(results=[{"precision": 3, "bits_per_weight": 3}]), "perplexity is None"),
    ]:
        with pytest.raises(PlotError, match=message):
            read_reports([write(file, content)])
    with pytest.raises(PlotError, match="2 labels for 1 reports"):
        read_reports([write(file, report())], ["a", "b"])
    with pytest.raises(PlotError, match="wanted a list of references"):
        read_references(file)


def test_pictures_are_drawn_the_same_each_time(folder, tmp_path):
    pytest.importorskip("matplotlib")
    series = read_reports([folder])
    for ending, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        files = [tmp_path / f"{name}{ending}" for name in "ab"]
        for file in files:
            draw(series, file, "title")
        assert files[0].read_bytes().startswith(start)
        assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(PlotError, match=r"found \.pdf ending"):
        draw(series, tmp_path / "a.pdf")
    with pytest.raises(PlotError, match="nothing to plot"):
        draw([Series("empty", (), 1, 2)], tmp_path / "a.png")


def test_the_command_draws_reports_and_references(folder, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "deep" / "quality.svg"
    result = CliRunner().invoke(app, ["plot", str(folder), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "3 series" in result.output and out.exists()
    result = CliRunner().invoke(app, ["plot", str(folder), "--out", str(out), "--no-reference"])
    assert "2 series" in result.output
    result = CliRunner().invoke(app, ["plot", str(folder / "config.json"), "--out", str(out)])
    assert result.exit_code == 1 and "no results" in result.output
