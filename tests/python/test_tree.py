"""torch.ops.anyprec.quantize_matrix: the quantizer's tree on a GPU, beside that of the CPU."""

import numpy as np
import pytest
import torch

from anyprec import _core
from anyprec.options import Options
from anyprec.quantization import quantize
from anyprec.source import load_source
from anyprec.tree import build_tree, planes_of, to_host

pytestmark = pytest.mark.gpu


def matrix(n, k, seed=0, dtype=torch.float32):
    """Heavy-tailed weights and sensitivities over decades: [n, k] on the CPU."""
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy((0.02 * rng.standard_t(4, (n, k))).astype(np.float32)).to(dtype)
    gradient = rng.standard_normal((n, k)) * np.exp(rng.standard_normal((n, k)))
    return weight, torch.from_numpy((gradient**2).astype(np.float32))


def on_cpu(weight, s, seed=3, parent=8, lowest=2, group_size=0):
    found = _core.quantize_matrix(
        "w",
        weight.float().numpy(),
        None if s is None else s.numpy(),
        lowest_precision=lowest,
        seed_precision=seed,
        parent_precision=parent,
        group_size=group_size,
    )
    luts = [torch.from_numpy(lut) for lut in found.luts.values()]
    return torch.from_numpy(found.codes), luts, torch.tensor(list(found.errors.values()))


def on_gpu(weight, s, seed=3, parent=8, lowest=2, group_size=0):
    found = torch.ops.anyprec.quantize_matrix(
        "w",
        weight.cuda(),
        None if s is None else s.cuda(),
        lowest,
        seed,
        parent,
        group_size,
    )
    codes, luts, errors = found
    return codes.cpu(), [lut.cpu() for lut in luts], errors.cpu()


def expect_the_same(weight, s, **options):
    codes, luts, errors = on_gpu(weight, s, **options)
    wanted_codes, wanted_luts, wanted_errors = on_cpu(weight, s, **options)
    torch.testing.assert_close(errors, wanted_errors.double(), rtol=1e-6, atol=0)
    same = (codes == wanted_codes).all(1)
    assert same.all(), f"rows {(~same).nonzero().flatten().tolist()[:10]} have other codes"
    for lut, wanted in zip(luts, wanted_luts, strict=True):
        torch.testing.assert_close(lut, wanted, rtol=1e-6, atol=0)


# Each block size, and arrays in shared and in global memory.
@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 31, 64, 100, 256, 257, 576, 1025, 1536, 2049, 4096])
def test_rows_of_any_length(k):
    expect_the_same(*matrix(9, k, seed=k))


@pytest.mark.parametrize("k", [5600, 6100, 11008, 16384])
def test_rows_beyond_shared_memory(k):
    expect_the_same(*matrix(5, k, seed=k))


@pytest.mark.parametrize("seed", range(2, 9))
def test_every_seed(seed):
    expect_the_same(*matrix(7, 700, seed=seed), seed=seed)


@pytest.mark.parametrize("lowest, seed, parent", [(2, 2, 2), (3, 4, 6), (4, 4, 4), (8, 8, 8)])
def test_ranges_of_precisions(lowest, seed, parent):
    expect_the_same(*matrix(5, 300), lowest=lowest, seed=seed, parent=parent)


