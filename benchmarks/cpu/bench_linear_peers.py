"""anyprec::linear on a CPU beside its peers, in one run, on the same shapes and threads: torch's
fp32 and bf16 linear, and the Q4_0 mat-vec of llama.cpp.

Weights are read from memory: calls rotate through copies that together exceed the last-level cache.
Every contestant is measured in turns, and the turns repeat, so that a noisy neighbour hits all.

    python benchmarks/cpu/bench_linear_peers.py [--threads 1,2] [--json FILE] [--ggml FOLDER]

--ggml (or ANYPREC_GGML): a folder with libggml.so, libggml-base.so and libggml-cpu.so, such as
`llama_cpp/lib` of the PyPI package llama-cpp-python. Without it that peer is left out, loudly.
"""

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import anyprec  # noqa: F401  registers the operators

SHAPES = [(4096, 4096), (14336, 4096)]
MATMUL_SHAPE = (4096, 4096)
MATMUL_ROWS = [8, 32, 512]
ROTATE_BYTES = 192 << 20


def copies_of(nbytes, m):
    """Copies to rotate through; where a product has many rows, its weights' way from memory is
    a small part of it, and two will do."""
    return 2 if m >= 32 else max(2, -(-ROTATE_BYTES // nbytes))


class Anyprec:
    def __init__(self, n, k, m, precision):
        self.name = f"anyprec, {precision} bits"
        # A real shape of values, so that no table holds NaN: 2^-6 to 2^-4.
        lut = torch.empty(n, 1, 1 << precision).uniform_(1 / 64, 1 / 16).half()
        planes = torch.randint(256, (precision, n, k // 8), dtype=torch.uint8)
        packed = torch.ops.anyprec.pack_planes(planes, k)
        self.bytes = packed.numel() + lut.numel() * 2
        self.weights = [(packed.clone(), lut.clone()) for _ in range(copies_of(self.bytes, m))]
        self.x, self.k, self.precision = torch.randn(m, k), k, precision

    def run(self):
        for planes, lut in self.weights:
            torch.ops.anyprec.linear(
                self.x, planes, lut, None, None, self.precision, self.k, 0, "one"
            )
        return len(self.weights)


class Torch:
    def __init__(self, n, k, m, dtype):
        self.name = f"torch {str(dtype).removeprefix('torch.')}"
        self.bytes = n * k * dtype.itemsize
        self.weights = [torch.randn(n, k).to(dtype) for _ in range(copies_of(self.bytes, m))]
        self.x = torch.randn(m, k).to(dtype)

    def run(self):
        for weight in self.weights:
            torch.nn.functional.linear(self.x, weight)
        return len(self.weights)


class Ggml:
    """The few functions of ggml's C interface that one matrix product needs."""

    F32, Q4_0 = 0, 2

    class InitParams(ctypes.Structure):
        _fields_ = [
            ("mem_size", ctypes.c_size_t),
            ("mem_buffer", ctypes.c_void_p),
            ("no_alloc", ctypes.c_bool),
        ]

    def __init__(self, folder):
        self.libraries = [
            ctypes.CDLL(str(Path(folder) / f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL)
            for name in ("ggml-base", "ggml-cpu", "ggml")
        ]
        self("ggml_cpu_init", None)

    def __call__(self, name, restype, *args, argtypes=None):
        for library in self.libraries:
            function = getattr(library, name, None)
            if function is not None:
                break
        else:
            raise RuntimeError(f"{name} is in none of ggml's libraries")
        function.restype = restype
        function.argtypes = argtypes
        return function(*args)

    def context(self, size, no_alloc):
        params = self.InitParams(size, None, no_alloc)
        return ctypes.c_void_p(
            self("ggml_init", ctypes.c_void_p, params, argtypes=[self.InitParams])
        )

    def tensor(self, context, kind, ne0, ne1):
        sizes = (ctypes.c_int64(ne0), ctypes.c_int64(ne1))
        return ctypes.c_void_p(
            self("ggml_new_tensor_2d", ctypes.c_void_p, context, ctypes.c_int(kind), *sizes)
        )

    def repack_buffers(self):
        """The buffer type that llama.cpp itself keeps Q4_0 weights in where the CPU gains by it."""
        registry = ctypes.c_void_p(self("ggml_backend_cpu_reg", ctypes.c_void_p))
        device = ctypes.c_void_p(
            self("ggml_backend_reg_dev_get", ctypes.c_void_p, registry, ctypes.c_size_t(0))
        )
        address = self(
            "ggml_backend_reg_get_proc_address",
            ctypes.c_void_p,
            registry,
            b"ggml_backend_dev_get_extra_bufts",
        )
        if not address:
            return None
        kinds = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(device)
        for i in range(64):
            if not kinds or not kinds[i]:
                return None
            kind = ctypes.c_void_p(kinds[i])
            if self("ggml_backend_buft_name", ctypes.c_char_p, kind) == b"CPU_REPACK":
                return kind
        return None


class LlamaQ4:
    def __init__(self, ggml, n, k, m, repacked):
        self.name = "llama.cpp Q4_0" + (", repacked" if repacked else "")
        self.ggml, self.bytes = ggml, n * k // 32 * 18
        copies = copies_of(self.bytes, m)
        values = torch.randn(n, k)
        quantized = ctypes.create_string_buffer(self.bytes)
        sizes = [ctypes.c_int64(v) for v in (0, n, k)]
        ggml(
            "ggml_quantize_chunk",
            ctypes.c_size_t,
            ctypes.c_int(ggml.Q4_0),
            ctypes.c_void_p(values.data_ptr()),
            quantized,
            *sizes,
            None,
        )
        weights_context = ggml.context(1 << 20, True)
        weights = [ggml.tensor(weights_context, ggml.Q4_0, k, n) for _ in range(copies)]
        kind = (
            ggml.repack_buffers()
            if repacked
            else ctypes.c_void_p(ggml("ggml_backend_cpu_buffer_type", ctypes.c_void_p))
        )
        if kind is None:
            raise RuntimeError("this build of ggml has no repacked Q4_0 for this CPU")
        allocate = "ggml_backend_alloc_ctx_tensors_from_buft"
        if not ggml(allocate, ctypes.c_void_p, weights_context, kind):
            raise RuntimeError("ggml could not allocate the weights")
        for weight in weights:
            where = (ctypes.c_size_t(0), ctypes.c_size_t(self.bytes))
            ggml("ggml_backend_tensor_set", None, weight, quantized, *where)
        # One graph of all the products: the cost of starting its threads is shared by them.
        self.context = ggml.context((64 << 20) + copies * n * m * 8, False)
        x = ggml.tensor(self.context, ggml.F32, k, m)
        data = ggml("ggml_get_data", ctypes.c_void_p, x)
        activations = torch.randn(m, k)
        ctypes.memmove(data, activations.data_ptr(), activations.numel() * 4)
        self.graph = ctypes.c_void_p(ggml("ggml_new_graph", ctypes.c_void_p, self.context))
        for weight in weights:
            y = ctypes.c_void_p(ggml("ggml_mul_mat", ctypes.c_void_p, self.context, weight, x))
            ggml("ggml_build_forward_expand", None, self.graph, y)
        self.copies, self.last = copies, y
        self.check(values, activations)

    def check(self, values, activations):
        """That the products are what they should be: no figure for a kernel that did not run."""
        self.run()
        n, m = values.shape[0], activations.shape[0]
        found = torch.empty(m, n)
        data = self.ggml("ggml_get_data", ctypes.c_void_p, self.last)
        ctypes.memmove(found.data_ptr(), data, m * n * 4)
        expected = activations @ values.T
        error = ((found - expected).norm() / expected.norm()).item()
        if not error < 0.2:
            raise RuntimeError(f"{self.name}: relative error {error} of the product")

    def run(self):
        status = self.ggml(
            "ggml_graph_compute_with_ctx",
            ctypes.c_int,
            self.context,
            self.graph,
            ctypes.c_int(torch.get_num_threads()),
        )
        if status != 0:
            raise RuntimeError(f"ggml_graph_compute_with_ctx returned {status}")
        return self.copies


def contestants(n, k, m, ggml):
    for precision in range(2, 9):
        yield Anyprec(n, k, m, precision)
    yield Torch(n, k, m, torch.float32)
    yield Torch(n, k, m, torch.bfloat16)
    if ggml is not None:
        yield LlamaQ4(ggml, n, k, m, False)
        if ggml.repack_buffers() is not None:
            yield LlamaQ4(ggml, n, k, m, True)


def measure(n, k, m, threads, ggml, turns):
    torch.set_num_threads(threads)
    entries = list(contestants(n, k, m, ggml))
    times = {entry.name: [] for entry in entries}
    for entry in entries:
        entry.run()
    for _ in range(turns):
        for entry in entries:
            start = time.perf_counter()
            calls = entry.run()
            times[entry.name].append(1e6 * (time.perf_counter() - start) / calls)
    return [
        {
            "n": n,
            "k": k,
            "m": m,
            "threads": threads,
            "contestant": entry.name,
            "median_us": statistics.median(times[entry.name]),
            "best_us": min(times[entry.name]),
            "bytes": entry.bytes,
            "gb_per_s": entry.bytes / min(times[entry.name]) / 1e3,
        }
        for entry in entries
    ]


def read_bandwidth(threads):
    """GB/s of a sum over more memory than the caches hold, at its best."""
    torch.set_num_threads(threads)
    data = torch.ones(ROTATE_BYTES // 4)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - start)
    return ROTATE_BYTES / min(times) / 1e9


def show(title, rows, bandwidth):
    table = Table(title=f"{title}; memory reads at {bandwidth:.1f} GB/s", title_justify="left")
    for column in ("", "best us", "median us", "GB/s", "of memory"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        table.add_row(
            row["contestant"],
            f"{row['best_us']:.1f}",
            f"{row['median_us']:.1f}",
            f"{row['gb_per_s']:.1f}",
            f"{100 * row['gb_per_s'] / bandwidth:.0f} %",
        )
    Console(width=100).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--turns", type=int, default=7, help="repeats of every measurement")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--ggml", default=os.environ.get("ANYPREC_GGML"), help="ggml's libraries")
    parser.add_argument("--no-matmul", action="store_true", help="only M = 1")
    arguments = parser.parse_args()
    ggml = Ggml(arguments.ggml) if arguments.ggml else None
    if ggml is None:
        print("NO llama.cpp in these tables: give --ggml or ANYPREC_GGML", file=sys.stderr)
    jobs = [(n, k, 1) for n, k in SHAPES]
    if not arguments.no_matmul:
        jobs += [(*MATMUL_SHAPE, m) for m in MATMUL_ROWS]
    results = []
    for threads in map(int, arguments.threads.split(",")):
        bandwidth = read_bandwidth(threads)
        for n, k, m in jobs:
            rows = measure(n, k, m, threads, ggml, arguments.turns)
            show(f"{n} x {k}, M = {m}, {threads} thread(s)", rows, bandwidth)
            results += [row | {"memory_gb_per_s": bandwidth} for row in rows]
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
