"""Times torch.ops.anyprec.fit on matrices of a model's shapes, and reports energies by codebook.

Weights are heavy-tailed, inputs correlated; both are made from a fixed seed. Energies are relative
to the refit of a full table with the codes of exact clustering: what descent gains, and what a form
costs. The time is extrapolated to the model's number of weights.

    python benchmarks/quantize/bench_fit.py --device cpu --threads 2
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

import anyprec  # noqa: F401  registers the operators
from anyprec import _core

PRECISIONS = list(range(2, 9))
TAUS = [1.0 if b <= 6 else 0.0 for b in PRECISIONS]
# name: lut_bits, cell_groups
FORMS = {
    "lut": (8, "one"),
    "L=4 cell": (4, "cell"),
    "L=3 cell": (3, "cell"),
    "L=4 qu": (4, "qu"),
    "L=4 io": (4, "io"),
    "L=3 sym": (3, "sym"),
    "L=4 one": (4, "one"),
    "L=3 io": (3, "io"),
    "L=3 one": (3, "one"),
    "L=2 one": (2, "one"),
    "bcq": (0, "one"),
}


def problem(n: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    weight = (0.05 * rng.standard_t(6, size=(n, k))).astype(np.float32)
    low_rank = rng.standard_normal((k, k // 4)) / np.sqrt(k // 4)
    x = rng.standard_normal((2 * k, k // 4)) @ low_rank.T + 0.5 * rng.standard_normal((2 * k, k))
    x *= np.exp(0.5 * rng.standard_normal(k))
    hessian = (x.T @ x / len(x)).astype(np.float32)
    matrix = _core.quantize_matrix(
        "bench",
        weight,
        np.broadcast_to(np.diag(hessian), weight.shape).copy(),
        lowest_precision=2,
        seed_precision=3,
        parent_precision=8,
        group_size=0,
        pool=_core.ThreadPool(0),
    )
    codes = torch.from_numpy(np.array(matrix.codes))
    return torch.from_numpy(weight), codes, torch.from_numpy(hessian)


def run(arguments, form, rounds, sweeps):
    synchronize = torch.cuda.synchronize if arguments[0].is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    energies = torch.ops.anyprec.fit(*arguments, *form, 0, PRECISIONS, 3, TAUS, rounds, sweeps)[3]
    synchronize()
    return time.perf_counter() - start, energies.cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own number")
    parser.add_argument("--shapes", nargs="+", default=["576x576", "1536x576", "576x1536"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child-sweeps", type=int, default=2)
    parser.add_argument("--weights", type=float, default=106e6, help="of the model")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for shape in args.shapes:
        n, k = map(int, shape.split("x"))
        arguments = [t.to(args.device) for t in problem(n, k)]
        run(arguments, FORMS["lut"], 0, 0)  # warm
        seconds, base = run(arguments, FORMS["lut"], 0, 0)
        print(f"\n[{n}, {k}]  refit of a full table: {seconds:.2f} s")
        print(f"{'':10}{'seconds':>9}{'model, s':>10}   energies at {PRECISIONS}")
        for name in args.forms:
            seconds, energies = run(arguments, FORMS[name], args.rounds, args.child_sweeps)
            ratios = "".join(f"{ratio:9.3f}" for ratio in (energies / base).tolist())
            print(f"{name:10}{seconds:9.2f}{seconds * args.weights / (n * k):10.0f}{ratios}")


if __name__ == "__main__":
    main()
