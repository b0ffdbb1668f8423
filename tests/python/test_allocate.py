"""Costs of precisions, the choice under a budget, and the command."""

import copy
import itertools
import json
import random

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from anyprec import AnyPrecisionForCausalLM, Checkpoint, PrecisionError
from anyprec.allocation import allocate, solve
from anyprec.calibrate import CalibrationError
from anyprec.cli.app import app
from anyprec.evaluate import evaluate
from anyprec.knapsack import cheapest_choice
from anyprec.precision_map import checkpoint_identity, read_precision_map
from anyprec.report import inspect_checkpoint, linear_sizes
from anyprec.sensitivity import fisher_errors, measuring_steps, precision_costs
from checkpoints import CODEBOOKS, VOCABULARY, byte_tokenizer, tiny_model, write_checkpoint

PRECISIONS = (2, 3, 4, 5)
TOKENS = (np.arange(4 * 24).reshape(4, 24) * 37 % VOCABULARY).astype(np.int64)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("allocate") / "out"
    return write_checkpoint(
        path, tiny_model("llama"), precisions=PRECISIONS, tokenizer=byte_tokenizer()
    )


@pytest.fixture(scope="module")
def model(written):
    return AnyPrecisionForCausalLM.from_quantized(written.path)


@pytest.fixture(scope="module")
def costs(model):
    return precision_costs(model, TOKENS)


# --- the knapsack


@pytest.mark.parametrize("seed", range(20))
def test_choice_is_the_best_of_all(seed):
    draw = random.Random(seed)
    unit = draw.choice([1, 8, 24])
    sizes = [
        sorted(unit * draw.randint(1, 40) for _ in range(draw.randint(1, 4))) for _ in range(5)
    ]
    costs = [[draw.random() for _ in item] for item in sizes]
    budget = draw.randint(sum(min(s) for s in sizes), sum(max(s) for s in sizes))
    totals = [
        (sum(c[o] for c, o in zip(costs, options, strict=True)), options)
        for options in itertools.product(*(range(len(s)) for s in sizes))
        if sum(s[o] for s, o in zip(sizes, options, strict=True)) <= budget
    ]
    choice = cheapest_choice(sizes, costs, budget)
    assert choice.cost == pytest.approx(min(totals)[0])
    assert tuple(choice.options) == min(totals)[1]
    assert choice.size == sum(s[o] for s, o in zip(sizes, choice.options, strict=True)) <= budget
    assert choice.quantum % unit == 0


