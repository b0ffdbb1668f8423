"""anyprec bench: its rows and their figures, on a tiny checkpoint."""

import json

import pytest
import torch
from typer.testing import CliRunner

from anyprec.bench import Case, copy_bandwidth
from anyprec.bench_reference import reference_model, reference_speed
from anyprec.bench_shapes import SHAPES
from anyprec.cli.app import app
from anyprec.native import refusal
from checkpoints import tiny_model, write_checkpoint


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_a_row_for_every_precision_batch_and_context(tmp_path):
    path = write_checkpoint(tmp_path / "out", tiny_model("llama"), (2, 3)).path
    report = tmp_path / "bench.json"
    options = ("--batch", "1,2", "--context", "5,9", "--new-tokens", 3, "--device", "cpu")
    result = run(path, *options, "--json", report)
    assert result.exit_code == 0, result.output
    rows = json.loads(report.read_text())["results"]
    names = ["float32, dense"] * 4 + ["2 bits"] * 4 + ["3 bits"] * 4
    assert [row["name"] for row in rows] == names
    assert [(row["batch"], row["context"]) for row in rows[:4]] == [(1, 5), (2, 5), (1, 9), (2, 9)]
    for row in rows:
        assert row["decode_tokens_per_second"] == pytest.approx(
            row["batch"] / row["decode_step_seconds"]
        )
        assert row["bytes_per_second"] == pytest.approx(
            row["step_bytes"] / row["decode_step_seconds"]
        )
    sizes = {(row["name"], row["context"]): row["step_bytes"] for row in rows if row["batch"] == 1}
    assert sizes["2 bits", 5] < sizes["3 bits", 5] < sizes["float32, dense", 5]
    assert sizes["2 bits", 5] < sizes["2 bits", 9]


def test_a_checkpoint_or_shapes_and_not_both(tmp_path):
    assert run().exit_code == 2
    assert run(tmp_path, "--shapes", "qwen3-4b").exit_code == 2
    assert "llama-3.1-8b" in run("--shapes", "gpt-5").output.replace("\n", " ")


@pytest.mark.parametrize("name", SHAPES)
def test_the_engine_serves_the_shapes(name):
    assert refusal(json.dumps(SHAPES[name])) == ""


def test_the_reference_measures_hugging_face():
    config = json.loads(tiny_model("qwen3").config.to_json_string())
    model = reference_model(config, torch.float32, torch.device("cpu"))
    row = reference_speed(model, Case(batch=2, context=6, new_tokens=3, vocabulary=320), 1e9)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert row.step_bytes <= weights + 2 * 6 * 2 * 2 * 2 * 16 * 4
    assert row.decode_tokens_per_second > 0


def test_copies_have_a_speed():
    assert copy_bandwidth(torch.device("cpu")) > 1e8


@pytest.mark.gpu
def test_the_reference_step_is_a_graph_on_a_gpu():
    config = json.loads(tiny_model("llama").config.to_json_string())
    model = reference_model(config, torch.float16, torch.device("cuda"))
    row = reference_speed(model, Case(batch=1, context=6, new_tokens=4, vocabulary=320), 1e12)
    assert row.peak_bytes > 0


@pytest.mark.gpu
def test_bench_on_a_gpu(tmp_path):
    path = write_checkpoint(
        tmp_path / "out", tiny_model("llama", hidden_size=256, intermediate_size=384), (2, 3)
    ).path
    report = tmp_path / "bench.json"
    result = run(path, "--context", 40, "--new-tokens", 8, "--huggingface", "--json", report)
    assert result.exit_code == 0, result.output
    assert len(json.loads(report.read_text())["results"]) == 4


def test_shapes_take_the_codebook_forms_of_quantize(tmp_path):
    report = tmp_path / "bench.json"
    form = ("--codebook", "hybrid", "--lut-bits", 3, "--cell-groups", "io", "--precisions", "4")
    shapes = ("--shapes", "smollm2-135m", "--no-dense", "--device", "cpu")
    sizes = ("--context", 4, "--new-tokens", 2)
    result = run(*shapes, *sizes, *form, "--json", report)
    assert result.exit_code == 0, result.output
    made = json.loads(report.read_text())
    assert made["model"] == "shapes of smollm2-135m, tables of 8 and planes (io)"
    assert [row["name"] for row in made["results"]] == ["4 bits"]
    refused = run(*shapes, *sizes, "--lut-bits", 3)
    assert refused.exit_code != 0 and "only a hybrid" in refused.output