@pytest.mark.parametrize("group_size", [32, 128, 992, 4096])
def test_groups_along_the_row(group_size):
    expect_the_same(*matrix(12, 1000), group_size=group_size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_weights_are_taken_as_they_are(dtype):
    weight, s = matrix(17, 2000, dtype=dtype)
    weight[3, ::2] = 0.0
    weight[4, ::3] = -0.0
    weight[5] *= 1e-5  # subnormal in fp16
    expect_the_same(weight, s)
    for mine, other in zip(on_gpu(weight, s)[1], on_gpu(weight.float(), s)[1], strict=True):
        assert torch.equal(mine, other)


def test_zero_sensitivities_and_none():
    weight, s = matrix(8, 900)
    s[:, ::3] = 0.0
    s[2] = 0.0
    s[3] = s[3] ** 3
    expect_the_same(weight, s)
    expect_the_same(weight, None)


def test_repeated_values_and_constant_rows():
    weight, s = matrix(12, 3000)
    weight[:4] = (weight[:4] * 1000).round() / 1000
    weight[4, torch.arange(3000) % 4 != 1] = 0.0
    weight[5] = (torch.arange(3000) % 5).float()
    for row, constant in enumerate((0.0, -0.0, 3.5, -1e-42, 1e30), start=6):
        weight[row] = constant
    expect_the_same(weight, s)


def test_outliers():
    weight, s = matrix(6, 1200)
    weight[0, 77], weight[1, 77], weight[2, 77] = 1e2, 1e4, -1e4
    weight[3, 70:73] = torch.tensor([1e4, -1.5e4, -1.5e4])
    expect_the_same(weight, s)


def test_ties_are_as_good():
    weight = torch.stack([(torch.arange(1000) * 37 % 1000).float()] * 3)
    # Of the optimum of the seed at least: a split after another of equal cost may differ.
    _, _, errors = on_gpu(weight, None)
    torch.testing.assert_close(errors[1], on_cpu(weight, None)[2][1].double(), rtol=1e-6, atol=0)


def test_more_rows_than_a_batch_has():
    weight, s = matrix(4, 4096)
    repeat = 1100  # 18 million weights
    codes, luts, _ = on_gpu(weight.repeat(repeat, 1), s.repeat(repeat, 1))
    wanted, wanted_luts, _ = on_cpu(weight, s)
    assert torch.equal(codes, wanted.repeat(repeat, 1))
    torch.testing.assert_close(luts[-1], wanted_luts[-1].repeat(repeat, 1, 1), rtol=1e-6, atol=0)


def test_the_same_bytes_every_time_and_on_any_stream():
    weight, s = (t.cuda() for t in matrix(300, 1536))
    arguments = ("w", weight, s, 2, 3, 8, 0)
    torch.cuda.synchronize()
    first = torch.ops.anyprec.quantize_matrix(*arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        again = torch.ops.anyprec.quantize_matrix(*arguments)
    stream.synchronize()
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[2], again[2])
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))


@pytest.mark.parametrize(
    "where, value, message",
    [
        ("weight", float("nan"), r"w: weight \[1, 5\] is nan; every weight must be finite"),
        ("weight", float("inf"), r"w: weight \[1, 5\] is inf"),
        ("sensitivity", -1.0, r"w: sensitivity \[1, 5\] is -1; .* finite and not negative"),
        ("sensitivity", float("inf"), r"w: sensitivity \[1, 5\] is inf"),
    ],
)
def test_bad_values_are_named(where, value, message):
    weight, s = matrix(3, 40)
    for at in ((1, 5), (2, 0)):
        (weight if where == "weight" else s)[at] = value
    with pytest.raises(ValueError, match=message):
        on_gpu(weight, s)


def test_bad_options_and_shapes_are_named():
    weight, s = matrix(3, 40)
    with pytest.raises(ValueError, match="w: seed_precision is 9; wanted 2 to 8"):
        on_gpu(weight, s, seed=9)
    with pytest.raises(ValueError, match="w: group_size is 20"):
        on_gpu(weight, s, group_size=20)
    with pytest.raises(ValueError, match="w: sensitivities of shape"):
        on_gpu(weight, s[:2])
    with pytest.raises(TypeError, match="wanted float32"):
        on_gpu(weight, s.double())


@pytest.mark.parametrize("k, parent", [(1, 8), (7, 3), (64, 8), (100, 5), (4096, 8)])
def test_planes_of_codes(k, parent):
    codes = torch.randint(0, 2**parent, (13, k), dtype=torch.uint8)
    assert torch.equal(planes_of(codes.cuda(), parent).cpu(), planes_of(codes, parent))


def test_both_devices_make_one_tree():
    weight, s = matrix(40, 600, dtype=torch.bfloat16)
    options = Options(precisions=(2, 3, 4, 5), seed_precision=3)
    here = build_tree("w", weight, s, options, _core.ThreadPool(1))
    there = build_tree("w", weight.cuda(), s.cuda(), options, None)
    assert there.codes.is_cuda and list(there.luts) == [2, 3, 4, 5]
    assert torch.equal(to_host(there.codes), here.codes)
    assert there.energy == pytest.approx(here.energy, rel=1e-6)
    assert there.errors == pytest.approx(here.errors, rel=1e-6)


def test_quantize_clusters_the_source_whatever_calibration_computes_in(
    tiny_source, calibration, tmp_path, monkeypatch
):
    seen = {}

    def record(name, weight, s, options, pool):
        assert weight.is_cuda and s.is_cuda
        seen[name] = weight.clone()
        return build_tree(name, weight, s, options, pool)

    monkeypatch.setattr("anyprec.quantization.build_tree", record)
    options = calibration | {"device": "cuda", "calibration_dtype": "bfloat16"}
    summary = quantize(tiny_source, tmp_path / "out", **options)
    assert summary.status == "made"
    assert _core.verify_checkpoint(tmp_path / "out")["problems"] == []
    model = load_source(tiny_source).model
    for name, weight in seen.items():
        wanted = model.get_submodule(name).weight.detach().float()
        assert torch.equal(weight.float().cpu(), wanted), name
