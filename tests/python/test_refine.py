"""anyprec refine: trainable codebooks, distillation, and what is written."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from anyprec import AnyPrecisionForCausalLM
from anyprec._core import Checkpoint, FormatError, verify_checkpoint
from anyprec.blocks import Blocks
from anyprec.calibrate import placed
from anyprec.cli.app import app
from anyprec.distill import DistillError, DistillOptions, batch_rows, distill
from anyprec.distill_step import DistillStep
from anyprec.linear import AnyPrecisionLinear
from anyprec.refinement import refine
from anyprec.rewrite import rewrite_checkpoint
from anyprec.table_linear import TrainableCodebooks, codebook_basis
from anyprec.teacher import teach
from checkpoints import byte_tokenizer, each_codebook, tiny_model, write_checkpoint
from matrices import FORMS, classes_of, random_matrix

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def linear_of(matrix) -> AnyPrecisionLinear:
    return AnyPrecisionLinear(
        matrix.canonical,
        {matrix.precision: matrix.lut},
        {} if matrix.alpha is None else {matrix.precision: matrix.alpha},
        in_features=matrix.in_features,
        cell_groups=matrix.cell_groups,
        group_size=matrix.group_size,
    )


@pytest.mark.parametrize("precision", [2, 4, 6])
@pytest.mark.parametrize("cells", ["one", "io", "sym", "cell"])
def test_the_basis_is_the_forms_definition(precision, cells):
    table_bits = min(precision, 3)
    signs = precision - table_bits
    classes = classes_of(3, cells)
    shape = (signs, int(classes.max()) + 1) if signs else (0, 0)
    basis = codebook_basis(precision, 1 << table_bits, shape, cells).numpy()
    for code in range(1 << precision):
        want = np.zeros(basis.shape[1])
        want[code >> signs] = 1
        for i in range(signs):
            sign = 2 * (code >> (signs - 1 - i) & 1) - 1
            want[(1 << table_bits) + i * shape[1] + classes[code >> signs]] = sign
        np.testing.assert_array_equal(basis[code], want)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("precision", [2, 3, 5])
def test_trainable_codebooks_compute_and_differentiate_the_layer(form, precision, device):
    matrix = random_matrix(6, 96, precision, **form)
    linear = linear_of(matrix).to(device)
    trainable = TrainableCodebooks({"linear": linear}, precision)
    dense = torch.from_numpy(matrix.dense()).float().to(device)
    x = torch.randn(2, 5, 96, device=device, requires_grad=True)
    with trainable.attached():
        y = linear(x)
        torch.testing.assert_close(y, x @ dense.T, rtol=1e-4, atol=1e-5)
        out_grad = torch.randn_like(y)
        y.backward(out_grad)
        torch.testing.assert_close(x.grad, out_grad @ dense, rtol=1e-4, atol=1e-5)
        trainable.collect()
        # The loss is linear in the parameters: a gradient is the change for a step of any size.
        size = trainable.offset.numel()
        for at in {0, 1, size // 3, size - 9, size - 8}:
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    trainable.offset[at] += sign
                trainable.refresh()
                values.append((linear(x) * out_grad).sum().item())
                with torch.no_grad():
                    trainable.offset[at] -= sign
            slope = (values[0] - values[1]) / 2
            assert trainable.offset.grad[at].item() == pytest.approx(slope, rel=5e-3, abs=2e-3)
    assert "forward" not in linear.__dict__


def test_codebooks_come_out_as_they_were_stored():
    matrices = [random_matrix(6, 96, 5, **form) for form in FORMS]
    linears = {str(i): linear_of(matrix) for i, matrix in enumerate(matrices)}
    found = TrainableCodebooks(linears, 5).codebooks()
    for matrix, (lut, alpha) in zip(matrices, found.values(), strict=True):
        assert torch.equal(lut, matrix.lut)
        assert (alpha is None) == (matrix.alpha is None)
        assert alpha is None or torch.equal(alpha, matrix.alpha)


def test_batches_take_every_window_once_before_any_twice():
    batches = batch_rows(10, 4)
    rows = [row for _ in range(5) for row in next(batches)]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    again = batch_rows(10, 4)
    assert [row for _ in range(5) for row in next(again)] == rows


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    model = tiny_model("llama-tied", torch.float32)
    folder = tmp_path_factory.mktemp("original") / "tiny"
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder, model


@pytest.fixture(**each_codebook("lut by groups"))
def checkpoint(request, original, tmp_path):
    return write_checkpoint(
        tmp_path / "checkpoint", original[1], tokenizer=byte_tokenizer(), codebook=request.param
    ).path


def settings(text_file, **changes):
    return {
        "dataset": str(text_file),
        "num_examples": 20,
        "seq_len": 32,
        "held_out": 4,
        "steps": 24,
        "batch_size": 2,
        "precisions": (2, 3),
    } | changes


def tensors(directory):
    checkpoint = Checkpoint(directory)
    return {name: checkpoint.data(name).tobytes() for name in checkpoint.tensor_names()}


def test_refining_lowers_the_divergence_and_changes_only_those_codebooks(
    checkpoint, original, text_file
):
    before = tensors(checkpoint)
    config = (checkpoint / "config.json").read_bytes()
    done = refine(checkpoint, original[0], **settings(text_file))
    assert done.written
    for outcome in done.outcomes:
        assert outcome.kept and outcome.after < 0.9 * outcome.before
    after = tensors(checkpoint)
    changed = {name for name in before if before[name] != after[name]}
    assert changed and all(name.rsplit(".", 1)[1] in ("2", "3") for name in changed)
    assert all(".lut." in name or ".alpha." in name for name in changed)
    assert (checkpoint / "config.json").read_bytes() == config
    assert verify_checkpoint(checkpoint)["problems"] == []
    manifest = json.loads((checkpoint / "anyprec_manifest.json").read_text())
    assert [r["precision"] for r in manifest["options"]["refined"]["results"]] == [2, 3]
    assert manifest["options"]["made_by"] == "tests"


def test_what_is_written_is_what_was_judged(checkpoint, original, text_file):
    done = refine(checkpoint, original[0], **settings(text_file, precisions=(2,)))
    model = AnyPrecisionForCausalLM.from_quantized(checkpoint, dtype="float32")
    options = DistillOptions(steps=1, batch_size=1, learning_rate=1e-9)
    from anyprec.refinement import _tokens

    ids = _tokens(checkpoint, str(text_file), 20, 32, None).ids
    again, _ = distill(model, teach(original[1], ids[:-4], ids[-4:]), 2, options)
    assert again.before == pytest.approx(done.outcomes[0].after, rel=1e-5)


def test_the_same_request_gives_the_same_bytes(checkpoint, original, text_file, tmp_path):
    for out in ("a", "b"):
        refine(checkpoint, original[0], **settings(text_file, steps=6, out=tmp_path / out))
    assert tensors(tmp_path / "a") == tensors(tmp_path / "b")
    assert tensors(tmp_path / "a") != tensors(checkpoint)


def test_a_precision_that_does_not_improve_keeps_what_it_had(checkpoint, original, text_file):
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    done = refine(
        checkpoint, original[0], **settings(text_file, learning_rate=50.0, precisions=(8,))
    )
    assert not done.written and not done.outcomes[0].kept
    assert done.outcomes[0].after == done.outcomes[0].before
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before


def test_the_student_is_left_as_it_was(checkpoint, original):
    model = AnyPrecisionForCausalLM.from_quantized(checkpoint, dtype="float32")
    ids = torch.randint(0, 256, (1, 16))
    with torch.no_grad():
        before = model(ids, precision=3).logits
    flags = [p.requires_grad for p in model.parameters()]
    rows = np.random.default_rng(0).integers(0, 256, (4, 16))
    distill(model, teach(original[1], rows[:3], rows[3:]), 3, DistillOptions(2, 1))
    with torch.no_grad():
        assert torch.equal(model(ids, precision=3).logits, before)
    assert [p.requires_grad for p in model.parameters()] == flags


def step_gradients(checkpoint, original, device, cuda_graph, dtype="float32"):
    """offset.grad and loss of three steps on different windows, with other codebooks each time."""
    model = AnyPrecisionForCausalLM.from_quantized(checkpoint, device=device, dtype=dtype)
    rows = np.random.default_rng(0).integers(0, 256, (9, 16))
    with placed(original[1], torch.device(device), model.dtype) as reference:
        teacher = teach(reference, rows[:8], rows[8:])
    linears = {n: m for n, m in model.named_modules() if isinstance(m, AnyPrecisionLinear)}
    codebooks = TrainableCodebooks(linears, 3)
    blocks = Blocks(model, linears)
    model.requires_grad_(False)
    with codebooks.attached(), blocks.attached():
        step = DistillStep(model, codebooks, blocks, teacher, 4, cuda_graph)
        found = []
        for rows in ([0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]):
            loss = step(rows)
            found.append((codebooks.offset.grad.clone(), loss.clone()))
            with torch.no_grad():
                codebooks.offset += 1e-2 * torch.arange(len(codebooks.offset), device=device).cos()
    return found


def assert_same_steps(found, wanted, rtol):
    for (grad, loss), (wanted_grad, wanted_loss) in zip(found, wanted, strict=True):
        scale = wanted_grad.abs().max().item()
        torch.testing.assert_close(grad.cpu(), wanted_grad.cpu(), rtol=rtol, atol=rtol * scale)
        torch.testing.assert_close(loss.cpu(), wanted_loss.cpu(), rtol=rtol, atol=1e-6)


@pytest.mark.gpu
def test_replayed_steps_see_new_codebooks_and_agree_with_the_cpus(checkpoint, original):
    graph = step_gradients(checkpoint, original, "cuda", True)
    eager = step_gradients(checkpoint, original, "cuda", False)
    assert_same_steps(graph, eager, 1e-4)
    assert_same_steps(graph, step_gradients(checkpoint, original, "cpu", False), 2e-2)


@pytest.mark.gpu
def test_a_captured_step_computes_in_half_precision_too(checkpoint, original):
    graph = step_gradients(checkpoint, original, "cuda", True, dtype="bfloat16")
    assert_same_steps(
        graph, step_gradients(checkpoint, original, "cuda", False, dtype="bfloat16"), 2e-2
    )


@pytest.mark.gpu
def test_refining_on_a_gpu_gives_the_same_bytes_and_reports_its_cost(
    checkpoint, original, text_file, tmp_path
):
    for out in ("a", "b"):
        done = refine(
            checkpoint, original[0], **settings(text_file, out=tmp_path / out, device="cuda")
        )
        assert done.written and all(outcome.kept for outcome in done.outcomes)
        assert all(cost.peak_memory > 0 and cost.step > 0 for cost in done.costs)
    assert tensors(tmp_path / "a") == tensors(tmp_path / "b")


def test_requests_that_cannot_be_met_are_named(checkpoint, original, text_file, tmp_path):
    with pytest.raises(DistillError, match=r"held_out 20: wanted .* fewer than the 20 windows"):
        refine(checkpoint, original[0], **settings(text_file, held_out=20))
    with pytest.raises(DistillError, match="exists already"):
        refine(checkpoint, original[0], **settings(text_file, out=tmp_path))
    with pytest.raises(DistillError, match="steps 0"):
        refine(checkpoint, original[0], **settings(text_file, steps=0))
    with pytest.raises(DistillError, match="learning rate -1"):
        refine(checkpoint, original[0], **settings(text_file, learning_rate=-1.0))
    with pytest.raises(FormatError, match="no tensor named nothing"):
        rewrite_checkpoint(checkpoint, checkpoint, {"nothing": np.zeros(1)}, {})
    name = next(n for n in Checkpoint(checkpoint).tensor_names() if n.endswith(".lut.2"))
    with pytest.raises(FormatError, match=f"{name}: 1 bytes to replace"):
        rewrite_checkpoint(checkpoint, tmp_path / "new", {name: np.zeros(1, np.uint8)}, {})
    assert not (tmp_path / "new" / "config.json").exists()


def test_the_command_reports_and_writes_json(checkpoint, original, text_file, tmp_path):
    report = tmp_path / "report.json"
    result = CliRunner().invoke(
        app,
        f"refine {checkpoint} --original {original[0]} --precisions 2 --dataset {text_file} "
        f"--num-examples 20 --seq-len 32 --held-out 4 --steps 12 --batch-size 2 --device cpu "
        f"--json {report}".split(),
    )
    assert result.exit_code == 0, result.output
    assert "held-out KL" in result.output and "written:" in result.output
    (entry,) = json.loads(report.read_text())["results"]
    assert entry["precision"] == 2 and entry["after"] < entry["before"]
