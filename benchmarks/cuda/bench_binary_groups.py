"""Binary coding with groups along K on a GPU: microseconds by kernel, rows of x and precision.

The kernels that serve it, beside dequantization and cuBLAS, a bare read of the same bytes and the
copy ceiling; also checks that the kernels agree. `planes x2` is the kernel by planes with two
blocks on a multiprocessor. A group size of 0 is a codebook a row.

    python benchmarks/cuda/bench_binary_groups.py [--short] [--shapes NxK ...] [--rows M ...]
        [--precisions B ...] [--group-sizes G ...] [--json FILE]
"""

import argparse
import ctypes
import json
from functools import partial
from pathlib import Path

import torch
from bench_linear import BareRead, copies_of, copy_ceiling, library, median_us, random_halves
from rich.console import Console
from rich.table import Table

import anyprec  # noqa: F401  registers the operators

KERNELS = ["mask-dot", "planes", "planes x2", "tables", "dequantize"]
NOT_SERVED = -2


class Groups:
    """One random matrix in as many copies as it takes to stay out of the cache."""

    def __init__(self, n, k, group_size, precision):
        self.n, self.k, self.group_size, self.precision = n, k, group_size, precision
        self.library = library()
        groups = -(-k // group_size) if group_size else 1
        self.bytes = n * k * precision // 8 + 2 * n * groups * (precision + 1)
        self.workspace = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
        self.copies = []
        for _ in range(copies_of(self.bytes)):
            canonical = torch.randint(256, (precision, n, k // 8), dtype=torch.uint8, device="cuda")
            planes = torch.ops.anyprec.pack_planes(canonical, k)
            lut = random_halves(n, groups, 1)
            self.copies.append((planes, lut, random_halves(n, groups, precision, 1)))

    def call(self, kernel, x, y, planes, lut, alpha):
        pointer = ctypes.c_void_p
        size = ctypes.c_int64
        return self.library.anyprec_binary_groups(
            kernel.encode(),
            pointer(x.data_ptr()),
            size(x.shape[0]),
            size(self.k),
            size(self.n),
            pointer(planes.data_ptr()),
            pointer(lut.data_ptr()),
            pointer(alpha.data_ptr()),
            size(self.group_size),
            self.precision,
            pointer(y.data_ptr()),
            pointer(self.workspace.data_ptr()),
            size(self.workspace.numel()),
            pointer(torch.cuda.current_blas_handle()),
            pointer(torch.cuda.current_stream().cuda_stream),
        )

    def launch(self, *arguments):
        status = self.call(*arguments)
        if status != 0:
            raise RuntimeError(f"anyprec_binary_groups: {status} (a CUDA error, -1: refused)")

    def measure(self, m):
        """Microseconds by kernel, None where it does not serve; the largest difference from
        dequantization, relative to the largest result."""
        x = torch.randn(m, self.k, dtype=torch.float16, device="cuda")
        results, times = {}, {}
        for kernel in KERNELS:
            y = torch.full((m, self.n), float("nan"), dtype=torch.float16, device="cuda")
            status = self.call(kernel, x, y, *self.copies[0])
            if status == NOT_SERVED:
                times[kernel] = None
                continue
            if status != 0:
                raise RuntimeError(f"anyprec_binary_groups: {kernel} gave {status}")
            torch.cuda.synchronize()
            results[kernel] = y.float()
            times[kernel] = median_us(
                [partial(self.launch, kernel, x, y, *copy) for copy in self.copies], repeats=5
            )
        expected = results.pop("dequantize")
        scale = expected.abs().max()
        difference = max(((y - expected).abs().max() / scale).item() for y in results.values())
        return times, difference


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="14336x4096 in under half a minute")
    parser.add_argument("--shapes", nargs="+", metavar="NxK")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 3, 4, 8, 16, 32, 64])
    parser.add_argument("--precisions", nargs="+", type=int)
    parser.add_argument("--group-sizes", nargs="+", type=int, default=[128])
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    shapes = args.shapes or (["14336x4096"] if args.short else ["14336x4096", "4096x14336"])
    precisions = args.precisions or ([2, 3, 4, 8] if args.short else list(range(2, 9)))
    console = Console(width=170)
    ceiling, read = copy_ceiling(), BareRead()
    device = torch.cuda.get_device_name()
    console.print(f"{device}, copy ceiling {ceiling:.0f} GB/s")
    results = []
    for shape in shapes:
        n, k = map(int, shape.split("x"))
        for group_size in args.group_sizes:
            table = Table(title=f"{n} x {k}, groups of {group_size}: us (percent of the ceiling)")
            for column in ["bits", "M", *KERNELS, "bare read", "difference"]:
                table.add_column(column, justify="right")
            for precision in precisions:
                groups = Groups(n, k, group_size, precision)
                floor = read.us(groups.bytes)
                for m in args.rows:
                    times, difference = groups.measure(m)
                    cells = [
                        "" if us is None else f"{us:.1f} ({groups.bytes / us / 10 / ceiling:.0f})"
                        for us in times.values()
                    ]
                    table.add_row(
                        str(precision), str(m), *cells, f"{floor:.1f}", f"{difference:.1e}"
                    )
                    results.append(
                        {
                            "n": n,
                            "k": k,
                            "group_size": group_size,
                            "precision": precision,
                            "m": m,
                            "bytes": groups.bytes,
                            "read_us": floor,
                            "difference": difference,
                            "us": times,
                        }
                    )
                del groups
            console.print(table)
            if args.json:
                report = {"device": device, "copy_gb_s": ceiling, "results": results}
                Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
