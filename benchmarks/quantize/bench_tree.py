"""Times the quantizer's tree on a GPU beside the CPU's, on the same rows.

Shapes are those of Llama-2-7B by default. Weights are heavy-tailed and rounded to `--dtype`,
sensitivities span decades; both are made from a fixed seed. A GPU's time is the least of
`--repeats`, of the operator alone, results left where they are; the CPU takes as many of the rows
as keep it busy for about a second, on `--threads` threads. Energies are those of the CPU's rows.

    python benchmarks/quantize/bench_tree.py
    python benchmarks/quantize/bench_tree.py --dtype float32 --seed-precision 4 --json tree.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import anyprec  # noqa: F401  registers the operators
from anyprec import _core

SHAPES = ["4096x4096", "11008x4096", "4096x11008"]
# How often each shape is in a block of Llama-2-7B, and its blocks.
BLOCK = {"4096x4096": 4, "11008x4096": 2, "4096x11008": 1}
BLOCKS = 32


def rows_like_a_models(
    n: int, k: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(n + k)
    normal = lambda: torch.randn(n, k, device=device, generator=generator)  # noqa: E731
    # A normal over the root of a mean of squares: Student's t, but for its far tail.
    weight = 0.02 * normal() / (0.25 * sum(normal().square() for _ in range(4))).sqrt()
    return weight.to(dtype), (normal() * normal().exp()).square()


def gpu_seconds(weight, s, seed: int, group_size: int, repeats: int) -> float:
    def run() -> None:
        torch.ops.anyprec.quantize_matrix("rows", weight, s, 2, seed, 8, group_size)

    run()
    best = float("inf")
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def on_cpu(weight, s, seed: int, group_size: int, pool) -> tuple[float, object, int]:
    """Seconds a row, what came out, and of how many rows."""
    rows = min(len(weight), 16)
    while True:
        w, sensitivities = weight[:rows].float().cpu().numpy(), s[:rows].cpu().numpy()
        start = time.perf_counter()
        found = _core.quantize_matrix(
            "rows", w, sensitivities, seed_precision=seed, group_size=group_size, pool=pool
        )
        seconds = time.perf_counter() - start
        if seconds > 0.5 or rows == len(weight):
            return seconds / rows, found, rows
        rows = min(len(weight), 4 * rows)


def measure(shape: str, args: argparse.Namespace, pool) -> dict:
    n, k = map(int, shape.split("x"))
    weight, s = rows_like_a_models(n, k, getattr(torch, args.dtype), "cuda")
    seed, group_size = args.seed_precision, args.group_size
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = gpu_seconds(weight, s, seed, group_size, args.repeats)
    peak = torch.cuda.max_memory_allocated() - before
    cpu_row, found, rows = on_cpu(weight, s, seed, group_size, pool)
    codes, _, errors = torch.ops.anyprec.quantize_matrix(
        "rows", weight[:rows].contiguous(), s[:rows].contiguous(), 2, seed, 8, group_size
    )
    wanted = torch.tensor(list(found.errors.values()), dtype=torch.float64)
    same = (codes.cpu() == torch.from_numpy(found.codes)).all(1)
    return {
        "shape": shape,
        "gpu_ms": seconds * 1e3,
        "gpu_rows_per_second": n / seconds,
        "cpu_ms": cpu_row * n * 1e3,
        "cpu_rows_per_second": 1 / cpu_row,
        "speedup": cpu_row * n / seconds,
        "gpu_mib": peak / 2**20,
        "rows_with_other_codes": 1.0 - same.double().mean().item(),
        "largest_energy_ratio": (errors.cpu() / wanted).max().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="NxK")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--seed-precision", type=int, default=3)
    parser.add_argument("--group-size", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    args = parser.parse_args()

    pool = _core.ThreadPool(args.threads)
    print(
        f"{torch.cuda.get_device_name()}; {pool.concurrency} CPU threads; {args.dtype}, "
        f"seed {args.seed_precision} -> 8"
    )
    print(
        f"{'N x K':>12}{'GPU ms':>10}{'rows/s':>12}{'CPU ms':>10}{'rows/s':>10}{'ratio':>8}"
        f"{'MiB':>7}{'other codes':>13}{'energy':>14}"
    )
    results = []
    for shape in args.shapes:
        r = measure(shape, args, pool)
        results.append(r)
        print(
            f"{shape:>12}{r['gpu_ms']:>10.2f}{r['gpu_rows_per_second']:>12.0f}"
            f"{r['cpu_ms']:>10.0f}{r['cpu_rows_per_second']:>10.0f}{r['speedup']:>7.1f}x"
            f"{r['gpu_mib']:>7.0f}{r['rows_with_other_codes']:>13.2%}"
            f"{r['largest_energy_ratio']:>14.9f}",
            flush=True,
        )
    if set(args.shapes) == set(SHAPES):
        for device in ("gpu", "cpu"):
            block = sum(r[f"{device}_ms"] * BLOCK[r["shape"]] for r in results)
            print(f"Llama-2-7B, {device.upper()}: {block * BLOCKS / 1e3:.1f} s")
    if args.json:
        report = {"gpu": torch.cuda.get_device_name(), "threads": pool.concurrency}
        report |= {"dtype": args.dtype, "seed_precision": args.seed_precision, "results": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
