"""torch.ops.anyprec.fit: codes and codebooks of a matrix against a Hessian."""

import itertools

import numpy as np
import pytest
import torch

import anyprec  # noqa: F401  registers the operators
from anyprec import _core

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ALL = list(range(2, 9))
# lut_bits, cell_groups, group_size
FORMS = [
    (8, "one", 0),
    (8, "one", 64),
    (4, "io", 0),
    (3, "sym", 0),
    (3, "one", 64),
    (4, "qu", 0),
    (3, "cell", 0),
    (0, "one", 0),
    (0, "one", 64),
]
CLASSES = {
    "one": lambda cell, last: 0,
    "io": lambda cell, last: 0 if cell in (0, last) else 1,
    "sym": lambda cell, last: min(cell, last - cell),
    "qu": lambda cell, last: (0, 1, 2, 2, 3, 3, 3, 3)[min(cell, last - cell)],
    "cell": lambda cell, last: cell,
}


def problem(n=24, k=150, seed=0, tokens=400, group_size=0, parent=8, lowest=2, clusters=3):
    """A heavy-tailed matrix, a Hessian of correlated inputs, and the codes of exact clustering."""
    rng = np.random.default_rng(seed)
    weight = (0.05 * rng.standard_t(5, size=(n, k))).astype(np.float32)
    x = rng.standard_normal((tokens, k)) @ (np.eye(k) + 0.1 * rng.standard_normal((k, k)))
    x *= np.exp(0.7 * rng.standard_normal(k))
    hessian = (x.T @ x / tokens).astype(np.float32)
    sensitivities = np.broadcast_to(np.diag(hessian), weight.shape).copy()
    matrix = _core.quantize_matrix(
        "test",
        weight,
        sensitivities,
        lowest_precision=lowest,
        seed_precision=max(lowest, min(clusters, parent)),
        parent_precision=parent,
        group_size=group_size,
        pool=_core.ThreadPool(1),
    )
    codes = torch.from_numpy(np.asarray(matrix.codes).copy())
    return torch.from_numpy(weight), codes, torch.from_numpy(hessian)


def fit(weight, codes, hessian, form=FORMS[0], precisions=ALL, taus=None, rounds=0, sweeps=2):
    if taus is None:
        taus = [1.0 if b <= 6 else 0.0 for b in precisions]
    lut_bits, cell_groups, group_size = form
    return torch.ops.anyprec.fit(
        weight,
        codes,
        hessian,
        lut_bits,
        cell_groups,
        group_size,
        precisions,
        max(precisions[0], min(3, precisions[-1])),
        taus,
        rounds,
        sweeps,
    )


def damped(hessian):
    h = hessian.double().cpu().numpy()
    return h + 0.01 * np.diag(h).mean() * np.eye(len(h))


