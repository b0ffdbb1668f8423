"""anyprec generate, eval, inspect and verify."""

import json
import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from anyprec import AnyPrecisionForCausalLM, Checkpoint
from anyprec.cli.app import app
from anyprec.precision_map import PrecisionMap
from anyprec.report import bits_per_weight, linear_sizes
from checkpoints import ALL, byte_tokenizer, each_codebook, tiny_model, write_checkpoint

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"
TEXT = "The quick brown fox jumps over the lazy dog. " * 10


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """With a chat template, and no end-of-text token that would stop generation."""
    model = tiny_model("llama", eos_token_id=None)
    model.generation_config.eos_token_id = None
    path = tmp_path_factory.mktemp("cli") / "out"
    return write_checkpoint(path, model, tokenizer=byte_tokenizer(TEMPLATE))


@pytest.fixture(scope="module")
def original(written, tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "original"
    written.original.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "test.txt"
    path.write_text(TEXT)
    return path


def run(*arguments) -> "object":
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_json(*arguments) -> dict:
    """Runs a command that must succeed and returns the JSON that it writes to stdout."""
    result = run(*arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_one_line_error(result, *words: str) -> None:
    assert result.exit_code == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("anyprec: "), result.stderr
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def precision_map(written, tmp_path_factory):
    """A map of 3, 4 and 6 bits: (file, precisions)."""
    precisions = {name: (3, 4, 6)[i % 3] for i, name in enumerate(written.matrices)}
    path = tmp_path_factory.mktemp("cli") / "mixed.json"
    PrecisionMap(precisions).write(path)
    return path, precisions


def spy_on_loads(monkeypatch) -> list[AnyPrecisionForCausalLM]:
    loaded = []
    load = AnyPrecisionForCausalLM.from_quantized

    def spy(*args, **kwargs):
        loaded.append(load(*args, **kwargs))
        return loaded[-1]

    monkeypatch.setattr(AnyPrecisionForCausalLM, "from_quantized", spy)
    return loaded


# --- generate


def greedy_text(written, precision, prompt: str, count: int) -> str:
    tokenizer = byte_tokenizer()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    output = written.dense_model(precision).generate(ids, max_new_tokens=count, do_sample=False)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_generate_answers_at_each_precision_through_the_chat_template(written):
    report = run_json(
        *("generate", written.path, "--prompt", "hi", "--max-new-tokens", 6),
        *("--precision", 8, "--precision", 2),
    )
    assert [result["precision"] for result in report["results"]] == [8, 2]
    for result in report["results"]:
        wanted = greedy_text(written, result["precision"], "<user>hi<answer>", 6)
        assert result["text"] == wanted
        assert result["new_tokens"] == 6
        assert result["tokens_per_second"] > 0


def test_generate_raw_continues_the_prompt(written):
    report = run_json(
        *("generate", written.path, "--prompt", "hi", "--raw", "--max-new-tokens", 5),
    )
    assert report["results"][0]["precision"] == 8
    assert report["results"][0]["text"] == greedy_text(written, 8, "hi", 5)


def test_generate_prints_the_text_and_the_speed(written):
    result = run("generate", written.path, "--prompt", "hi", "--raw", "--max-new-tokens", 5)
    assert result.exit_code == 0, result.output
    assert greedy_text(written, 8, "hi", 5) in result.stdout
    assert "5 tokens, " in result.stdout and "tokens/s" in result.stdout


def test_generate_reads_the_prompt_from_stdin(written):
    arguments = ["generate", str(written.path), "--prompt", "-", "--raw", "--json", "-"]
    arguments += ["--max-new-tokens", "3"]
    result = CliRunner().invoke(app, arguments, input="from stdin")
    assert json.loads(result.stdout)["prompt"] == "from stdin"


def test_generate_samples_by_seed(written):
    def text(seed: int) -> str:
        report = run_json(
            *("generate", written.path, "--prompt", "hi", "--max-new-tokens", 12),
            *("--temperature", 1.5, "--top-p", 0.95, "--seed", seed),
        )
        return report["results"][0]["text"]

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_generate_loads_only_the_precisions_asked_for(written, monkeypatch):
    loaded = spy_on_loads(monkeypatch)
    run_json("generate", written.path, "--prompt", "a", "--precision", 3, "--max-new-tokens", 1)
    assert [model.precisions for model in loaded] == [[3]]


def test_generate_at_a_precision_map_loads_what_it_needs(written, precision_map, monkeypatch):
    path, precisions = precision_map
    loaded = spy_on_loads(monkeypatch)
    arguments = ["generate", written.path, "--prompt", "hi", "--raw", "--max-new-tokens", 5]
    report = run_json(*arguments, "--precision-map", path)
    assert [model.precisions for model in loaded] == [[3, 4, 6]]
    (result,) = report["results"]
    assert result["precision_map"] == "mixed.json" and "precision" not in result
    assert result["text"] == greedy_text(written, precisions, "hi", 5)

    report = run_json(*arguments, "--precision", 8, "--precision-map", path)
    assert [row.get("precision") for row in report["results"]] == [8, None]
    assert "mixed.json" in run(*arguments, "--precision", 8, "--precision-map", path).stdout


def test_map_of_another_checkpoint_is_one_line(written, precision_map, text_file, tmp_path):
    other = write_checkpoint(
        tmp_path / "out", tiny_model("llama"), precisions=(3, 4), tokenizer=byte_tokenizer()
    ).path
    map_option = ("--precision-map", precision_map[0])
    for command in (("generate", other, "--prompt", "a"), ("eval", other, "--dataset", text_file)):
        assert_one_line_error(run(*command, *map_option), "mixed.json", "found 6", "3, 4")


def test_generate_with_a_precision_that_is_not_there_is_one_line(tmp_path):
    path = write_checkpoint(
        tmp_path / "out", tiny_model("llama"), precisions=(3, 4), tokenizer=byte_tokenizer()
    ).path
    assert_one_line_error(run("generate", path, "--prompt", "a", "--precision", 5), "5", "3", "4")


def test_generate_without_a_tokenizer_says_so(tmp_path):
    path = write_checkpoint(tmp_path / "out", tiny_model("llama"), precisions=(2,)).path
    assert_one_line_error(run("generate", path, "--prompt", "a"), "tokenizer")


# --- eval


def test_eval_writes_the_figures_of_each_precision_and_the_original(
    written, original, text_file, tmp_path
):
    target = tmp_path / "reports" / "eval.json"
    result = run(
        *("eval", written.path, "--dataset", text_file, "--precisions", "2,8"),
        *("--original", original, "--seq-len", 64, "--json", target),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(target.read_text())
    assert [r["precision"] for r in report["results"]] == [2, 8]
    for row in report["results"]:
        figures = {"perplexity", "stderr", "kl", "kl_stderr", "top1"}
        assert set(row) == {"precision", "bits_per_weight"} | figures
    assert report["results"][0]["kl"] > report["results"][1]["kl"] > 0
    assert set(report["original"]) == {"perplexity", "stderr", "path"}
    assert report["windows"] == len(TEXT) // 64
    assert report["seq_len"] == 64

    losses = []
    for window in torch.tensor(byte_tokenizer()(TEXT).input_ids).unfold(0, 64, 64):
        with torch.no_grad():
            losses.append(written.original(window[None], labels=window[None]).loss)
    wanted = torch.stack(losses).mean().exp().item()
    assert report["original"]["perplexity"] == pytest.approx(wanted, rel=1e-4)
    assert f"{wanted:.3f}" in result.stdout


def test_eval_takes_all_precisions_and_the_first_windows(written, text_file):
    report = run_json(
        *("eval", written.path, "--dataset", text_file, "--seq-len", 32, "--max-windows", 2),
    )
    assert [row["precision"] for row in report["results"]] == list(ALL)
    assert report["windows"] == 2
    assert "original" not in report


def test_eval_has_a_row_for_each_map_with_its_bits_per_weight(
    written, original, precision_map, text_file, tmp_path, monkeypatch
):
    path, precisions = precision_map
    uniform = tmp_path / "uniform.json"
    PrecisionMap(dict.fromkeys(precisions, 5)).write(uniform)
    loaded = spy_on_loads(monkeypatch)
    arguments = ["eval", written.path, "--dataset", text_file, "--seq-len", 32, "--max-windows", 2]
    maps = ["--precision-map", path, "--precision-map", uniform]
    report = run_json(*arguments, *maps, "--precisions", 5, "--original", original)
    assert [model.precisions for model in loaded] == [[3, 4, 5, 6]]
    five, mixed, same = report["results"]
    assert (five["precision"], mixed["precision_map"]) == (5, "mixed.json")
    assert same.pop("precision_map") == "uniform.json" and five.pop("precision") == 5
    assert same == five
    sizes = linear_sizes(Checkpoint(written.path))
    assert mixed["bits_per_weight"] == bits_per_weight(sizes, precisions)

    dense = written.dense_model(precisions)
    tokens = byte_tokenizer()(TEXT, return_tensors="pt").input_ids[0, :64].view(2, 32)
    with torch.no_grad():
        losses = [dense(window[None], labels=window[None]).loss for window in tokens]
    wanted = torch.stack(losses).mean().exp().item()
    assert mixed["perplexity"] == pytest.approx(wanted, rel=2e-3)

    result = run(*arguments, *maps)
    assert "mixed.json" in result.stdout and f"{mixed['bits_per_weight']:.3f}" in result.stdout
    assert [model.precisions for model in loaded] == [[3, 4, 5, 6]] * 2


def test_eval_of_two_maps_of_one_name_is_wrong_usage(written, precision_map, text_file):
    option = ("--precision-map", precision_map[0])
    result = run("eval", written.path, "--dataset", text_file, *option, *option)
    assert result.exit_code == 2
    assert "mixed.json" in result.stderr


def test_eval_in_another_dtype(written, text_file):
    report = run_json(
        *("eval", written.path, "--dataset", text_file, "--seq-len", 32, "--max-windows", 1),
        *("--dtype", "bfloat16", "--precisions", "8"),
    )
    assert report["dtype"] == "bfloat16"


def test_eval_errors_are_one_line(written, text_file, tmp_path):
    assert_one_line_error(run("eval", written.path, "--dataset", tmp_path / "no"), "no")
    assert_one_line_error(run("eval", tmp_path / "absent", "--dataset", text_file), "absent")
    assert_one_line_error(run("eval", written.path, "--dataset", text_file), "2048")
    assert_one_line_error(
        run("eval", written.path, "--dataset", text_file, "--precisions", "3,9"), "9"
    )


@pytest.mark.parametrize("precisions", ["3;4", "", "3,3"])
def test_eval_with_malformed_precisions_is_wrong_usage(written, text_file, precisions):
    result = run("eval", written.path, "--dataset", text_file, "--precisions", precisions)
    assert result.exit_code == 2
    assert "--precisions" in result.stderr


# --- inspect


@pytest.fixture(scope="module", **each_codebook())
def written_as(request, tmp_path_factory):
    """A checkpoint of each kind of codebook."""
    path = tmp_path_factory.mktemp("cli") / "out"
    return write_checkpoint(path, tiny_model("llama"), codebook=request.param)


def test_inspect_counts_every_byte(written_as):
    written = written_as
    report = run_json("inspect", written.path)
    everything = Checkpoint(written.path)
    weights = sum(n * k for _, n, k in everything.modules)
    assert report["linears"] == len(written.matrices) == 14
    assert report["quantized_weights"] == weights
    kinds = {kind["name"]: kind for kind in report["modules"]}
    down = kinds["model.layers.*.mlp.down_proj"]
    assert (down["count"], down["out_features"], down["in_features"]) == (2, 48, 72)

    base = sum(
        tensor.nbytes
        for name, tensor in written.original.state_dict().items()
        if name.removesuffix(".weight") not in written.matrices
    )
    assert report["base_bytes"] == base
    for row in report["precisions"]:
        b = row["precision"]
        planes = sum(m.planes[:b].nbytes for m in written.matrices.values())
        codebooks = sum(
            m.luts[b].nbytes + (m.alphas[b].nbytes if b in m.alphas else 0)
            for m in written.matrices.values()
        )
        assert row["plane_bytes"] == planes
        assert row["codebook_bytes"] == codebooks
        assert row["bytes"] == base + planes + codebooks
        assert row["bits_per_weight"] == pytest.approx(8 * (planes + codebooks) / weights)
        assert row["file_bytes"] == Checkpoint(written.path, [b]).bytes_mapped
    assert report["files"] == {f.name: f.stat().st_size for f in written.path.iterdir()}
    assert report["quantization_config"]["producer"] == "tests"
    assert "modules" not in report["quantization_config"]


def test_inspect_prints_a_line_for_each_precision_and_kind_of_linear(written):
    result = run("inspect", written.path)
    assert result.exit_code == 0, result.output
    for words in ("LlamaForCausalLM", "model.layers.*.mlp.down_proj", "48 x 72", "tests"):
        assert words in result.stdout
    assert sum(line.startswith(("│ ", "┃ ")) for line in result.stdout.splitlines()) >= 7 + 7


def test_inspect_of_something_else_is_one_line(tmp_path, original):
    assert_one_line_error(run("inspect", tmp_path / "absent"), "absent")
    assert_one_line_error(run("inspect", original), "quantization_config")


# --- verify


def test_verify_of_a_whole_checkpoint(written_as):
    written = written_as
    report = run_json("verify", written.path)
    assert report["ok"] is True
    assert report["problems"] == []
    assert report["tensors"] == len(Checkpoint(written.path).tensor_names())
    assert "whole" in run("verify", written.path).stdout


def test_verify_lists_all_problems_and_exits_with_one(tmp_path):
    path = write_checkpoint(tmp_path / "out", tiny_model("llama"), precisions=(3, 4)).path
    for name in ("model-base.safetensors", "model-4bit.safetensors"):
        data = bytearray((path / name).read_bytes())
        data[-1] ^= 1
        (path / name).write_bytes(data)
    result = run("verify", path, "--json", tmp_path / "report.json")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is False
    assert len(report["problems"]) == 2
    for problem, name in zip(sorted(report["problems"]), ("4bit", "base"), strict=True):
        assert name in problem
        assert problem in result.stdout


def test_verify_of_nothing_is_a_problem(tmp_path):
    result = run("verify", tmp_path / "absent")
    assert result.exit_code == 1
    assert "absent" in result.output


# --- the command itself


def test_unexpected_errors_are_one_line_and_tracebacks_on_request(written, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("surprise")

    monkeypatch.setattr(AnyPrecisionForCausalLM, "from_quantized", broken)
    assert_one_line_error(run("generate", written.path, "--prompt", "a"), "KeyError", "surprise")
    monkeypatch.setenv("ANYPREC_DEBUG", "1")
    assert isinstance(run("generate", written.path, "--prompt", "a").exception, KeyError)


def test_help_has_an_example():
    for command in ("allocate", "generate", "eval", "inspect", "verify"):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"anyprec {command} out" in " ".join(result.stdout.split())


def test_as_a_process(written, tmp_path):
    def process(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "anyprec.cli.app", *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=False,
        )

    done = process("inspect", written.path, "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["linears"] == 14
    failed = process("generate", tmp_path / "absent", "--prompt", "a")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("anyprec: ") and failed.stderr.count("\n") == 1
