"""anyprec quantize on the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import anyprec
from anyprec.cli.app import app

COMMANDS = ("quantize", "generate", "eval", "inspect", "verify")


@pytest.fixture
def run():
    runner = CliRunner()

    def call(*arguments):
        return runner.invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def calibration(text_file):
    return ("--dataset", text_file, "--num-examples", 2, "--seq-len", 32, "--device", "cpu")


def test_all_five_commands_are_there_with_an_example_each(run):
    listed = run("--help").output
    for command in COMMANDS:
        assert command in listed
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"anyprec {command} " in result.output


def test_the_version_is_the_librarys(run):
    assert run("--version").output == f"anyprec {anyprec.__version__}\n"


def test_quantizes_and_reports_as_json(run, tiny_source, calibration, tmp_path):
    out, report = tmp_path / "out", tmp_path / "report.json"
    result = run("quantize", tiny_source, out, *calibration, "--json", report)
    assert result.exit_code == 0, result.output
    assert "14 linear layers (configs/llama.json)" in result.stderr
    assert "model.layers.1.mlp.down_proj [48, 72]  2: " in result.stderr
    assert "bits per weight" in result.stdout
    data = json.loads(report.read_text())
    assert data["status"] == "made"
    assert [row["precision"] for row in data["precisions"]] == list(range(2, 9))
    assert len(data["linears"]) == 14
    assert anyprec.verify_checkpoint(out)["problems"] == []

    again = run("quantize", tiny_source, out, *calibration)
    assert again.exit_code == 0
    assert "nothing to do" in again.stderr


def test_a_dry_run_prints_sizes_and_json_alone_on_stdout(run, tiny_source, tmp_path):
    result = run("quantize", tiny_source, tmp_path / "out", "--dry-run", "--json", "-")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["status"] == "dry run"
    sizes = {row["precision"]: row for row in data["precisions"]}
    rows = 48 + 24 + 24 + 48 + 72 + 72  # of q, k, v, o, gate, up, with K = 48
    planes, tables = 2 * 3 * (rows * 48 // 8 + 48 * 72 // 8), 2 * (rows + 48) * 2**3 * 2
    assert (sizes[3]["plane_bytes"], sizes[3]["lut_bytes"]) == (planes, tables)
    weights = 2 * (rows * 48 + 48 * 72)
    assert sizes[3]["bits_per_weight"] == pytest.approx(8 * (planes + tables) / weights)
    assert "would make" in result.stderr
    assert "calibration: in one pass, at most " in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "wanted"), [("2-8", range(2, 9)), ("3,4,5", (3, 4, 5)), ("4", (4,)), ("3-3", (3,))]
)
def test_precisions_are_a_range_or_a_list(text, wanted):
    from anyprec.cli.quantize import parse_precision_range

    assert parse_precision_range(text) == tuple(wanted)


@pytest.mark.parametrize("text", ["two", "2-", "2-4-8", "2,,3"])
def test_precisions_of_another_form_are_wrong_usage(run, tiny_source, tmp_path, text):
    result = run("quantize", tiny_source, tmp_path / "out", "--precisions", text)
    assert result.exit_code == 2
    assert "--precisions" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precisions", "3,5"), "wanted a rising range without gaps"),
        (("--dataset", "nowhere"), "'nowhere' is neither"),
        (("--codebook", "huffman"), "wanted one of lut, hybrid, bcq"),
        (("--modules", "*.wq"), "'*.wq' matches no linear layer"),
        (("--recipe", "superb"), "neither one of balanced, best, fast nor a file"),
        (("--max-memory", "lots"), "memory 'lots': wanted an amount like 20GiB"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(run, tiny_source, tmp_path, arguments, message):
    result = run("quantize", tiny_source, tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_it_runs_as_a_program(tiny_source, tmp_path):
    package = Path(anyprec.__file__).parent
    path = f"{package.parent}:{os.environ.get('PYTHONPATH', '')}"
    result = subprocess.run(
        [sys.executable, "-m", "anyprec.cli.app", "quantize", str(tmp_path / "none.gguf"), "out"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
    )
    assert result.returncode == 1
    assert "none.gguf: no such file" in result.stderr
    assert result.stdout == ""
