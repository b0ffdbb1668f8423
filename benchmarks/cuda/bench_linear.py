"""anyprec::linear on a GPU: microseconds by shape, codebook, rows of x and precision.

Beside each other in one run: the kernels of every codebook form, a bare read of the same bytes
(planes and codebooks), the copy ceiling (a device-to-device copy, bytes read plus bytes written),
cuBLAS in half precision, and torch's 4-bit kernel (_weight_int4pack_mm).

Every call is timed over copies of the weights that together exceed the L2 cache several times,
replayed as one CUDA graph of about a hundred launches; figures are medians of the replays.

    python benchmarks/cuda/bench_linear.py [--models NAME ...] [--rows M ...] [--forms NAME ...]
                                           [--shapes NxK ...] [--precisions B ...] [--json FILE]
"""

import argparse
import ctypes
import json
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import anyprec  # noqa: F401  registers the operators

# [N, K] of the decoder's linears; Q/K/V and gate/up stacked, as an engine multiplies by them.
MODELS = {
    "study": [(14336, 4096), (28672, 4096), (4096, 14336), (4096, 4096), (6144, 4096)],
    "llama-2-7b": [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)],
    "llama-3.1-8b": [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)],
    "llama-3.1-70b": [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)],
    "qwen3-8b": [(6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288)],
}
# lut_bits, cell_groups, group_size
FORMS = {
    "full": (8, "one", 0),
    "L2": (2, "one", 0),
    "L3": (3, "one", 0),
    "L3 io": (3, "io", 0),
    "L3 sym": (3, "sym", 0),
    "L4": (4, "one", 0),
    "L4 io": (4, "io", 0),
    "L4 qu": (4, "qu", 0),
    "bcq": (0, "one", 0),
    "bcq g128": (0, "one", 128),
}
CLASSES = {"one": lambda bits: 1, "io": lambda bits: 2, "sym": lambda bits: 2 ** (bits - 1)}
CLASSES["qu"] = lambda bits: 4


