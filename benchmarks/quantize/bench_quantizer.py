"""Throughput and error of the quantizer beside flash1dkmeans, on the same rows and cores.

flash1dkmeans (PyPI) is what Any-Precision LLM (arXiv 2402.10517) clusters with: k-means++ and
Lloyd's iterations for the seed, then a binary search for each split. The loop around it is that of
the original's quantizer: rows spread over numba threads, a sort and prefix sums in double for each
row, the seed, the splits up to the parent precision, and the labels brought back to column order.
Both run with `--threads` threads; compilation by numba is not timed; the least of `--repeats`
counts.

    python benchmarks/quantize/bench_quantizer.py
    python benchmarks/quantize/bench_quantizer.py --columns 4096 --json quantizer.json
"""

import argparse
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import flash1dkmeans
import numba
import numpy as np

from anyprec import _core


@numba.njit
def _split_clusters(values, mass_sums, moment_sums, borders, centroids):
    """One more bit: every cluster split by flash1dkmeans, an empty one passed on."""
    clusters = len(centroids)
    children = np.empty(2 * clusters, dtype=np.float32)
    child_borders = np.empty(2 * clusters + 1, dtype=np.int32)
    for c in range(clusters):
        begin, end = borders[c], borders[c + 1]
        child_borders[2 * c] = begin
        if begin == end:
            children[2 * c] = centroids[c]
            children[2 * c + 1] = centroids[c]
            child_borders[2 * c + 1] = begin
            continue
        pair, pair_borders = flash1dkmeans.numba_kmeans_1d_two_cluster(
            sorted_X=values,
            weights_prefix_sum=mass_sums,
            weighted_X_prefix_sum=moment_sums,
            start_idx=begin,
            stop_idx=end,
        )
        children[2 * c] = pair[0]
        children[2 * c + 1] = pair[1]
        child_borders[2 * c + 1] = pair_borders[1]
    child_borders[2 * clusters] = borders[clusters]
    return children, child_borders


@numba.njit(parallel=True)
def quantize_with_flash1dkmeans(weights, sensitivities, seed_precision, parent_precision):
    """The original's loop. Returns codes [N, K] and one LUT [N, 2^b] for each precision."""
    rows, columns = weights.shape
    codes = np.empty((rows, columns), dtype=np.uint8)
    luts = [
        np.empty((rows, 1 << b), dtype=np.float32)
        for b in range(seed_precision, parent_precision + 1)
    ]
    for row in numba.prange(rows):
        order = np.argsort(weights[row])
        values = weights[row][order]
        mass = (sensitivities[row] * (weights[row] != 0))[order].astype(np.float64)
        mass_sums = np.cumsum(mass)
        if mass_sums[-1] == 0:
            mass = np.ones(columns, dtype=np.float64)
            mass_sums = np.cumsum(mass)
        moments = values.astype(np.float64) * mass
        moment_sums = np.cumsum(moments)
        square_sums = np.cumsum(moments * values.astype(np.float64))

        seed_centroids, borders = flash1dkmeans.numba_kmeans_1d_k_cluster(
            sorted_X=values,
            n_clusters=1 << seed_precision,
            max_iter=50,
            weights_prefix_sum=mass_sums,
            weighted_X_prefix_sum=moment_sums,
            weighted_X_squared_prefix_sum=square_sums,
            start_idx=0,
            stop_idx=columns,
            random_state=0,
        )
        centroids = seed_centroids.astype(np.float32)
        luts[0][row] = centroids
        for b in range(seed_precision, parent_precision):
            centroids, borders = _split_clusters(values, mass_sums, moment_sums, borders, centroids)
            luts[b + 1 - seed_precision][row] = centroids

        labels = np.empty(columns, dtype=np.uint8)
        for c in range(1 << parent_precision):
            labels[borders[c] : borders[c + 1]] = c
        codes[row] = labels[np.argsort(order)]
    return codes, luts


