"""AnyPrecisionLinear against dense matrices made in numpy."""

import copy
import io

import numpy as np
import pytest
import torch

from anyprec import AnyPrecisionLinear, PrecisionError
from anyprec.table_linear import codebook_basis
from checkpoints import ALL, BINARY, BINARY_GROUPED, CODEBOOKS, FULL, HYBRID, Matrix, quantized


def random_matrix(n: int, k: int, codebook: dict, precisions=ALL) -> Matrix:
    weight = np.random.default_rng(n * 1000 + k).normal(size=(n, k)).astype(np.float32)
    return quantized(weight, precisions, codebook)


def linear_of(matrix: Matrix, bias: torch.Tensor | None = None) -> AnyPrecisionLinear:
    return AnyPrecisionLinear(
        torch.from_numpy(matrix.planes),
        {b: torch.from_numpy(lut) for b, lut in matrix.luts.items()},
        {b: torch.from_numpy(alpha) for b, alpha in matrix.alphas.items()},
        bias,
        in_features=matrix.in_features,
        cell_groups=matrix.codebook["cell_groups"],
        group_size=matrix.codebook["group_size"],
    )


def assert_close(found: torch.Tensor, x: torch.Tensor, weight: np.ndarray, bias=None) -> None:
    """Within the operator's stated error (about 5e-5 of sum |w||x|) and x's own rounding."""
    dense = torch.from_numpy(weight).double()
    wanted = x.double() @ dense.T + (0 if bias is None else bias.double())
    scale = x.double().abs() @ dense.abs().T + wanted.abs()
    rounding = 1e-4 + torch.finfo(x.dtype).eps
    assert found.dtype == x.dtype
    assert ((found.double() - wanted).abs() <= rounding * scale + 1e-6).all()


