"""torch.ops.anyprec.*: values, checks, fake kernels, compile, autocast and autograd."""

import numpy as np
import pytest
import torch

import anyprec  # noqa: F401  registers the operators
from matrices import FORMS, random_matrix

ops = torch.ops.anyprec
# Of sum |w||x|: half an ulp of the result's dtype, plus the kernels' own error.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-3, torch.float16: 1e-3}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def planes_of(matrix, device="cpu"):
    return ops.pack_planes(matrix.canonical.to(device), matrix.in_features)


def check(y, matrix, x, bias=None):
    dense = matrix.dense()
    x64 = x.double().cpu().numpy()
    want = x64 @ dense.T
    scale = np.abs(x64) @ np.abs(dense).T
    if bias is not None:
        want = want + bias.double().cpu().numpy()
        scale = scale + np.abs(bias.double().cpu().numpy())
    assert y.dtype == x.dtype
    error = np.abs(y.double().cpu().numpy() - want)
    assert (error <= TOLERANCE[x.dtype] * scale + 1e-30).all(), (error / scale).max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("precision", range(2, 9))
def test_linear_agrees_with_the_dense_product(device, dtype, form, precision):
    matrix = random_matrix(33, 200, precision, **form)
    on_device = matrix.to(device)
    bias = torch.randn(33, dtype=dtype, device=device)
    for m in (1, 3, 40):
        x = torch.randn(m, 200, dtype=dtype, device=device)
        y = ops.linear(
            x, planes_of(matrix, device), on_device.lut, on_device.alpha, bias, *matrix.form
        )
        check(y, matrix, x, bias)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("precision", range(2, 9))