@pytest.mark.parametrize("seed", range(10))
def test_coarse_choice_keeps_the_budget_and_is_the_best_of_rounded_sizes(seed):
    draw = random.Random(seed)
    sizes = [sorted(draw.randint(50, 400) for _ in range(3)) for _ in range(5)]
    costs = [sorted((draw.random() for _ in range(3)), reverse=True) for _ in range(5)]
    budget = 1500
    choice = cheapest_choice(sizes, costs, budget, max_quanta=60)
    quantum = choice.quantum
    largest = sum(max(item) for item in sizes)
    assert quantum > 1 and min(budget, largest) // quantum <= 60
    assert choice.size <= budget
    rounded = [[-(-size // quantum) for size in item] for item in sizes]
    assert choice.cost == pytest.approx(cheapest_choice(rounded, costs, budget // quantum).cost)


def test_no_choice_within_the_budget():
    assert cheapest_choice([[4, 8], [4, 8]], [[1, 0], [1, 0]], 7) is None


def test_budget_for_everything_takes_the_cheapest_of_each():
    assert cheapest_choice([[4, 8], [4, 8]], [[1, 0], [0, 1]], 10**12).options == [1, 0]


# --- costs


def test_fisher_errors_are_those_of_the_dense_models_own_gradients(written, model):
    windows = torch.from_numpy(TOKENS)
    found = fisher_errors(model, windows)
    dense = written.dense_model(5).requires_grad_(True)
    wanted = np.zeros_like(found.numpy())
    generator = torch.Generator().manual_seed(0)
    for window in windows:
        dense.zero_grad()
        log_p = dense(window[None]).logits[0, :-1].log_softmax(-1)
        labels = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
        (-log_p.gather(1, labels)).sum().backward()
        for i, (name, matrix) in enumerate(written.matrices.items()):
            gradient = dense.get_submodule(name).weight.grad.double().numpy()
            for j, b in enumerate(PRECISIONS):
                wanted[i, j] += (gradient**2 * (matrix.dense(b) - matrix.dense(5)) ** 2).sum()
    wanted /= 2 * TOKENS.shape[0] * (TOKENS.shape[1] - 1)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-2)
    assert (found[:, -1] == 0).all()


def test_costs_at_one_precision_add_up_to_its_measured_divergence(model, costs):
    with model.using_precision(5):
        scores = evaluate(model, torch.from_numpy(TOKENS), PRECISIONS, model).results
    assert costs.base_kl == 0
    for score in scores:
        uniform = dict.fromkeys(costs.costs, score.precision)
        assert costs.uniform_kl[score.precision] == pytest.approx(score.kl, abs=1e-9)
        assert costs.predicted_kl(uniform) == pytest.approx(score.kl, rel=0.05, abs=1e-9)


def test_costs_never_rise_with_precision(costs):
    for each in costs.costs.values():
        values = [each[b] for b in PRECISIONS]
        assert values == sorted(values, reverse=True) and values[-1] == 0


def test_costs_against_an_original_start_from_its_divergence_at_the_widest(model, written):
    found = precision_costs(model, TOKENS, original=written.original)
    scores = evaluate(model, torch.from_numpy(TOKENS), PRECISIONS, written.original).results
    assert found.base_kl == pytest.approx(scores[-1].kl) and found.base_kl > 0
    uniform = dict.fromkeys(found.costs, 3)
    assert found.predicted_kl(uniform) == pytest.approx(scores[1].kl, rel=0.05)


def test_measuring_leaves_the_model_as_it_was_and_counts_its_steps(written):
    model = AnyPrecisionForCausalLM.from_quantized(written.path)
    model.set_precision(3)
    steps = []
    precision_costs(model, TOKENS, original=written.original, on_step=lambda: steps.append(1))
    assert len(steps) == measuring_steps(model, len(TOKENS), True)
    steps.clear()
    precision_costs(model, TOKENS, on_step=lambda: steps.append(1))
    assert len(steps) == measuring_steps(model, len(TOKENS), False)
    assert model.precision == 3
    assert not any(module._forward_hooks for module in model.modules())
    assert not model(torch.from_numpy(TOKENS)).logits.requires_grad


def test_costs_are_the_same_every_time(model, costs):
    assert precision_costs(model, TOKENS) == costs


def test_linear_without_part_in_the_predictions_is_an_error(written):
    model = copy.deepcopy(AnyPrecisionForCausalLM.from_quantized(written.path))
    model.model.layers[1].mlp.forward = lambda x: x
    with pytest.raises(CalibrationError, match=r"layers\.1\.mlp.*do not depend on it"):
        precision_costs(model, TOKENS)


@pytest.mark.parametrize("family", ["qwen2", "opt", "gemma2"])
def test_other_architectures(family, tmp_path):
    path = write_checkpoint(tmp_path / "out", tiny_model(family), precisions=(3, 4)).path
    model = AnyPrecisionForCausalLM.from_quantized(path)
    found = precision_costs(model, TOKENS)
    assert all(each[3] > 0 for each in found.costs.values())


# --- the map


@pytest.mark.parametrize("codebook", CODEBOOKS.values(), ids=CODEBOOKS)
def test_sizes_of_linears_are_what_inspect_counts(codebook, tmp_path):
    path = write_checkpoint(tmp_path / "out", tiny_model("llama"), codebook=codebook).path
    sizes = linear_sizes(Checkpoint(path))
    for row in inspect_checkpoint(path).sizes:
        assert sum(size.bytes[row.precision] for size in sizes) == row.planes + row.codebooks


def test_map_is_the_best_within_the_target(written, costs):
    sizes = linear_sizes(Checkpoint(written.path))
    uniform = {s.precision: s.bits_per_weight for s in inspect_checkpoint(written.path).sizes}
    last = float("inf")
    for target in np.linspace(uniform[2], uniform[5], 9):
        found = solve(sizes, costs, float(target))
        assert found.bits_per_weight <= target + 1e-9
        assert found.predicted_kl == pytest.approx(costs.predicted_kl(found.map.precisions))
        assert found.predicted_kl <= last
        last = found.predicted_kl
    for b in PRECISIONS:  # a precision's own size is enough for it
        assert solve(sizes, costs, uniform[b]).predicted_kl <= costs.predicted_kl(
            dict.fromkeys(costs.costs, b)
        )
    assert set(solve(sizes, costs, uniform[2]).map.precisions.values()) == {2}
    assert set(solve(sizes, costs, 99.0).map.precisions.values()) == {5}


def test_target_below_the_lowest_precision_is_an_error_that_names_its_size(written, text_file):
    message = r"target_bits 2: wanted a number of at least 3\.\d+, what precision 2"
    with pytest.raises(PrecisionError, match=message):
        allocate(written.path, [2], dataset=str(text_file))


@pytest.mark.parametrize("target", [float("nan"), float("inf")])
def test_target_that_is_no_number_is_an_error(written, target, text_file):
    with pytest.raises(PrecisionError, match="wanted a number"):
        allocate(written.path, [target], dataset=str(text_file))


def test_predictions_that_are_not_finite_are_an_error(written):
    model = AnyPrecisionForCausalLM.from_quantized(written.path)
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(CalibrationError, match="predictions are not numbers"):
        precision_costs(model, TOKENS)


# --- the command


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def options(written, text_file):
    return ["allocate", written.path, "--dataset", text_file, "--num-examples", 3, "--seq-len", 32]


def test_command_writes_a_map_for_each_target_the_same_every_time(written, options, tmp_path):
    texts = []
    for folder in ("a", "b"):
        out = tmp_path / folder / "map-{bits}.json"
        result = run(
            *(*options, "--target-bits", 5, "--target-bits", 6.5, "--out", out, "--json", "-")
        )
        assert result.exit_code == 0, result.output
        texts.append([(tmp_path / folder / f"map-{b}.json").read_text() for b in ("5", "6.5")])
    assert texts[0] == texts[1]

    report = json.loads(result.stdout)
    checkpoint = Checkpoint(written.path)
    for row, target in zip(report["maps"], (5, 6.5), strict=True):
        found = read_precision_map(row["file"], checkpoint)
        assert found.precisions == row["precisions"]
        assert found.codes_sha256 == checkpoint_identity(checkpoint)
        assert found.made["target_bits"] == row["target_bits"] == target
        assert found.made["bits_per_weight"] == row["bits_per_weight"] <= target
        assert found.made["text"]["dataset"] == "numbers.txt"
        assert sum(row["linears"].values()) == 14
        assert [uniform["precision"] for uniform in row["uniform"]] == list(PRECISIONS)


def test_command_prints_uniform_precisions_and_the_map(written, options, tmp_path, monkeypatch):
    written.original.save_pretrained(tmp_path / "original")
    byte_tokenizer().save_pretrained(tmp_path / "original")
    monkeypatch.chdir(tmp_path)
    result = run(*options, "--target-bits", 5, "--original", tmp_path / "original")
    assert result.exit_code == 0, result.output
    assert "map-5.json" in result.stdout and "bits per weight" in result.stdout
    assert json.loads((tmp_path / "map-5.json").read_text())["made"]["reference"] == "original"


@pytest.mark.parametrize("out", ["same.json", "map-{bits}.json"])
def test_two_targets_for_one_file_are_wrong_usage(options, out):
    targets = (5, 5) if "{" in out else (5, 6)
    result = run(
        *(*options, "--out", out, "--target-bits", targets[0], "--target-bits", targets[1])
    )
    assert result.exit_code == 2
    assert "--target-bits" in result.stderr if "{" in out else "--out" in result.stderr


def test_command_errors_are_one_line(options):
    result = run(*options, "--target-bits", 1)
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1 and "target_bits 1" in result.stderr