@pytest.mark.parametrize("codebook", CODEBOOKS.values(), ids=CODEBOOKS)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_forward_at_each_precision_is_the_dense_product(codebook, rows):
    matrix = random_matrix(21, 77, codebook)
    bias = torch.linspace(-1, 1, 21)
    linear = linear_of(matrix, bias)
    x = torch.randn(2, rows, 77, generator=torch.Generator().manual_seed(rows))
    for b in ALL:
        with linear.controller.using(b):
            assert_close(linear(x), x, matrix.dense(b), bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_result_has_the_dtype_of_the_activations_whatever_the_biass(dtype):
    matrix = random_matrix(8, 64, FULL)
    bias = torch.linspace(-1, 1, 8)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert_close(linear_of(matrix, bias)(x), x, matrix.dense(8), bias.to(dtype))


@pytest.mark.parametrize("codebook", CODEBOOKS.values(), ids=CODEBOOKS)
def test_dequantize_is_the_dense_matrix(codebook):
    matrix = random_matrix(9, 70, codebook)
    linear = linear_of(matrix)
    for b in ALL:
        np.testing.assert_allclose(linear.dequantize(b).numpy(), matrix.dense(b), rtol=2e-6)
    with linear.controller.using(3):
        assert torch.equal(linear.dequantize(), linear.dequantize(3))
    with pytest.raises(PrecisionError, match="precision 9"):
        linear.dequantize(9)


def expanded(matrix: Matrix) -> Matrix:
    """The same weights with a full table in place of each codebook."""
    luts = {}
    for b, lut in matrix.luts.items():
        shape = matrix.alphas[b].shape[2:]
        basis = codebook_basis(b, lut.shape[2], shape, matrix.codebook["cell_groups"]).numpy()
        entries = np.concatenate([lut, matrix.alphas[b].reshape(*lut.shape[:2], -1)], 2)
        luts[b] = (entries.astype(np.float32) @ basis.T).astype(np.float16)
    codebook = {"lut_bits": 8, "cell_groups": "one", "group_size": matrix.codebook["group_size"]}
    return Matrix(matrix.planes, luts, {}, matrix.in_features, codebook)


@pytest.mark.parametrize("codebook", [BINARY, BINARY_GROUPED], ids=["by row", "by groups"])
def test_binary_coding_is_what_its_full_tables_are(codebook):
    matrix = random_matrix(21, 77, codebook)
    for entries in (*matrix.luts.values(), *matrix.alphas.values()):
        entries[:] = np.round(entries.astype(np.float32) * 64) / 64  # sums are exact in fp16
    binary, full = linear_of(matrix), linear_of(expanded(matrix))
    x = torch.randn(3, 77, generator=torch.Generator().manual_seed(0))
    for b in ALL:
        assert torch.equal(binary.dequantize(b), full.dequantize(b))
        with binary.controller.using(b), full.controller.using(b):
            assert_close(binary(x), x, matrix.dense(b))
            assert_close(full(x), x, matrix.dense(b))


def test_canonical_planes_are_those_that_went_in():
    matrix = random_matrix(5, 300, FULL)
    assert np.array_equal(linear_of(matrix).canonical_planes().numpy(), matrix.planes)


def test_planes_exist_once_and_no_dense_weight_exists():
    matrix = random_matrix(64, 512, FULL)
    linear = linear_of(matrix)
    planes = [t for t in linear.state_dict().values() if t.dtype == torch.uint8]
    assert [t.numel() for t in planes] == [8 * 64 * 64]
    floating = sum(t.numel() for t in linear.state_dict().values() if t.is_floating_point())
    assert floating == 64 * sum(2**b for b in ALL)


@pytest.mark.parametrize(
    "cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()]
)
def test_casting_reaches_the_bias_and_leaves_the_codebooks(cast):
    matrix = random_matrix(6, 40, HYBRID)
    linear = linear_of(matrix, torch.ones(6))
    before = {name: buffer.clone() for name, buffer in linear.named_buffers()}
    cast(linear)
    assert linear.bias.dtype != torch.float32
    for name, buffer in linear.named_buffers():
        assert buffer.dtype == before[name].dtype, name
        assert torch.equal(buffer, before[name]), name


def test_moving_to_meta_and_sharing_memory_keep_every_buffer():
    linear = linear_of(random_matrix(6, 40, HYBRID), torch.ones(6))
    names = set(linear.state_dict())
    linear.share_memory()
    assert linear.planes.is_shared() and linear.lut_3.is_shared()
    linear.to("meta")
    assert set(linear.state_dict()) == names
    assert all(tensor.is_meta for tensor in linear.state_dict().values())


def test_failed_move_leaves_the_module_as_it_was():
    linear = linear_of(random_matrix(6, 40, FULL))
    x = torch.ones(1, 40)
    before = linear(x)

    def fail(tensor: torch.Tensor) -> torch.Tensor:
        raise MemoryError("no room")

    with pytest.raises(MemoryError):
        linear._apply(fail)
    assert torch.equal(linear(x), before)


def test_state_dict_and_copies_round_trip():
    first, second = random_matrix(6, 40, FULL), random_matrix(7, 40, FULL)
    source = linear_of(first, torch.ones(6))
    target = linear_of(quantized(second.dense(8)[:6], ALL), torch.zeros(6))
    x = torch.ones(1, 40)
    assert not torch.equal(source(x), target(x))
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file))
    assert torch.equal(source(x), target(x))
    assert torch.equal(copy.deepcopy(source)(x), source(x))


def test_gradient_flows_to_the_activations():
    matrix = random_matrix(6, 40, FULL)
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(1), requires_grad=True)
    linear_of(matrix)(x).sum().backward()
    wanted = torch.from_numpy(matrix.dense(8).sum(0)).expand(3, 40)
    torch.testing.assert_close(x.grad, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_moving_between_devices_keeps_values():
    matrix = random_matrix(24, 300, FULL)
    linear = linear_of(matrix, torch.linspace(-1, 1, 24))
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(1))
    on_cpu = linear(x)
    assert_close(linear.cuda()(x.cuda()).cpu(), x, matrix.dense(8), linear.bias.cpu())
    assert np.array_equal(linear.canonical_planes().cpu().numpy(), matrix.planes)
    assert torch.equal(linear.cpu()(x), on_cpu)
