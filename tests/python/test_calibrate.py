"""Sums against a plain autograd loop, in one pass and in segments, and what is left untouched."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from anyprec.calibrate import (
    LOSS_SCALE,
    CalibrationError,
    calibrate,
    drawn,
    placed,
    sensitivities,
    steps,
)
from anyprec.calibration_plan import Plan, make_plan
from anyprec.patching import replaced_forward
from anyprec.recording import CaptureError, Recording
from anyprec.segments import SegmentError
from checkpoints import linears_of, tiny_model

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
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


def plain_hessians(model, names, tokens):
    """sum over positions of mean over channels (d scaled loss / d y)^2 x x^T, in fp64."""
    seen = {}

    def keep(name):
        def hook(module, args, output):
            output.retain_grad()
            seen[name] = (args[0].detach(), output)

        return hook

    handles = [model.get_submodule(n).register_forward_hook(keep(n)) for n in names]
    sums = {}
    for row in tokens:
        ids = torch.tensor(row)[None]
        logits = model(input_ids=ids, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        (loss * LOSS_SCALE).backward()
        for name, (x, y) in seen.items():
            # OPT hands its feed-forward layers [positions, channels].
            x, g = x.flatten(0, -2).double(), y.grad.flatten(0, -2).double()
            h = (x * g.square().mean(1, keepdim=True)).T @ x
            sums[name] = sums[name] + h if name in sums else h
    for handle in handles:
        handle.remove()
    return sums


def sums_of(
    model,
    names,
    plan=None,
    dtype=torch.float32,
    device=CPU,
    scratch=None,
    tokens=TOKENS,
    **options,
):
    found = {}
    calibrate(
        model,
        names,
        tokens,
        lambda name, sums: found.update({name: sums}),
        device=device,
        dtype=dtype,
        hessians=True,
        plan=plan,
        scratch=scratch,
        **options,
    )
    return found


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2", "opt", "gemma2"])
def test_guided_hessians_equal_a_plain_loop(family):
    model = tiny_model(family)
    names = list(linears_of(model))
    found = sums_of(model, names)
    wanted = plain_hessians(tiny_model(family), names, TOKENS)
    for name in names:
        hessian = found[name].hessian
        assert hessian.dtype == torch.float32
        assert torch.equal(hessian, hessian.T)
        torch.testing.assert_close(
            hessian.double(), wanted[name], rtol=1e-4, atol=1e-5 * wanted[name].abs().max().item()
        )


def test_labels_of_the_model_are_drawn_by_its_predictions():
    logits = torch.tensor([0.0, 2.0, -1.0, 1.0, -30.0])
    tokens = drawn(logits.expand(40000, 5), torch.Generator().manual_seed(0))
    shares = torch.bincount(tokens, minlength=5) / len(tokens)
    torch.testing.assert_close(shares, logits.softmax(0), rtol=0, atol=0.01)


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_that_is_certain_draws_what_it_predicts(device):
    model = tiny_model("llama").to(device)
    pairs = torch.tensor(TOKENS[:, :2], device=device)
    with torch.no_grad():
        model.lm_head.weight *= 3e4
        pairs[:, 1] = model(input_ids=pairs).logits[:, 0].argmax(-1)
    tokens = pairs.cpu().numpy()
    names = list(linears_of(model))
    of_text, of_model = (
        sums_of(model, names, device=torch.device(device), labels=labels, tokens=tokens)
        for labels in ("text", "model")
    )
    for name in names:
        assert torch.equal(of_text[name].hessian, of_model[name].hessian)


def test_labels_of_the_model_do_not_depend_on_segments_or_runs(tmp_path):
    model = tiny_model("llama", **FIVE)
    names = list(linears_of(model))
    wanted = sums_of(model, names, labels="model")
    of_text = sums_of(model, names)
    for plan in (None, PLANS["moved"]):
        found = sums_of(model, names, plan, scratch=tmp_path, labels="model")
        for name in names:
            assert torch.equal(found[name].sensitivities, wanted[name].sensitivities)
            assert torch.equal(found[name].hessian, wanted[name].hessian)
            assert not torch.equal(found[name].hessian, of_text[name].hessian)


def test_linears_that_share_an_input_have_hessians_of_their_own():
    model = tiny_model("llama")
    q, k = (f"model.layers.0.self_attn.{name}_proj" for name in "qk")
    found = sums_of(model, [q, k])
    assert not torch.allclose(found[q].hessian, found[k].hessian)


FIVE = {"num_hidden_layers": 5}
PLANS = {
    "two": Plan(((0, 2), (2, 5)), True, "device", 0, 0),
    "moved": Plan(((0, 1), (1, 3), (3, 5)), False, "memory", 0, 0),
    "each, on disk": Plan(tuple((i, i + 1) for i in range(5)), False, "disk", 0, 0),
}


class TestSegments:
    @pytest.mark.parametrize("plan", PLANS)
    @pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2", "opt", "gemma2"])
    def test_the_sums_are_those_of_one_pass_to_the_bit(self, family, plan, tmp_path):
        model = tiny_model(family, **FIVE)
        names = list(linears_of(model))
        before = {name: t.clone() for name, t in model.state_dict().items()}
        for dtype in (torch.float32, torch.bfloat16):
            wanted = sums_of(model, names, dtype=dtype)
            found = sums_of(model, names, PLANS[plan], dtype, scratch=tmp_path)
            assert set(found) == set(names)
            for name in names:
                assert torch.equal(found[name].sensitivities, wanted[name].sensitivities)
                assert torch.equal(found[name].hessian, wanted[name].hessian)
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert all("forward" not in vars(module) for module in model.modules())
        assert list(tmp_path.iterdir()) == []

    def test_layers_before_and_after_the_blocks_count_too(self):
        # OPT with a narrower embedding has project_in and project_out.
        model = tiny_model("opt", **FIVE, word_embed_proj_dim=32)
        names = ["model.decoder.project_in", *linears_of(model), "model.decoder.project_out"]
        wanted, found = sums_of(model, names), sums_of(model, names, PLANS["moved"])
        assert set(found) == set(names)
        for name in names:
            assert torch.equal(found[name].sensitivities, wanted[name].sensitivities)
            assert torch.equal(found[name].hessian, wanted[name].hessian)

    def test_only_what_is_wanted_is_summed_and_only_as_far_as_needed(self):
        model = tiny_model("llama", **FIVE)
        names = ["model.layers.3.mlp.up_proj", "model.layers.4.self_attn.q_proj"]
        done = []
        found = sums_of(model, names, PLANS["moved"], on_step=lambda: done.append(1))
        assert list(found) == names
        wanted = sums_of(model, names)
        assert all(torch.equal(found[n].hessian, wanted[n].hessian) for n in names)
        # Forward through the first two of three segments, backward through the last alone.
        assert len(done) == 3 * len(TOKENS)

    def test_an_interrupted_pass_goes_on_from_the_last_border(self):
        model = tiny_model("llama", **FIVE)
        names = list(linears_of(model))
        wanted = sums_of(model, names)
        borders, done = Kept(), {}

        def stop_at(block):
            def on_sums(name, sums):
                if name.startswith(f"model.layers.{block}."):
                    raise KeyboardInterrupt
                done[name] = sums

            return on_sums

        settings = {"device": CPU, "dtype": torch.float32, "hessians": True, "borders": borders}
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, names, TOKENS, stop_at(1), plan=PLANS["moved"], **settings)
        assert borders.block == 3
        rest = [name for name in names if name not in done]
        told = {"on_step": [], "on_sequence": []}
        callbacks = {key: lambda *a, key=key: told[key].append(a) for key in told}
        found = sums_of(model, rest, PLANS["moved"], borders=borders, **callbacks)
        assert not told["on_sequence"]  # the loss was not computed again
        assert len(told["on_step"]) == steps(PLANS["moved"], len(TOKENS))
        for name in names:
            assert torch.equal({**done, **found}[name].hessian, wanted[name].hessian)
        # A linear behind the border that is wanted after all means the whole pass.
        again = sums_of(model, names, PLANS["moved"], borders=borders, **callbacks)
        assert len(told["on_sequence"]) == len(TOKENS)
        assert all(torch.equal(again[n].hessian, wanted[n].hessian) for n in names)

    def test_every_step_is_told(self):
        model = tiny_model("llama", **FIVE)
        done, losses = [], []
        sums_of(
            model,
            list(linears_of(model)),
            PLANS["moved"],
            on_step=lambda: done.append(1),
            on_sequence=lambda index, loss: losses.append(index),
        )
        assert len(done) == steps(PLANS["moved"], len(TOKENS)) == 15
        assert losses == [0, 1, 2]

    def test_the_last_segments_sums_come_first(self):
        model = tiny_model("llama", **FIVE)
        order = list(sums_of(model, list(linears_of(model)), PLANS["moved"]))
        blocks = [int(name.split(".")[2]) for name in order]
        assert blocks[0] == 3
        assert blocks[-1] == 0

    def test_an_error_in_the_middle_leaves_the_model_as_it_was(self, tmp_path):
        model = tiny_model("llama", torch.bfloat16, **FIVE)
        before = {name: t.clone() for name, t in model.state_dict().items()}

        def stop(name, sums):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            calibrate(
                model,
                list(linears_of(model)),
                TOKENS,
                stop,
                device=CPU,
                dtype=torch.float32,
                plan=PLANS["each, on disk"],
                scratch=tmp_path,
            )
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert all("forward" not in vars(module) for module in model.modules())
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("skip", r"block 2 \(Block\) gets more than the hidden state from the blocks before"),
            ("mixed", r"block 1 \(Block\) does not get what the block before it returned"),
            ("swapped", r"block 1 \(Block\) was called where block 0 was wanted"),
            ("extra", r"block 0 \(Block\) returns more than a hidden state"),
            ("summed", "its logits depend on more than the last block"),
        ],
    )
    def test_a_model_whose_blocks_are_no_chain_is_refused(self, kind, message):
        model = Chain(kind)
        names = ["layers.0.linear", "layers.2.linear"]
        assert set(sums_of(model, names)) == set(names)
        plan = Plan(((0, 1), (1, 2), (2, 3)), True, "device", 0, 0)
        with pytest.raises(SegmentError, match=message):
            sums_of(model, names, plan)


class Kept:
    """The latest border's gradients, in memory."""

    block = None

    def load(self, block):
        return self.gradients if block == self.block else None

    def save(self, block, gradients):
        self.block, self.gradients = block, gradients.clone()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, h, other=None, extra=False):
        out = h + torch.tanh(self.linear(h if other is None else h + other))
        return (out, out.mean()) if extra else out