def heavy_tailed_rows(rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (Student's t) and sensitivities (squared gradients, over decades), float32 [N, K]."""
    generator = np.random.default_rng(seed)
    weights = 0.02 * generator.standard_t(4, (rows, columns))
    gradients = generator.standard_normal((rows, columns)) * np.exp(
        generator.standard_normal((rows, columns))
    )
    return weights.astype(np.float32), (gradients**2).astype(np.float32)


def weighted_error(
    weights: np.ndarray, sensitivities: np.ndarray, codes: np.ndarray, lut: np.ndarray
) -> float:
    """Sum of sensitivity * (weight - value)^2, in double."""
    values = np.take_along_axis(lut, codes.astype(np.int64), axis=1).astype(np.float64)
    return float((sensitivities * (weights - values) ** 2).sum())


def least_seconds(run: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def measure(columns: int, args: argparse.Namespace, pool: _core.ThreadPool) -> dict:
    rows = max(64, args.weights // columns)
    weights, sensitivities = heavy_tailed_rows(rows, columns, seed=columns)
    seed, parent = args.seed_precision, args.parent_precision

    def ours():
        return _core.quantize_matrix(
            "rows",
            weights,
            sensitivities,
            lowest_precision=min(2, seed),
            seed_precision=seed,
            parent_precision=parent,
            pool=pool,
        )

    def theirs():
        return quantize_with_flash1dkmeans(weights, sensitivities, seed, parent)

    matrix = ours()
    codes, luts = theirs()
    ours_seconds = least_seconds(ours, args.repeats)
    theirs_seconds = least_seconds(theirs, args.repeats)
    error_ratio = {
        b: matrix.errors[b]
        / weighted_error(weights, sensitivities, codes >> (parent - b), luts[b - seed])
        for b in range(seed, parent + 1)
    }
    return {
        "columns": columns,
        "rows": rows,
        "anyprec_rows_per_second": rows / ours_seconds,
        "flash1dkmeans_rows_per_second": rows / theirs_seconds,
        "speedup": theirs_seconds / ours_seconds,
        "error_ratio": error_ratio,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--columns", type=int, nargs="+", default=[576, 1536, 4096, 14336])
    parser.add_argument("--weights", type=int, default=1 << 20, help="about how many in a matrix")
    parser.add_argument("--seed-precision", type=int, default=3)
    parser.add_argument("--parent-precision", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    args = parser.parse_args()

    numba.set_num_threads(args.threads)
    pool = _core.ThreadPool(args.threads)
    # Compiles, and spins both pools up.
    weights, sensitivities = heavy_tailed_rows(4, 600, seed=0)
    quantize_with_flash1dkmeans(weights, sensitivities, args.seed_precision, args.parent_precision)

    precisions = range(args.seed_precision, args.parent_precision + 1)
    print(
        f"seed {args.seed_precision} -> parent {args.parent_precision}, {args.threads} threads, "
        f"least of {args.repeats}; error: anyprec's weighted error over flash1dkmeans's"
    )
    print(
        f"{'K':>6} {'rows':>6} {'anyprec':>10} {'flash1dkmeans':>14} {'':>7}"
        + "".join(f"{f'error@{b}':>9}" for b in precisions)
    )
    print(f"{'':>6} {'':>6} {'rows/s':>10} {'rows/s':>14} {'ratio':>7}")
    results = []
    for columns in args.columns:
        result = measure(columns, args, pool)
        results.append(result)
        print(
            f"{columns:>6} {result['rows']:>6} {result['anyprec_rows_per_second']:>10.0f} "
            f"{result['flash1dkmeans_rows_per_second']:>14.0f} {result['speedup']:>6.2f}x"
            + "".join(f"{result['error_ratio'][b]:>9.3f}" for b in precisions),
            flush=True,
        )
    if args.json:
        report = {
            "seed_precision": args.seed_precision,
            "parent_precision": args.parent_precision,
            "threads": args.threads,
            "flash1dkmeans": version("flash1dkmeans"),
            "results": results,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