def median_us(calls, repeats=9, launches=96):
    """Median time of one call; `calls` take turns in one graph of about `launches` launches."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    rounds = max(1, launches // len(calls))
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    start = time.perf_counter()
    while time.perf_counter() - start < 0.05:  # until the clocks are up
        graph.replay()
        torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1000 / (rounds * len(calls)))
    return statistics.median(times)


def copy_ceiling(repeats=9):
    """GB/s of a device-to-device copy, bytes read plus bytes written (not in a graph, where a copy
    is left to a slower engine)."""
    source = torch.randint(256, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return 2 * source.numel() / statistics.median(times) / 1e6


def library():
    built = Path("build/gpu/benchmarks/cuda/libanyprec_bench_cuda.so")
    return ctypes.CDLL(str(built.resolve()))


class BareRead:
    def __init__(self):
        self.library = library()
        self.memory = torch.randint(256, (1 << 30,), dtype=torch.uint8, device="cuda")
        self.sink = torch.zeros(1, dtype=torch.int32, device="cuda")
        self.known = {}

    def call(self, offset, size):
        status = self.library.anyprec_read_bytes(
            ctypes.c_void_p(self.memory.data_ptr() + offset),
            ctypes.c_size_t(size),
            ctypes.c_void_p(self.sink.data_ptr()),
            ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
        )
        if status != 0:
            raise RuntimeError(f"anyprec_read_bytes: CUDA error {status}")

    def us(self, size):
        size = size // 4096 * 4096
        if size not in self.known:
            turns = max(1, min(64, self.memory.numel() // size))
            calls = [partial(self.call, i * size, size) for i in range(turns)]
            self.known[size] = median_us(calls)
        return self.known[size]


def copies_of(size):
    return max(4, 3 * torch.cuda.get_device_properties(0).L2_cache_size // size + 1)


def random_halves(*shape):
    return (torch.rand(shape, device="cuda") * 0.2 - 0.1).half()


class Ours:
    """One random matrix in as many copies as it takes to stay out of the cache."""

    def __init__(self, n, k, form, precision):
        bits, self.groups, self.group_size = FORMS[form]
        table_bits = min(precision, bits)
        groups = -(-k // self.group_size) if self.group_size else 1
        self.k, self.precision = k, precision
        signs = precision - table_bits
        self.bytes = n * k * precision // 8 + 2 * n * groups * (1 << table_bits)
        self.bytes += 2 * n * groups * signs * CLASSES[self.groups](bits)
        self.copies = []
        for _ in range(copies_of(self.bytes)):
            canonical = torch.randint(256, (precision, n, k // 8), dtype=torch.uint8, device="cuda")
            planes = torch.ops.anyprec.pack_planes(canonical, k)
            lut = random_halves(n, groups, 1 << table_bits)
            shape = (n, groups, signs, CLASSES[self.groups](bits))
            alpha = random_halves(*shape) if signs else None
            self.copies.append((planes, lut, alpha))

    def us(self, m):
        x = torch.randn(m, self.k, dtype=torch.float16, device="cuda")
        form = (self.precision, self.k, self.group_size, self.groups)
        return median_us(
            [
                partial(torch.ops.anyprec.linear, x, planes, lut, alpha, None, *form)
                for planes, lut, alpha in self.copies
            ]
        )


class PrecisionInMemory:
    """One row of x by linear_at: the same memory at every precision, chosen by an integer there."""

    def __init__(self, n, k, form):
        self.form, self.n, self.k, self.library = form, n, k, library()
        bits, groups, _ = FORMS[form]
        self.x = torch.randn(k, dtype=torch.float16, device="cuda")
        self.y = torch.empty(n, dtype=torch.float16, device="cuda")
        self.precision = torch.zeros(1, dtype=torch.int32, device="cuda")
        self.copies = []
        for _ in range(copies_of(n * k // 4)):
            canonical = torch.randint(256, (8, n, k // 8), dtype=torch.uint8, device="cuda")
            planes = torch.ops.anyprec.pack_planes(canonical, k)
            luts = [random_halves(n, 1 << min(b, bits)) for b in range(2, 9)]
            alphas = [
                random_halves(n, b - bits, CLASSES[groups](bits)) if b > bits else None
                for b in range(2, 9)
            ]
            self.copies.append((planes, luts, alphas))

    def call(self, planes, luts, alphas):
        def pointers(tensors):
            return (ctypes.c_void_p * 7)(*[0 if t is None else t.data_ptr() for t in tensors])

        bits, groups, group_size = FORMS[self.form]
        status = self.library.anyprec_linear_at(
            ctypes.c_void_p(self.x.data_ptr()),
            ctypes.c_int64(self.k),
            ctypes.c_int64(self.n),
            ctypes.c_void_p(planes.data_ptr()),
            pointers(luts),
            pointers(alphas),
            bits,
            groups.encode(),
            ctypes.c_int64(group_size),
            ctypes.c_void_p(self.precision.data_ptr()),
            ctypes.c_void_p(self.y.data_ptr()),
            ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
        )
        if status != 0:
            raise RuntimeError(f"anyprec_linear_at: {status} (a CUDA error, -1: refused)")

    def us(self, precision):
        self.precision.fill_(precision)
        return median_us([partial(self.call, *copy) for copy in self.copies])


def print_precision_in_memory(shapes, forms, precisions, console):
    for n, k in shapes:
        for form in forms:
            memory = PrecisionInMemory(n, k, form)
            times = []
            for b in precisions:
                static = Ours(n, k, form, b).us(1)
                times.append(f"{b} bits {memory.us(b):.1f} (static {static:.1f})")
            console.print(f"{n} x {k}, {form}, precision in device memory: {', '.join(times)}")


def cublas_us(n, k, m):
    x = torch.randn(m, k, dtype=torch.float16, device="cuda")
    weights = [
        torch.randn(n, k, dtype=torch.float16, device="cuda") for _ in range(copies_of(2 * n * k))
    ]
    return median_us([partial(torch.nn.functional.linear, x, w) for w in weights])


def tinygemm_us(n, k, m):
    x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
    calls = []
    for _ in range(copies_of(n * k // 2)):
        codes = torch.randint(256, (n, k // 2), dtype=torch.uint8, device="cuda")
        packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
        scales = torch.randn(k // 128, n, 2, dtype=torch.bfloat16, device="cuda")
        calls.append(partial(torch.ops.aten._weight_int4pack_mm, x, packed, 128, scales))
    return median_us(calls)


def measure(shape, rows, forms, precisions, read):
    n, k = shape
    peers = {m: {"cublas": cublas_us(n, k, m)} for m in rows}
    for m in rows:
        peers[m]["tinygemm"] = tinygemm_us(n, k, m) if m <= 64 else None
    torch.cuda.empty_cache()
    results = []
    for form in forms:
        for b in precisions:
            ours = Ours(n, k, form, b)
            floor = read.us(ours.bytes)
            for m in rows:
                results.append(
                    {
                        "n": n,
                        "k": k,
                        "form": form,
                        "precision": b,
                        "m": m,
                        "us": ours.us(m),
                        "bytes": ours.bytes,
                        "read_us": floor,
                        "cublas_fp16_us": peers[m]["cublas"],
                        "tinygemm_int4_us": peers[m]["tinygemm"],
                    }
                )
            del ours
    return results


def print_table(shape, results, ceiling, precisions, console):
    n, k = shape
    table = Table(title=f"{n} x {k}: us (percent of the copy ceiling / of a bare read)")
    table.add_column("codebook")
    for column in ["M", *[f"{b} bits" for b in precisions], "cuBLAS fp16", "tinygemm int4"]:
        table.add_column(column, justify="right")
    rows = {}
    for r in results:
        rows.setdefault((r["form"], r["m"]), {})[r["precision"]] = r
    for (form, m), cells in rows.items():
        texts = []
        for b in precisions:
            r = cells[b]
            copy = 100 * r["bytes"] / r["us"] / 1000 / ceiling
            texts.append(f"{r['us']:.1f} ({copy:.0f}/{100 * r['read_us'] / r['us']:.0f})")
        tinygemm = r["tinygemm_int4_us"]
        table.add_row(
            form,
            str(m),
            *texts,
            f"{r['cublas_fp16_us']:.1f}",
            "" if tinygemm is None else f"{tinygemm:.1f}",
        )
    console.print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["study"], choices=[*MODELS, "all"])
    parser.add_argument("--shapes", nargs="+", metavar="NxK", help="instead of models")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument(
        "--forms", nargs="+", default=["full", "L3", "L3 io", "bcq"], choices=[*FORMS, "all"]
    )
    parser.add_argument("--precisions", nargs="+", type=int, default=list(range(2, 9)))
    parser.add_argument(
        "--precision-in-memory",
        action="store_true",
        help="only that: one row, by a precision in device memory and by one that the host knows",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    console = Console(width=170)
    ceiling = copy_ceiling()
    read = BareRead()
    device = torch.cuda.get_device_name()
    console.print(f"{device}, copy ceiling {ceiling:.0f} GB/s")
    forms = list(FORMS) if "all" in args.forms else args.forms
    models = list(MODELS) if "all" in args.models else args.models
    shapes = list(dict.fromkeys(shape for model in models for shape in MODELS[model]))
    if args.shapes:
        shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes]
    if args.precision_in_memory:
        print_precision_in_memory(shapes, forms, args.precisions, console)
        return
    results = []
    for shape in shapes:
        measured = measure(shape, args.rows, forms, args.precisions, read)
        print_table(shape, measured, ceiling, args.precisions, console)
        results += measured
        if args.json:
            report = {"device": device, "copy_gb_s": ceiling, "results": results}
            Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