def basis(form, b):
    """[2^b, U], codes in their own order; coefficients as lut, then alpha by plane and class."""
    lut_bits, cell_groups, _ = form
    planes = max(0, b - lut_bits)
    entries = 2 ** (b - planes)
    classes = {"one": 1, "io": 2, "sym": entries // 2, "qu": 4, "cell": entries}[cell_groups]
    matrix = np.zeros((2**b, entries + planes * classes))
    for code, plane in itertools.product(range(2**b), range(max(planes, 1))):
        cell = code >> planes
        matrix[code, cell] = 1
        if planes:
            sign = 1 if code >> (planes - 1 - plane) & 1 else -1
            column = entries + plane * classes + CLASSES[cell_groups](cell, entries - 1)
            matrix[code, column] = sign
    return matrix


def values(result, form, b, precisions=ALL):
    """Dense [N, K] at a precision, by the definition of the form."""
    codes, luts, alphas, _ = result
    i = precisions.index(b)
    theta = torch.cat([luts[i].flatten(2), alphas[i].flatten(2)], 2).double().cpu().numpy()
    tables = theta @ basis(form, b).T  # [N, G, 2^b]
    n, k = codes.shape
    group = np.arange(k) // (form[2] or k)
    top = codes.cpu().numpy().astype(int) >> (precisions[-1] - b)
    return tables[np.arange(n)[:, None], group[None], top]


def energy(weight, dense, hessian):
    error = weight.double().cpu().numpy() - dense
    return np.einsum("nk,kl,nl->n", error, damped(hessian), error)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("form", "n", "k"),
    [*((form, 6, 150) for form in FORMS), ((0, "one", 32), 2, 600)],  # the last: 133 unknowns
    ids=str,
)
def test_a_refit_is_the_least_squares_solution(device, form, n, k):
    weight, codes, hessian = problem(n=n, k=k, group_size=form[2], parent=6)
    precisions = [2, 3, 4, 5, 6]
    result = fit(weight.to(device), codes.to(device), hessian.to(device), form, precisions)
    assert torch.equal(result[0].cpu(), codes)
    h = damped(hessian)
    for b in precisions:
        got = energy(weight, values(result, form, b, precisions), hessian)
        matrix = basis(form, b)
        groups = -(-k // (form[2] or k))
        for row in range(n):
            chosen = np.zeros((k, groups * matrix.shape[1]))
            for j in range(k):
                g = j // (form[2] or k)
                at = slice(g * matrix.shape[1], (g + 1) * matrix.shape[1])
                chosen[j, at] = matrix[int(codes[row, j]) >> (6 - b)]
            normal = chosen.T @ h @ chosen
            right = chosen.T @ h @ weight[row].double().numpy()
            theta = np.linalg.lstsq(normal, right, rcond=1e-12)[0]
            best = energy(weight[row : row + 1], (chosen @ theta)[None], hessian)[0]
            direct = device == "cpu" and chosen.shape[1] <= 64
            # The ridge of 1e-5, rounding to fp16, and 12 steps of conjugate gradients.
            assert best * (1 - 1e-6) <= got[row] <= best * (1.01 if direct else 1.1) + 1e-9


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_energies_are_those_of_the_result_and_fall_with_precision(device, form):
    weight, codes, hessian = problem(group_size=form[2])
    moved = (weight.to(device), codes.to(device), hessian.to(device))
    result = fit(*moved, form, rounds=2)
    for i, b in enumerate(ALL):
        want = energy(weight, values(result, form, b), hessian).sum()
        assert result[3][i].item() == pytest.approx(want, rel=1e-3)
    assert (result[3][1:] < result[3][:-1]).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_descent_lowers_the_energies_that_a_refit_leaves(device, form):
    weight, codes, hessian = problem(group_size=form[2])
    moved = (weight.to(device), codes.to(device), hessian.to(device))
    refitted = fit(*moved, form)[3]
    once = fit(*moved, form, rounds=1)[3]
    thrice = fit(*moved, form, rounds=3)[3]
    joint = slice(0, 5)
    # Groups of 64 weights are nearly as many unknowns as weights: less is left to gain.
    assert (once / refitted)[joint].mean() < (0.98 if form[2] else 0.9)
    assert (thrice / refitted)[joint].mean() < (once / refitted)[joint].mean()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", [FORMS[0], FORMS[2], FORMS[8]], ids=str)
def test_a_row_keeps_the_best_of_several_starts(device, form):
    weight, codes, hessian = (t.to(device) for t in problem(group_size=form[2]))
    other = problem(group_size=form[2], clusters=5)[1].to(device)
    alone = fit(weight, codes, hessian, form, rounds=2)
    same = fit(weight, torch.stack([codes, codes]), hessian, form, rounds=2)
    for got, want in zip([same[0], *same[1]], [alone[0], *alone[1]], strict=True):
        assert torch.equal(got, want)
    both = fit(weight, torch.stack([codes, other]), hessian, form, rounds=2)
    taken = (both[0] != alone[0]).any(1).cpu().numpy()
    assert 0 < taken.sum() < len(taken)
    first, best = (
        np.array([energy(weight, values(result, form, b), hessian) for b in range(2, 7)])
        for result in (alone, both)
    )
    np.testing.assert_array_equal(best[:, ~taken], first[:, ~taken])
    # Energies count relative to what a row begins with, those of signed planes to those of the
    # last round, which its end differs little from.
    relative = first
    if form[0] == 8:
        refit = fit(weight, codes, hessian, form)
        relative = np.array([energy(weight, values(refit, form, b), hessian) for b in range(2, 7)])
    sums = [(energies / relative).sum(0) for energies in (first, best)]
    assert (sums[1] <= 1.01 * sums[0]).all()
    assert sums[1].sum() < 0.999 * sums[0].sum()


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_gpu_finds_energies_like_the_cpu(form):
    arguments = problem(n=70, k=200, group_size=form[2])
    here = fit(*arguments, form, rounds=3)
    there = fit(*(a.cuda() for a in arguments), form, rounds=3)
    # Near ties fall either way, and sweeps go on from there.
    torch.testing.assert_close(there[3].cpu(), here[3], rtol=0.03, atol=0)
    assert (there[0].cpu() == here[0]).float().mean() > 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_gpu_gives_the_same_bytes_again(form):
    arguments = [a.cuda() for a in problem(n=70, k=200, group_size=form[2])]
    first, again = (fit(*arguments, form, rounds=2) for _ in range(2))
    assert torch.equal(first[0], again[0])
    for i in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(first[i], again[i], strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_and_tf32_change_nothing(device):
    arguments = [a.to(device) for a in problem(n=70, k=200)]
    plain = fit(*arguments, FORMS[2], rounds=1)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        with torch.autocast(device, dtype=torch.bfloat16):
            other = fit(*arguments, FORMS[2], rounds=1)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert torch.equal(plain[0], other[0])
    for i in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(plain[i], other[i], strict=True))
    assert torch.equal(plain[3], other[3])


@pytest.mark.gpu
@pytest.mark.parametrize("form", [FORMS[0], FORMS[2]], ids=str)
@pytest.mark.parametrize("k", [1, 5, 63, 65, 129, 520, 1100])
def test_a_gpu_takes_any_number_of_columns(k, form):
    weight, codes, hessian = problem(n=3, k=k)
    result = fit(weight.cuda(), codes.cuda(), hessian.cuda(), form, rounds=2)
    for i, b in enumerate(ALL):
        want = energy(weight, values(result, form, b), hessian).sum()
        assert result[3][i].item() == pytest.approx(want, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("form", [FORMS[0], FORMS[2]], ids=str)
def test_bytes_do_not_depend_on_threads(form):
    arguments = problem(n=200, k=130)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(fit(*arguments, form, rounds=2))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        for kind in (1, 2):
            for a, b in zip(results[0][kind], other[kind], strict=True):
                assert torch.equal(a, b)
        assert torch.equal(results[0][3], other[3])


@pytest.mark.parametrize("k", [1, 5, 63, 64, 65, 127, 129])
def test_any_number_of_columns(k):
    weight, codes, hessian = problem(n=3, k=k)
    result = fit(weight, codes, hessian, rounds=1)
    for i, b in enumerate(ALL):
        want = energy(weight, values(result, FORMS[0], b), hessian).sum()
        assert result[3][i].item() == pytest.approx(want, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("case", ["dead columns", "zero", "rank one", "equal weights", "zero row"])
def test_singular_cases_give_finite_codebooks(case, form):
    weight, codes, hessian = problem(n=4, k=100, group_size=form[2])
    if case == "dead columns":
        hessian[::3] = 0
        hessian[:, ::3] = 0
    elif case == "zero":
        hessian.zero_()
    elif case == "rank one":
        hessian = torch.outer(hessian[0], hessian[0])
    elif case == "equal weights":
        weight.fill_(0.25)
        codes.zero_()
    else:
        weight[1] = 0
    result = fit(weight, codes, hessian, form, rounds=2)
    assert all(torch.isfinite(t).all() for t in [*result[1], *result[2], result[3]])
    if case == "equal weights":
        np.testing.assert_allclose(values(result, form, 8), 0.25, rtol=1e-3)


def test_precisions_without_a_tau_are_fitted_too():
    weight, codes, hessian = problem()
    taus = [0.0, 1.0, 0.0, 2.0, 0.0, 0.0, 0.0]
    result = fit(weight, codes, hessian, taus=taus, rounds=1)
    for i, b in enumerate(ALL):
        want = energy(weight, values(result, FORMS[0], b), hessian).sum()
        assert result[3][i].item() == pytest.approx(want, rel=1e-3)
    assert (result[3][1:] < result[3][:-1]).all()


BAD = {
    "weight: found dtype": {"weight": torch.zeros(2, 8, dtype=torch.float64)},
    "codes: found 2 to begin with, wanted one where there is no descent": {
        "codes": torch.zeros(2, 2, 8, dtype=torch.uint8),
        "rounds": 0,
    },
    "codes: found shape": {"codes": torch.zeros(2, 7, dtype=torch.uint8)},
    "codes: found dtype": {"codes": torch.zeros(2, 8, dtype=torch.int64)},
    "codes: found 9, wanted less than 8": {"codes": torch.full((2, 8), 9, dtype=torch.uint8)},
    r"hessian: found shape \[8, 7\], wanted \[8, 8\]": {"hessian": torch.zeros(8, 7)},
    "hessian: found NaN": {"hessian": torch.full((8, 8), torch.nan)},
    "hessian: found a negative": {"hessian": -torch.eye(8)},
    "weight: found NaN": {"weight": torch.full((2, 8), torch.inf)},
    "lut_bits: found 9": {"lut_bits": 9},
    "cell_groups: found": {"cell_groups": "two"},
    "group_size: found 7": {"group_size": 7},
    "precisions: found": {"precisions": [3, 2]},
    "seed_precision: found 4": {"seed_precision": 4},
    "taus: found 1 numbers": {"taus": [1.0]},
    r"taus\[1\]: found -1": {"taus": [1.0, -1.0]},
    "taus: found zeros only": {"taus": [0.0, 0.0]},
    "rounds: found -1": {"rounds": -1},
    "child_sweeps: found -2": {"child_sweeps": -2},
}


@pytest.mark.parametrize("message", BAD)
def test_wrong_arguments_are_named(message):
    arguments = {
        "weight": torch.zeros(2, 8),
        "codes": torch.zeros(2, 8, dtype=torch.uint8),
        "hessian": torch.eye(8),
        "lut_bits": 8,
        "cell_groups": "one",
        "group_size": 0,
        "precisions": [2, 3],
        "seed_precision": 3,
        "taus": [1.0, 1.0],
        "rounds": 1,
        "child_sweeps": 0,
    }
    with pytest.raises((ValueError, TypeError), match=message):
        torch.ops.anyprec.fit(**{**arguments, **BAD[message]})