def test_dequantize_gives_the_forms_values(device, form, precision):
    matrix = random_matrix(17, 131, precision, **form)
    on_device = matrix.to(device)
    w = ops.dequantize(
        planes_of(matrix, device), on_device.lut, on_device.alpha, *matrix.form, torch.float32
    )
    np.testing.assert_allclose(w.cpu().numpy(), matrix.dense(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", [1, 8, 255, 256, 257, 1000])
def test_unpack_planes_is_the_inverse_of_pack_planes(device, k):
    canonical = random_matrix(5, k, 8).canonical.to(device)
    assert torch.equal(ops.unpack_planes(ops.pack_planes(canonical, k), 5, k), canonical)


def test_leading_dimensions_and_strides_are_kept():
    matrix = random_matrix(24, 96, 4)
    planes = planes_of(matrix)
    x = torch.randn(2, 3, 96)
    y = ops.linear(x, planes, matrix.lut, None, None, *matrix.form)
    assert y.shape == (2, 3, 24)
    wide = torch.randn(6, 200)
    strided = wide[:, 50:146]
    torch.testing.assert_close(
        ops.linear(strided, planes, matrix.lut, None, None, *matrix.form),
        ops.linear(strided.contiguous(), planes, matrix.lut, None, None, *matrix.form),
    )
    columns = torch.randn(96, 6).t()
    torch.testing.assert_close(
        ops.linear(columns, planes, matrix.lut, None, None, *matrix.form),
        ops.linear(columns.contiguous(), planes, matrix.lut, None, None, *matrix.form),
    )
    assert ops.linear(x[:0], planes, matrix.lut, None, None, *matrix.form).shape == (0, 3, 24)
    assert ops.linear(x[0, 0], planes, matrix.lut, None, None, *matrix.form).shape == (24,)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_opcheck(form):
    matrix = random_matrix(16, 64, 5, **form)
    planes = planes_of(matrix)
    x = torch.randn(3, 64)
    bias = torch.randn(16)
    torch.library.opcheck(ops.linear, (x, planes, matrix.lut, matrix.alpha, bias, *matrix.form))
    torch.library.opcheck(
        ops.linear,
        (x.requires_grad_(), planes, matrix.lut, matrix.alpha, bias.requires_grad_(), *matrix.form),
        # The fast path for few rows rounds activations, so gradients are those of the dense
        # product up to that rounding; exact second evaluation is what the others compare.
        atol=1e-3,
        rtol=1e-3,
    )
    torch.library.opcheck(
        ops.dequantize, (planes, matrix.lut, matrix.alpha, *matrix.form, torch.float32)
    )
    torch.library.opcheck(ops.pack_planes, (matrix.canonical, 64))
    torch.library.opcheck(ops.unpack_planes, (planes, 16, 64))
    torch.library.opcheck(ops.sum_by_code, (torch.randn(3, 64), torch.zeros(3, 64).byte(), 2, 32))


def test_compiles_into_one_graph_with_dynamic_batch():
    matrix = random_matrix(16, 64, 3)
    planes = planes_of(matrix)

    @torch.compile(fullgraph=True, dynamic=True)
    def forward(x):
        return torch.relu(ops.linear(x, planes, matrix.lut, None, None, *matrix.form)) + 1

    for m in (2, 5, 33):
        x = torch.randn(m, 64)
        want = torch.relu(ops.linear(x, planes, matrix.lut, None, None, *matrix.form)) + 1
        torch.testing.assert_close(forward(x), want)


def test_autocast_casts_activations_and_bias():
    matrix = random_matrix(16, 64, 4)
    x = torch.randn(3, 64)
    bias = torch.randn(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.linear(x, planes_of(matrix), matrix.lut, None, bias, *matrix.form)
    assert y.dtype == torch.bfloat16
    check(y, matrix, x.bfloat16(), bias.bfloat16())


def test_gradients_flow_to_activations_and_bias():
    matrix = random_matrix(16, 64, 4)
    dense = torch.from_numpy(matrix.dense()).float()
    x = torch.randn(2, 20, 64, requires_grad=True)
    bias = torch.randn(16, requires_grad=True)
    out_grad = torch.randn(2, 20, 16)
    ops.linear(x, planes_of(matrix), matrix.lut, None, bias, *matrix.form).backward(out_grad)
    torch.testing.assert_close(x.grad, out_grad @ dense, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias.grad, out_grad.sum((0, 1)), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        y = ops.linear(x, planes_of(matrix), matrix.lut, None, bias, *matrix.form)
    assert not y.requires_grad


def bad_calls():
    matrix = random_matrix(16, 64, 4, lut_bits=3)
    good = dict(
        x=torch.randn(2, 64),
        planes=planes_of(matrix),
        lut=matrix.lut,
        alpha=matrix.alpha,
        bias=torch.randn(16),
        precision=4,
        in_features=64,
        group_size=0,
        cell_groups="one",
    )
    yield "x width", good | dict(x=torch.randn(2, 63)), r"x: found shape \[2, 63\], wanted.*64"
    yield "x dtype", good | dict(x=torch.ones(2, 64, dtype=torch.int32)), "x: found dtype Int"
    yield "precision 1", good | dict(precision=1), "precision: found 1, wanted 2 to 8"
    yield "too few planes", good | dict(planes=good["planes"][:3]), "found 3 planes, precision 4"
    yield "plane width", good | dict(in_features=300), "rows of 32 bytes, wanted 64"
    yield (
        "lut rows",
        good | dict(lut=matrix.lut.repeat(2, 1, 1)),
        "planes: found 16 rows, wanted 32",
    )
    yield (
        "lut groups",
        good | dict(lut=matrix.lut.repeat(1, 2, 1)),
        r"lut: found shape \[16, 2, 8\]",
    )
    yield "lut size", good | dict(lut=matrix.lut[:, :, :7].contiguous()), "power of two"
    yield "lut dtype", good | dict(lut=matrix.lut.float()), "lut: found dtype Float"
    yield "alpha classes", good | dict(cell_groups="io"), r"alpha: found shape .*wanted.*2\]"
    yield "alpha missing", good | dict(alpha=None), r"lut: found shape .* wanted \[16, 1, 16\]"
    yield "cell groups", good | dict(cell_groups="odd"), 'cell_groups: found "odd"'
    yield "group size", good | dict(group_size=33), "group_size: found 33"
    yield "bias dtype", good | dict(bias=torch.ones(16).half()), "bias: found dtype Half"
    yield "bias shape", good | dict(bias=torch.ones(15)), r"bias: found shape \[15\], wanted \[16\]"


@pytest.mark.parametrize(
    "kwargs,message", [p[1:] for p in bad_calls()], ids=[p[0] for p in bad_calls()]
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ops.linear(**kwargs)
    fake = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    with pytest.raises((ValueError, TypeError), match=message):
        ops.linear(**fake)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("group_size", [0, 32, 64])
@pytest.mark.parametrize("precision", range(2, 9))
def test_sums_by_code_are_those_of_the_columns(device, dtype, group_size, precision):
    for n, k in [(5, 1), (33, 200), (3, 4097)]:
        rng = np.random.default_rng(k)
        codes = rng.integers(0, 256, (n, k), dtype=np.uint8)  # higher bits do not count
        values = torch.from_numpy(rng.standard_normal((n, k))).to(dtype)
        size = group_size or k
        want = np.zeros((n, -(-k // size), 1 << precision))
        place = (
            np.arange(n)[:, None],
            np.arange(k)[None] // size,
            codes.astype(int) % (1 << precision),
        )
        np.add.at(want, place, values.double().numpy())
        arguments = (values.to(device), torch.from_numpy(codes).to(device), precision, group_size)
        sums = ops.sum_by_code(*arguments)
        assert sums.dtype == torch.float32
        np.testing.assert_allclose(sums.cpu().numpy(), want, rtol=1e-5, atol=1e-4)
        assert torch.equal(sums, ops.sum_by_code(*arguments))


def test_sums_by_code_name_wrong_arguments():
    values, codes = torch.zeros(4, 64), torch.zeros(4, 64, dtype=torch.uint8)
    for arguments, message in [
        ((values, codes, 9, 0), "precision: found 9"),
        ((values, codes, 2, 40), "group_size: found 40"),
        ((values.double(), codes, 2, 0), "dtype: found Double"),
        ((values.T, codes, 2, 0), r"values: wanted a contiguous matrix \[N, K\]"),
        ((values, codes.int(), 2, 0), "codes: found dtype Int, wanted uint8"),
        ((values, codes[:3], 2, 0), r"codes: found shape \[3, 64\]"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            ops.sum_by_code(*arguments)
