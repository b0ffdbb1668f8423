"""Times torch.ops.anyprec.fit on matrices of a model's shapes, and reports energies by codebook.

Weights are heavy-tailed, inputs correlated; both are made from a fixed seed. Energies are relative
to the refit of a full table with the codes of exact clustering: what descent gains, and what a form
costs. A model's time is the sum over its matrices.

`--steps` profiles the first form on a GPU: the time of each kind of kernel, beside the time that
one product with the Hessian takes there ([n, K] @ [K, K] in TF32 and bf16, by libtorch) and one
pass over a matrix (read and write), which are the units that a fit is made of.

    python benchmarks/quantize/bench_fit.py --device cpu --threads 2
    python benchmarks/quantize/bench_fit.py --device cuda --model llama-2-7b --forms lut --steps
"""

from __future__ import annotations

import argparse
import json
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


# model: how many matrices of each shape it has
MODELS = {
    "smollm2-135m": {"576x576": 60, "192x576": 60, "1536x576": 60, "576x1536": 30},
    "llama-2-7b": {"4096x4096": 128, "11008x4096": 64, "4096x11008": 32},
}
# What a kernel's name has in it, by kind; the first that fits. Others are libtorch's own.
KINDS = {
    "sweep": ["sweep_kernel"],
    "sweep of the newest bit": ["newest_bit_kernel"],
    "refit: errors": ["::Error"],
    "refit: begin": ["::Begin"],
    "refit: step": ["::Step"],
    "means by slot": ["::Sums"],
    "products, fp16": ["nvjet_sm90_h"],
    "products, bf16": ["nvjet_sm90_t", "bf16bf16"],
    "products, fp32 and TF32": ["gemm", "cutlass", "splitK", "gemv"],
    "sorts": ["sort", "Sort"],
    "copies": ["Memcpy", "Memset"],
}


def problem(
    n: int, k: int, device: str, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    # Student's t with 6 degrees of freedom.
    weight = 0.05 * normal(n, k) / (normal(6, n, k).square_().mean(0)).sqrt_()
    low_rank = normal(k, k // 4) / (k // 4) ** 0.5
    x = normal(2 * k, k // 4) @ low_rank.T + 0.5 * normal(2 * k, k)
    x *= torch.exp(0.5 * normal(k))
    hessian = x.T @ x / len(x)
    matrix = _core.quantize_matrix(
        "bench",
        weight.cpu().numpy(),
        hessian.diagonal().expand(n, k).contiguous().cpu().numpy(),
        lowest_precision=2,
        seed_precision=3,
        parent_precision=8,
        group_size=0,
        pool=_core.ThreadPool(0),
    )
    return weight, torch.from_numpy(np.array(matrix.codes)).to(device), hessian


def run(arguments, form, rounds, sweeps):
    synchronize = torch.cuda.synchronize if arguments[0].is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    energies = torch.ops.anyprec.fit(*arguments, *form, 0, PRECISIONS, 3, TAUS, rounds, sweeps)[3]
    synchronize()
    return time.perf_counter() - start, energies.cpu()


def units(arguments) -> dict[str, float]:
    """Milliseconds of what a fit is made of."""
    weight, _, hessian = arguments

    def milliseconds(body, times: int = 5) -> float:
        body()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            body()
        torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start) / times

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        tf32 = milliseconds(lambda: weight @ hessian)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    narrow = weight.bfloat16(), hessian.bfloat16()
    other = torch.empty_like(weight)
    return {
        "product, TF32": tf32,
        "product, bf16": milliseconds(lambda: narrow[0] @ narrow[1]),
        "pass, fp32": milliseconds(lambda: other.copy_(weight)),
    }


def steps(arguments, form, rounds, sweeps) -> dict[str, dict[str, float]]:
    """Kernels of one fit by kind: milliseconds and launches."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run(arguments, form, rounds, sweeps)
    found: dict[str, dict[str, float]] = {}
    for event in profile.events():
        if event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        kind = next(
            (kind for kind, parts in KINDS.items() if any(part in event.name for part in parts)),
            "libtorch's other kernels",
        )
        sums = found.setdefault(kind, {"milliseconds": 0.0, "launches": 0})
        sums["milliseconds"] += event.time_range.elapsed_us() / 1000
        sums["launches"] += 1
    return dict(sorted(found.items(), key=lambda item: -item[1]["milliseconds"]))


def print_steps(found, unit, seconds: float) -> None:
    print("   units, ms: " + ", ".join(f"{name} {value:.3f}" for name, value in unit.items()))
    product, once = unit["product, TF32"], unit["pass, fp32"]
    head = f"{'ms':>9}{'share':>8}{'launches':>10}{'in products':>13}{'in passes':>11}"
    print(f"   {'kernels':26}{head}")
    total = 0.0
    for kind, sums in found.items():
        taken = sums["milliseconds"]
        total += taken
        print(
            f"   {kind:26}{taken:9.2f}{taken / (10 * seconds):7.1f}%{sums['launches']:10.0f}"
            f"{taken / product:13.1f}{taken / once:11.1f}"
        )
    idle = 1000 * seconds - total
    print(f"   {'no kernel running':26}{idle:9.2f}{idle / (10 * seconds):7.1f}%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own number")
    parser.add_argument("--model", default="smollm2-135m", choices=list(MODELS))
    parser.add_argument("--shapes", nargs="+", help="only these, NxK (default: the model's)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child-sweeps", type=int, default=2)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--steps", action="store_true", help="profile the first form (a GPU only)")
    parser.add_argument("--json", help="write everything to this file")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.cuda.get_device_name() if args.device != "cpu" else "cpu"
    if args.steps and args.device == "cpu":
        parser.error("--steps: found --device cpu, wanted a GPU")
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    counts = MODELS[args.model]
    results: list[dict] = []
    totals = dict.fromkeys(args.forms, 0.0)
    for shape in args.shapes or list(counts):
        n, k = map(int, shape.split("x"))
        arguments = problem(n, k, args.device)
        run(arguments, FORMS["lut"], 0, 0)  # warm
        seconds, base = run(arguments, FORMS["lut"], 0, 0)
        print(f"\n[{n}, {k}]  refit of a full table: {seconds:.3f} s")
        result = {"shape": [n, k], "refit_seconds": seconds, "forms": {}}
        results.append(result)
        print(f"{'':10}{'seconds':>9}{'ns/weight':>11}   energies at {PRECISIONS}")
        for name in args.forms:
            if args.device != "cpu":
                run(arguments, FORMS[name], args.rounds, args.child_sweeps)  # warm
            seconds, energies = run(arguments, FORMS[name], args.rounds, args.child_sweeps)
            ratios = (energies / base).tolist()
            totals[name] += seconds * counts.get(shape, 0)
            result["forms"][name] = {"seconds": seconds, "energies": ratios}
            text = "".join(f"{ratio:9.3f}" for ratio in ratios)
            print(f"{name:10}{seconds:9.3f}{seconds * 1e9 / (n * k):11.1f}{text}")
        if args.steps:
            name = args.forms[0]
            result["units"] = units(arguments)
            result["steps"] = steps(arguments, FORMS[name], args.rounds, args.child_sweeps)
            print_steps(result["steps"], result["units"], result["forms"][name]["seconds"])
        del arguments
    if not args.shapes:
        print(f"\n{args.model}, all matrices: ", end="")
        print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in totals.items()))
    if args.json:
        record = {"device": device, "model": args.model, "totals": totals, "shapes": results}
        with open(args.json, "w") as file:
            json.dump(record, file, indent=2)


if __name__ == "__main__":
    main()
