"""Sensitivities against a plain autograd loop, and what calibration leaves untouched."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from anyprec.calibrate import LOSS_SCALE, CalibrationError, placed, sensitivities
from checkpoints import linears_of, tiny_model

TOKENS = np.random.default_rng(3).integers(0, 256, size=(3, 24))


def plain_loop(model, names, tokens):
    """sum over sequences of (d scaled mean loss / d weight)^2, one sequence and graph at a time."""
    weights = [model.get_submodule(name).weight for name in names]
    sums = [torch.zeros(weight.shape) for weight in weights]
    for row in tokens:
        ids = torch.tensor(row)[None]
        logits = model(input_ids=ids, use_cache=False).logits.float()
        log_p = torch.log_softmax(logits[0, :-1], dim=-1)
        loss = -log_p.gather(1, ids[0, 1:, None]).mean()
        for total, gradient in zip(
            sums, torch.autograd.grad(loss * LOSS_SCALE, weights), strict=True
        ):
            total += gradient.float() ** 2
    return dict(zip(names, sums, strict=True))


class Shared(nn.Module):
    """A causal LM whose one block is applied twice, and whose last two layers share a weight."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, 16)
        self.twice = nn.Linear(16, 16)
        self.left = nn.Linear(16, 16)
        self.right = nn.Linear(16, 16)
        self.right.weight = self.left.weight
        self.head = nn.Linear(16, 256)

    def forward(self, input_ids, use_cache=False):
        h = self.embedding(input_ids)
        h = torch.tanh(self.twice(torch.tanh(self.twice(h))))
        return SimpleNamespace(logits=self.head(self.left(h) * self.right(h)))


@pytest.mark.parametrize("family", ["llama", "llama-tied", "opt", "gemma2"])
def test_equals_a_plain_autograd_loop(family):
    model = tiny_model(family)
    names = list(linears_of(model))
    found = sensitivities(model, names, TOKENS)
    wanted = plain_loop(model, names, TOKENS)
    assert list(found) == names
    for name in names:
        assert found[name].dtype == torch.float32
        assert wanted[name].max() > 0
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-9)


def test_is_the_sum_of_squares_not_the_square_of_the_sum():
    model = tiny_model("llama")
    name = "model.layers.0.self_attn.q_proj"
    whole = sensitivities(model, [name], TOKENS)[name]
    parts = sum(sensitivities(model, [name], TOKENS[i : i + 1])[name] for i in range(3))
    torch.testing.assert_close(whole, parts, rtol=1e-6, atol=0)


def test_a_reused_layer_has_the_gradient_of_all_its_uses():
    torch.manual_seed(0)
    model = Shared()
    names = ["twice", "left", "right"]
    found = sensitivities(model, names, TOKENS)
    wanted = plain_loop(model, ["twice", "left"], TOKENS)
    torch.testing.assert_close(found["twice"], wanted["twice"], rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found["left"], wanted["left"], rtol=1e-4, atol=1e-9)
    assert torch.equal(found["left"], found["right"])


def test_squares_of_bf16_gradients_are_accumulated_in_fp32():
    model = tiny_model("llama", torch.bfloat16)
    names = list(linears_of(model))
    found = sensitivities(model, names, TOKENS)
    wanted = plain_loop(model, names, TOKENS)
    for name in names:
        # Two ways to the same loss differ by bf16's rounding of the gradients, not by that of sums.
        ratio = found[name].sum() / wanted[name].sum()
        assert ratio == pytest.approx(1, abs=0.02)
        assert not torch.equal(found[name], found[name].bfloat16().float())


def test_flags_and_gradients_are_as_before():
    model = tiny_model("llama")
    model.lm_head.weight.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sensitivities(model, ["model.layers.1.mlp.up_proj"], TOKENS)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == flags[name]
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_repeated_runs_agree_to_the_bit():
    model = tiny_model("llama")
    names = list(linears_of(model))
    first, second = (sensitivities(model, names, TOKENS) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in names)


def test_reports_every_sequence_with_its_loss():
    model = tiny_model("llama")
    seen = []
    sensitivities(
        model,
        ["model.layers.0.mlp.up_proj"],
        TOKENS,
        on_sequence=lambda index, loss: seen.append((index, loss)),
    )
    ids = torch.tensor(TOKENS[1])[None]
    loss = model(input_ids=ids, labels=ids).loss.item()
    assert [index for index, _ in seen] == [0, 1, 2]
    assert seen[1][1] == pytest.approx(loss, rel=1e-5)


def test_an_unused_layer_is_an_error_that_names_it():
    model = Shared()
    model.idle = nn.Linear(4, 4)
    with pytest.raises(CalibrationError, match=r"idle\.weight: the loss does not depend on it"):
        sensitivities(model, ["twice", "idle"], TOKENS)


def test_a_gradient_that_is_not_finite_is_an_error_that_names_the_layer():
    model = Shared()
    with torch.no_grad():
        model.twice.weight[0, 0] = float("nan")
    with pytest.raises(CalibrationError, match=r"twice\.weight: its gradient .* is not finite"):
        sensitivities(model, ["twice"], TOKENS)


@pytest.mark.parametrize("computed", [torch.float32, torch.float16])
def test_placing_a_model_gives_its_weights_back_unchanged(computed):
    model = tiny_model("llama", torch.bfloat16)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    rotary = model.model.rotary_emb.inv_freq.clone()
    with placed(model, torch.device("cpu"), computed) as inside:
        assert {p.dtype for p in inside.parameters()} == {computed}
        assert inside.model.rotary_emb.inv_freq.dtype == rotary.dtype
    after = model.state_dict()
    assert all(torch.equal(after[n], t) and after[n].dtype == t.dtype for n, t in before.items())
    assert torch.equal(model.model.rotary_emb.inv_freq, rotary)


def test_placing_keeps_tied_weights_tied():
    model = tiny_model("llama-tied", torch.bfloat16)
    with placed(model, torch.device("cpu"), torch.float32) as inside:
        assert inside.lm_head.weight is inside.model.embed_tokens.weight
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_agrees_with_the_cpu_and_with_itself_to_the_bit(dtype):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model = tiny_model("llama")
    names = list(linears_of(model))
    wanted = sensitivities(model, names, TOKENS)
    runs = []
    for _ in range(2):
        with placed(model, torch.device("cuda"), dtype) as inside:
            runs.append({n: s.cpu() for n, s in sensitivities(inside, names, TOKENS).items()})
    for name in names:
        assert torch.equal(runs[0][name], runs[1][name])
        ratio = runs[0][name].sum() / wanted[name].sum()
        assert ratio == pytest.approx(1, abs=1e-3 if dtype == torch.float32 else 0.05)
