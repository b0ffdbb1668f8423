"""anyprec::linear on a GPU: microseconds by shape, rows and precision, beside cuBLAS in half
precision and the copy bandwidth of the same run.

Every call is timed over copies of the weights that together exceed the L2 cache, replayed as one
CUDA graph; figures are medians.

    python benchmarks/cuda/bench_linear.py [--json FILE]
"""

import argparse
import json
import statistics
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

import anyprec  # noqa: F401  registers the operators

SHAPES = [(4096, 4096), (14336, 4096), (4096, 14336)]
ROWS = [1, 16, 512]
PRECISIONS = range(2, 9)


def median_us(calls, repeats=20):
    """Median time of one call; `calls` are captured together in one graph."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(calls))
    return statistics.median(times)


def copy_bandwidth():
    """GB/s of a device-to-device copy, bytes read plus bytes written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / median_us([partial(target.copy_, source)]) / 1000


def measure(n, k, m, bandwidth):
    copies = max(2, 3 * torch.cuda.get_device_properties(0).L2_cache_size // (n * k) + 1)
    x = torch.randn(m, k, dtype=torch.float16, device="cuda")
    planes = [
        torch.ops.anyprec.pack_planes(
            torch.randint(256, (8, n, k // 8), dtype=torch.uint8, device="cuda"), k
        )
        for _ in range(copies)
    ]
    dense = [torch.randn(n, k, dtype=torch.float16, device="cuda") for _ in range(copies)]
    row = {"n": n, "k": k, "m": m}
    row["cublas_fp16_us"] = median_us([partial(torch.nn.functional.linear, x, w) for w in dense])
    for b in PRECISIONS:
        lut = torch.randn(n, 1, 1 << b, dtype=torch.float16, device="cuda")
        form = (b, k, 0, "one")
        calls = [partial(torch.ops.anyprec.linear, x, p, lut, None, None, *form) for p in planes]
        us = median_us(calls)
        codes = n * k * b / 8
        row[f"us_{b}"] = us
        row[f"percent_of_copy_{b}"] = 100 * codes / us / 1000 / bandwidth
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    bandwidth = copy_bandwidth()
    device = torch.cuda.get_device_name()
    results = [measure(n, k, m, bandwidth) for n, k in SHAPES for m in ROWS]
    table = Table(title=f"{device}, copy {bandwidth:.0f} GB/s; microseconds (percent of copy)")
    for column in ["N x K", "M", "cuBLAS fp16", *[f"{b} bits" for b in PRECISIONS]]:
        table.add_column(column, justify="right")
    for row in results:
        cells = [f"{row[f'us_{b}']:.1f} ({row[f'percent_of_copy_{b}']:.0f}%)" for b in PRECISIONS]
        table.add_row(
            f"{row['n']} x {row['k']}", str(row["m"]), f"{row['cublas_fp16_us']:.1f}", *cells
        )
    Console(width=140).print(table)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {"device": device, "copy_gb_s": bandwidth, "results": results}, file, indent=1
            )


if __name__ == "__main__":
    main()
