"""A distillation step: its parts against plain computations, and its ways against each other."""

import dataclasses

import numpy as np
import pytest
import torch

import anyprec.divergence
import anyprec.teacher
from anyprec import AnyPrecisionForCausalLM
from anyprec.blocks import Blocks, block_names
from anyprec.distill import DistillOptions, default_learning_rate, distill, held_out_kl
from anyprec.distill_step import DistillStep
from anyprec.divergence import kl_backward, kl_sum
from anyprec.linear import AnyPrecisionLinear
from anyprec.output_head import HeadError, check_head, last_hidden, output_head
from anyprec.table_linear import TrainableCodebooks
from anyprec.teacher import teach
from anyprec.training import fused_norms
from checkpoints import FAMILIES, VOCABULARY, each_codebook, tiny_model, write_checkpoint
from matrices import random_matrix

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ROWS = np.random.default_rng(0).integers(0, 256, (10, 24))


@pytest.fixture(scope="module", **each_codebook("lut by groups"))
def written(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("step") / "out"
    return write_checkpoint(path, tiny_model("llama-tied"), codebook=request.param)


class Setup:
    """A student with trainable codebooks attached, and a teacher, on a device."""

    def __init__(self, written, device, precision=3, head=None):
        self.student = AnyPrecisionForCausalLM.from_quantized(
            written.path, precisions=[precision], device=device, dtype="float32"
        )
        if head is not None:
            self.student.lm_head = head
        original = tiny_model("llama-tied").to(device)
        self.teacher = teach(original, ROWS[:8], ROWS[8:])
        linears = {
            n: m for n, m in self.student.named_modules() if isinstance(m, AnyPrecisionLinear)
        }
        self.codebooks = TrainableCodebooks(linears, precision)
        self.blocks = Blocks(self.student, linears)

    def gradient(self, rows, recompute=None, **options):
        """Loss and gradient of one step."""
        with self.codebooks.attached(), self.blocks.attached():
            step = DistillStep(
                self.student, self.codebooks, self.blocks, self.teacher, len(rows), **options
            )
            if recompute is not None:
                self.blocks.recompute = recompute
            loss = step(rows).item()
        return loss, self.codebooks.offset.grad.clone()


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_hidden_states_give_the_models_logits(family, tmp_path):
    model = tiny_model(family)
    ids = torch.from_numpy(ROWS[:2])
    head = output_head(model)
    wanted = model(input_ids=ids).logits
    torch.testing.assert_close(head(last_hidden(model, ids)), wanted)
    torch.testing.assert_close(head.kept()(last_hidden(model, ids)), wanted)
    assert torch.equal(model(input_ids=ids).logits, wanted)  # the model is as it was
    student = AnyPrecisionForCausalLM.from_quantized(
        write_checkpoint(tmp_path / "out", model).path, precisions=[4]
    )
    torch.testing.assert_close(
        output_head(student)(last_hidden(student, ids)), student(input_ids=ids).logits
    )


def test_a_model_that_changes_its_logits_is_refused():
    model = tiny_model("llama")
    forward = model.forward

    def biased(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits + 1
        return output

    model.forward = biased
    with pytest.raises(HeadError, match="LlamaForCausalLM: its head's output is off its logits"):
        check_head(model, output_head(model), torch.from_numpy(ROWS[:1]))


def test_divergence_and_its_gradient_do_not_depend_on_the_pieces(monkeypatch):
    torch.manual_seed(0)
    p_head, q_head = (output_head(tiny_model("llama", vocab_size=v)) for v in (320, 300))
    wanted = torch.randn(2, 9, 48)
    hidden = torch.randn(2, 9, 48, requires_grad=True)
    p = p_head(wanted)[..., :300].detach().log_softmax(-1)
    q = q_head(hidden).log_softmax(-1)
    plain = (p.exp() * (p - q)).sum()
    (gradient,) = torch.autograd.grad(plain / 18, hidden)
    for logits in (1, 5 * 320, 1 << 20):
        monkeypatch.setattr(anyprec.divergence, "_LOGITS", logits)
        hidden.grad = None
        loss = kl_backward(hidden * 1, q_head, wanted, p_head, 18)
        assert loss.item() == pytest.approx(plain.item() / 18, rel=1e-5)
        torch.testing.assert_close(hidden.grad, gradient, rtol=1e-4, atol=1e-7)
        assert kl_sum(hidden, q_head, wanted, p_head).item() == pytest.approx(
            plain.item(), rel=1e-5
        )


def test_gradient_of_a_head_with_a_soft_cap():
    torch.manual_seed(0)
    p_head, q_head = (
        dataclasses.replace(output_head(tiny_model("llama")), softcap=2.0) for _ in range(2)
    )
    wanted = torch.randn(1, 7, 48)
    hidden = 30 * torch.randn(1, 7, 48)
    hidden.requires_grad_()
    p = p_head(wanted).detach().log_softmax(-1)
    q = q_head(hidden).log_softmax(-1)
    (gradient,) = torch.autograd.grad((p.exp() * (p - q)).sum() / 7, hidden)
    kl_backward(hidden * 1, q_head, wanted, p_head, 7)
    torch.testing.assert_close(hidden.grad, gradient, rtol=1e-4, atol=1e-8)


def test_blocks_are_what_linears_are_in():
    names = ["model.layers.3.mlp.up_proj", "model.layers.3.self_attn.q_proj", "lm_head"]
    assert block_names([*names, "h.11.attn"]) == ["model.layers.3", "h.11"]


def test_blocks_in_a_capture_get_the_masks_of_the_call_before(written):
    setup = Setup(written, "cpu")
    ids = torch.from_numpy(ROWS[:1])
    hiding = torch.ones_like(ids)
    hiding[:, :9] = 0  # other masks than before
    with setup.blocks.attached(), torch.no_grad():
        plain = setup.student(input_ids=ids).logits
        with setup.blocks.captured():
            assert torch.equal(setup.student(input_ids=ids, attention_mask=hiding).logits, plain)
        assert not torch.equal(setup.student(input_ids=ids, attention_mask=hiding).logits, plain)


@pytest.mark.parametrize("device", DEVICES)
def test_recomputed_blocks_give_the_same_gradients(written, device):
    setup = Setup(written, device)
    loss, gradient = setup.gradient([0, 3], recompute=False, cuda_graph=False)
    again = setup.gradient([0, 3], recompute=True, cuda_graph=False)
    assert again[0] == loss
    assert torch.equal(again[1], gradient)


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_has_the_mean_gradient_of_its_sequences(written, device):
    setup = Setup(written, device)
    loss, gradient = setup.gradient([1, 4, 6])
    each = [setup.gradient([row]) for row in (1, 4, 6)]
    assert loss == pytest.approx(np.mean([loss for loss, _ in each]), rel=1e-3)
    mean = sum(gradient for _, gradient in each) / 3
    torch.testing.assert_close(gradient, mean, rtol=2e-2, atol=2e-3 * mean.abs().max().item())


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_is_the_slope_of_the_loss(written, device):
    setup = Setup(written, device)
    _, gradient = setup.gradient([2])
    direction = gradient / gradient.norm()
    # Rounding to fp16 hides what is smaller; with few parameters the loss bends sooner.
    table_bits = next(iter(written.matrices.values())).codebook["lut_bits"]
    size = 0.1 if table_bits else 0.05
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            setup.codebooks.offset += sign * size * direction
        values.append(setup.gradient([2])[0])
        with torch.no_grad():
            setup.codebooks.offset -= sign * size * direction
    assert (values[0] - values[1]) / (2 * size) == pytest.approx(gradient.norm().item(), rel=3e-2)


@pytest.mark.parametrize(("dtype", "cosine"), [(torch.bfloat16, 0.999), (torch.float16, 0.99999)])
@pytest.mark.parametrize("device", DEVICES)
def test_mixed_precision_gives_nearly_the_same_gradient(written, device, dtype, cosine):
    setup = Setup(written, device)
    loss, gradient = setup.gradient([1, 4])
    found = setup.gradient([1, 4], autocast=dtype)
    assert found[0] != loss and found[0] == pytest.approx(loss, rel=1e-2)
    assert torch.cosine_similarity(found[1], gradient, dim=0) > cosine
    assert found[1].norm().item() == pytest.approx(gradient.norm().item(), rel=1e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("size", "dtype"), [(1.0, torch.float16), (1e6, torch.bfloat16)])
def test_a_model_beyond_half_precisions_range_gets_bfloat16(written, device, size, dtype):
    setup = Setup(written, device)
    with torch.no_grad():
        for name, module in setup.student.named_modules():
            if name.endswith("post_attention_layernorm"):
                module.weight *= size
    with setup.codebooks.attached(), setup.blocks.attached():
        step = DistillStep(
            setup.student, setup.codebooks, setup.blocks, setup.teacher, 2, autocast=torch.float16
        )
        assert step.autocast == dtype
        step([0, 1])
    assert setup.codebooks.offset.grad.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_fused_norms_compute_what_the_models_own_do(family, device):
    model = tiny_model(family).to(device)
    ids = torch.from_numpy(ROWS[:2]).to(device)
    with torch.no_grad():
        for norm in (m for n, m in model.named_modules() if n.endswith("norm")):
            if norm.weight is not None:
                norm.weight += 0.3 * torch.randn_like(norm.weight)
        wanted = last_hidden(model, ids)
        with fused_norms(model):
            found = last_hidden(model, ids)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(last_hidden(model, ids), wanted)


def test_only_norms_that_are_torchs_own_are_fused():
    llama, gemma = tiny_model("llama").model.norm, tiny_model("gemma2").model.norm
    for norm, fused in ((llama, True), (gemma, False)):
        holder = torch.nn.Sequential(norm)
        with fused_norms(holder):
            assert ("forward" in norm.__dict__) == fused
        assert "forward" not in norm.__dict__


def quantized_head(precision):
    matrix = random_matrix(VOCABULARY, 48, precision)
    return AnyPrecisionLinear(matrix.canonical, {precision: matrix.lut}, in_features=48)


def test_a_quantized_head_learns_too_whatever_the_pieces(written, monkeypatch):
    found = []
    for logits in (7 * VOCABULARY, 1 << 20):
        monkeypatch.setattr(anyprec.divergence, "_LOGITS", logits)
        setup = Setup(written, "cpu", head=quantized_head(3))
        found.append(setup.gradient([0, 5]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)
    assert list(setup.codebooks.layers)[-1] == "lm_head"
    of_head = found[0][1][-VOCABULARY * 8 :]
    assert of_head.abs().max() > 0

    def loss(shift):
        with torch.no_grad():
            setup.codebooks.offset[-VOCABULARY * 8 :] += shift
        return setup.gradient([0, 5])[0]

    step = 0.3 * of_head / of_head.norm()
    slope = (loss(step) - loss(-2 * step)) / 0.6
    assert slope == pytest.approx(of_head.norm().item(), rel=3e-2)


def test_held_out_divergence_is_that_of_the_models(written):
    setup = Setup(written, "cpu", precision=4)
    with setup.codebooks.attached():
        found = held_out_kl(setup.student, setup.teacher, setup.codebooks)
    ids = torch.from_numpy(ROWS[8:])
    with torch.no_grad():
        p = tiny_model("llama-tied")(ids).logits.double().log_softmax(-1)
        q = written.dense_model(4)(ids).logits.double().log_softmax(-1)
    assert found == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=5e-3)


def test_learning_rates_are_those_of_the_form():
    assert default_learning_rate(2, lut_bits=3) == default_learning_rate(2, lut_bits=8) == 1e-2
    assert default_learning_rate(2, lut_bits=0) == 5e-3
    assert default_learning_rate(4, lut_bits=0) == default_learning_rate(4, lut_bits=4) == 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [False, True])
def test_a_graph_gives_the_eager_gradients(written, recompute, monkeypatch):
    share = 0.0 if recompute else 1.0
    monkeypatch.setattr("anyprec.distill_step._ACTIVATIONS_SHARE", share)
    setup = Setup(written, "cuda")
    eager = [setup.gradient(rows, cuda_graph=False) for rows in ([0, 1], [5, 2])]
    with setup.codebooks.attached(), setup.blocks.attached():
        step = DistillStep(setup.student, setup.codebooks, setup.blocks, setup.teacher, 2)
        assert step.recomputes == recompute
        for rows, (loss, gradient) in zip(([0, 1], [5, 2]), eager, strict=True):
            assert step(rows).item() == pytest.approx(loss, rel=1e-5)
            found = setup.codebooks.offset.grad
            torch.testing.assert_close(
                found, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item()
            )


@pytest.mark.gpu
def test_states_in_pinned_memory_give_the_same_bytes(written, monkeypatch):
    on_gpu = Setup(written, "cuda")
    loss, gradient = on_gpu.gradient([0, 7])
    monkeypatch.setattr(anyprec.teacher, "GPU_SHARE", 0.0)
    in_ram = Setup(written, "cuda")
    assert in_ram.teacher.training.hidden.is_pinned()
    found = in_ram.gradient([0, 7])
    assert found[0] == loss
    assert torch.equal(found[1], gradient)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_distilling_on_a_gpu_gives_the_same_bytes_and_a_lower_divergence(written, cuda_graph):
    results = []
    for _ in range(2):
        setup = Setup(written, "cuda", precision=2)
        options = DistillOptions(steps=30, batch_size=4, cuda_graph=cuda_graph)
        results.append(distill(setup.student, setup.teacher, 2, options))
    (outcome, codebooks), (again, same) = results
    assert outcome == again
    assert outcome.kept and outcome.after < 0.98 * outcome.before
    for name, (lut, alpha) in codebooks.items():
        assert torch.equal(lut, same[name][0])
        assert alpha is None or torch.equal(alpha, same[name][1])
