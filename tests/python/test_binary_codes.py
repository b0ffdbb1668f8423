"""torch.ops.anyprec.binary_codes: what binary coding begins with."""

import numpy as np
import pytest
import torch

import anyprec  # noqa: F401  registers the operators

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ALL = list(range(2, 9))
PARTS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4)


def problem(n=70, k=150, seed=0):
    rng = np.random.default_rng(seed)
    weight = (0.05 * rng.standard_t(5, size=(n, k))).astype(np.float32)
    curvature = np.exp(rng.standard_normal(k)).astype(np.float32)
    return torch.from_numpy(weight), torch.from_numpy(curvature)


def codes_of(weight, curvature, group_size=0, precisions=ALL, start="range", device="cpu"):
    codes = torch.ops.anyprec.binary_codes(
        weight.to(device), curvature.to(device), group_size, precisions, start
    )
    assert codes.dtype == torch.uint8 and codes.shape == weight.shape
    return codes.cpu().numpy()


def groups(k, group_size):
    size = group_size or k
    return [slice(at, min(at + size, k)) for at in range(0, k, size)]


def uniform(x, part, parent=8):
    """Bits of a uniform code over the middle part of one group's range."""
    low, high = x.min(), x.max()
    middle, reach = (low + high) / 2, (high - low) / 2 * part
    steps = np.floor((x - middle + reach) / (2 * reach) * 2**parent)
    return np.clip(steps, 0, 2**parent - 1).astype(int)


def least_error(x, curvature, codes, b, parent=8):
    """By least squares with offset and b signed planes, in plain numpy."""
    signs = [2.0 * (codes >> (parent - 1 - i) & 1) - 1 for i in range(b)]
    design = np.stack([np.ones_like(x), *signs], 1) * np.sqrt(curvature)[:, None]
    target = x * np.sqrt(curvature)
    theta = np.linalg.lstsq(design, target, rcond=1e-10)[0]
    return np.square(target - design @ theta).sum()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("group_size", [0, 32, 64])
def test_each_group_takes_the_part_of_its_range_that_serves_the_precisions_best(device, group_size):
    weight, curvature = problem(n=9)
    found = codes_of(weight, curvature, group_size, device=device)
    w, c = weight.double().numpy(), curvature.double().numpy()
    for row in range(len(w)):
        for at in groups(w.shape[1], group_size):
            x, d = w[row, at], c[at]
            choices = [uniform(x, part) for part in PARTS]
            errors = np.array(
                [[least_error(x, d, codes, b) for b in range(2, 7)] for codes in choices]
            )
            costs = (errors / errors.min(0) * 0.5 ** np.arange(5)).sum(1)
            # A code on the border of a step may fall either way.
            near = [np.abs(found[row, at].astype(int) - codes).max() <= 1 for codes in choices]
            assert any(near)
            assert costs[near].min() <= costs.min() * 1.01


@pytest.mark.parametrize("device", DEVICES)
def test_a_greedy_plane_is_the_sign_of_what_is_left(device):
    weight, curvature = problem(n=5)
    found = codes_of(weight, curvature, 64, start="greedy", device=device)
    w, c = weight.double().numpy(), curvature.double().numpy()
    same = []
    for row in range(len(w)):
        for at in groups(w.shape[1], 64):
            left = w[row, at] - np.average(w[row, at], weights=c[at])
            codes = np.zeros(len(left), int)
            for i in range(8):
                codes |= (left > 0).astype(int) << (7 - i)
                left = left - np.where(left > 0, 1, -1) * np.average(np.abs(left), weights=c[at])
            same.append(codes == found[row, at])
    assert np.concatenate(same).mean() > 0.99  # but for rounding where nothing is left


@pytest.mark.parametrize("precisions", [[2], [3, 4], [4, 5, 6, 7], [8]])
def test_codes_are_of_the_widest_precision(precisions):
    weight, curvature = problem()
    found = codes_of(weight, curvature, 32, precisions)
    assert found.max() == 2 ** precisions[-1] - 1


def test_codes_begin_better_than_greedy_ones_at_every_wide_precision():
    weight, curvature = problem(n=32)
    w, c = weight.double().numpy(), curvature.double().numpy()
    starts = {start: codes_of(weight, curvature, 64, start=start) for start in ("range", "greedy")}
    for b in range(4, 9):
        error = {
            start: sum(
                least_error(w[row, at], c[at], codes[row, at].astype(int), b)
                for row in range(len(w))
                for at in groups(150, 64)
            )
            for start, codes in starts.items()
        }
        assert error["range"] < 0.7 * error["greedy"]


@pytest.mark.parametrize("start", ["range", "greedy"])
def test_bytes_do_not_depend_on_threads(start):
    weight, curvature = problem(n=300)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(codes_of(weight, curvature, 64, start=start))
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("start", ["range", "greedy"])
def test_a_gpu_gives_the_same_bytes_again_and_nearly_the_cpus(start):
    weight, curvature = problem(n=300)
    first, again = (codes_of(weight, curvature, 64, start=start, device="cuda") for _ in range(2))
    assert np.array_equal(first, again)
    assert (first == codes_of(weight, curvature, 64, start=start)).mean() > 0.99


@pytest.mark.parametrize("start", ["range", "greedy"])
@pytest.mark.parametrize("case", ["equal weights", "no curvature", "one column", "zero group"])
def test_singular_cases_give_codes(case, start):
    weight, curvature = problem(n=4, k=100)
    if case == "equal weights":
        weight.fill_(0.25)
    elif case == "no curvature":
        curvature.zero_()
    elif case == "one column":
        weight, curvature = weight[:, :1].contiguous(), curvature[:1].contiguous()
    else:
        weight[:, 32:64] = 0
    codes_of(weight, curvature, 32, start=start)


BAD = {
    "weight: found dtype": {"weight": torch.zeros(2, 8, dtype=torch.float64)},
    "weight: found shape": {"weight": torch.zeros(8)},
    "weight: found NaN": {"weight": torch.full((2, 8), torch.nan)},
    r"curvature: found shape \[7\], wanted \[8\]": {"curvature": torch.ones(7)},
    "curvature: found dtype": {"curvature": torch.ones(8, dtype=torch.float64)},
    "curvature: found NaN, infinity or a negative": {"curvature": -torch.ones(8)},
    "group_size: found 7": {"group_size": 7},
    "precisions: found": {"precisions": [3, 2]},
    'start: found "best", wanted range or greedy': {"start": "best"},
}


@pytest.mark.parametrize("message", BAD)
def test_wrong_arguments_are_named(message):
    arguments = {
        "weight": torch.zeros(2, 8),
        "curvature": torch.ones(8),
        "group_size": 0,
        "precisions": [2, 3],
        "start": "range",
    }
    with pytest.raises((ValueError, TypeError), match=message):
        torch.ops.anyprec.binary_codes(**{**arguments, **BAD[message]})