class Chain(nn.Module):
    """A causal LM of three blocks with one connection more than a chain."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.embedding = nn.Embedding(256, 16)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(16, 256)

    def forward(self, input_ids, use_cache=False):
        states = [self.embedding(input_ids)]
        for i in (1, 0, 2) if self.kind == "swapped" else (0, 1, 2):
            h = states[-1] * 2 if self.kind == "mixed" and i == 1 else states[-1]
            other = states[1] if self.kind == "skip" and i == 2 else None
            out = self.layers[i](h, other, extra=self.kind == "extra")
            states.append(out[0] if self.kind == "extra" else out)
        h = sum(states) if self.kind == "summed" else states[-1]
        return SimpleNamespace(logits=self.head(h))


def test_a_layer_that_is_never_called_has_no_hessian_and_is_named():
    class Uncalled(Shared):
        def forward(self, input_ids, use_cache=False):
            h = torch.tanh(nn.functional.linear(self.embedding(input_ids), self.twice.weight))
            return SimpleNamespace(logits=self.head(h))

    with pytest.raises(CalibrationError, match=r"twice: its weight is used, but .* never called"):
        sums_of(Uncalled(), ["twice"])


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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_segments_on_a_gpu_give_the_sums_of_one_pass(dtype, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    device = torch.device("cuda", 0)
    model = tiny_model("llama", **FIVE)
    names = list(linears_of(model))
    wanted = sums_of(model, names, dtype=dtype, device=device)
    for plan in PLANS.values():
        found = sums_of(model, names, plan, dtype, device, tmp_path)
        for name in names:
            assert found[name].hessian.is_cuda
            assert torch.equal(found[name].sensitivities, wanted[name].sensitivities)
            assert torch.equal(found[name].hessian, wanted[name].hessian)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    on_cpu = sums_of(model, names)
    for name in names:
        ratio = wanted[name].hessian.trace().cpu() / on_cpu[name].hessian.trace()
        assert ratio == pytest.approx(1, abs=1e-3 if dtype == torch.float32 else 0.05)


@pytest.mark.gpu
def test_a_gpu_takes_no_more_than_planned():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    device = torch.device("cuda", 0)
    model = tiny_model(
        "llama",
        torch.bfloat16,
        num_hidden_layers=8,
        hidden_size=1024,
        intermediate_size=2816,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=512,
    )
    names = list(linears_of(model))
    tokens = np.random.default_rng(0).integers(0, 256, size=(4, 512))
    settings = {"device": device, "dtype": torch.bfloat16, "hessians": True}
    calibrate(model, names[:1], tokens[:1], lambda name, sums: None, **settings)  # cuBLAS' own
    whole = make_plan(model, names, tokens.shape, **settings)
    small = make_plan(model, names, tokens.shape, max_memory=whole.device_bytes // 2, **settings)
    assert len(whole.segments) < len(small.segments)
    for plan in (whole, small):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        calibrate(model, names, tokens, lambda name, sums: None, plan=plan, **settings)
        assert torch.cuda.max_memory_allocated() - before <= plan.device_bytes


@pytest.mark.gpu
@pytest.mark.parametrize("labels", ["text", "model"])
@pytest.mark.parametrize("family", ["llama-tied", "gemma2", "opt"])
def test_a_graph_gives_the_sums_of_single_launches(family, labels, monkeypatch):
    model = tiny_model(family).cuda()
    names = list(linears_of(model))
    settings = {"device": torch.device("cuda", 0), "labels": labels}
    captured = []
    capture = Recording.capture
    monkeypatch.setattr(Recording, "capture", lambda *args: captured.append(1) or capture(*args))
    found = sums_of(model, names, **settings)
    assert captured == [1]

    def refused(*args):
        raise CaptureError("not today")

    monkeypatch.setattr(Recording, "capture", refused)
    wanted = sums_of(model, names, **settings)
    for name in names:
        assert torch.equal(found[name].sensitivities, wanted[name].sensitivities)
        assert torch.equal(found[name].hessian, wanted[name].hessian)


@pytest.mark.gpu
@pytest.mark.parametrize("labels", ["text", "model"])
def test_a_model_that_cannot_be_captured_is_calibrated_all_the_same(labels):
    model = tiny_model("llama").cuda()
    names = list(linears_of(model))
    settings = {"device": torch.device("cuda", 0), "labels": labels}
    wanted = sums_of(model, names, **settings)
    norm = model.model.norm
    forward = norm.forward

    def reading(hidden):
        assert hidden.sum().item() != 0  # the host waits for the device
        return forward(hidden)

    with replaced_forward(norm, reading):
        found = sums_of(model, names, **settings)
    for name in names:
        torch.testing.assert_close(found[name].hessian, wanted[name].hessian)
