"""Distillation of a large model's shapes on a GPU: a step's time and memory, by random weights.

Two models of few layers are distilled for some steps each; their difference is what a layer costs,
which gives the whole model's step. Codes, tables, embeddings and text are random: the time does not
depend on them. Blocks are recomputed in the backward pass, as a whole model would need, or are not
(--no-recompute: a small model).

    python benchmarks/quantize/bench_distill.py --shapes llama-2-7b --precision 3
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from anyprec.bench_reference import reference_model
from anyprec.bench_shapes import NOTES, SHAPES
from anyprec.blocks import Blocks
from anyprec.distill import fast_products
from anyprec.distill_step import DistillStep
from anyprec.linear import AnyPrecisionLinear
from anyprec.output_head import output_head
from anyprec.table_linear import TrainableCodebooks
from anyprec.teacher import Teacher, Windows
from anyprec.training import frozen, fused_norms


def random_linear(linear: torch.nn.Linear, precision: int, device: torch.device):
    out_features, in_features = linear.weight.shape
    planes = torch.randint(
        256, (precision, out_features, -(-in_features // 8)), dtype=torch.uint8, device=device
    )
    lut = 0.02 * torch.randn(out_features, 1, 1 << precision, device=device)
    return AnyPrecisionLinear(planes, {precision: lut.half()}, in_features=in_features)


def student(config: dict[str, Any], precision: int, dtype: torch.dtype, device: torch.device):
    model = reference_model(config, dtype, device)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            model.set_submodule(name, random_linear(module, precision, device))
    torch.cuda.empty_cache()
    return model


def measured(shape: dict[str, Any], layers: int, args: argparse.Namespace) -> dict[str, float]:
    device = torch.device("cuda")
    dtype = torch.float32 if args.dtype == "mixed" else getattr(torch, args.dtype)
    model = student({**shape, "num_hidden_layers": layers}, args.precision, dtype, device)
    windows = Windows(
        torch.randint(shape["vocab_size"], (args.batch_size, args.seq_len), device=device),
        torch.randn(
            args.batch_size, args.seq_len, shape["hidden_size"], device=device, dtype=dtype
        ),
    )
    teacher = Teacher(output_head(model).kept(), windows, windows)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, AnyPrecisionLinear)}
    blocks = Blocks(model, linears)
    with frozen(model), fused_norms(model), fast_products(device):
        codebooks = TrainableCodebooks(linears, args.precision)
        optimizer = torch.optim.Adam([codebooks.offset], lr=1e-4, fused=True)
        with codebooks.attached(), blocks.attached():
            step = DistillStep(
                model,
                codebooks,
                blocks,
                teacher,
                args.batch_size,
                autocast=torch.float16 if args.dtype == "mixed" else None,  # as refine
                recompute=args.recompute,
            )
            rows = range(args.batch_size)
            times = []
            for _ in range(args.steps):
                torch.cuda.synchronize()
                started = time.perf_counter()
                step(rows)
                optimizer.step()
                torch.cuda.synchronize()
                times.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated()
    del step, codebooks, optimizer, model, teacher
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return {"layers": layers, "step": sorted(times)[len(times) // 2], "peak_memory": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="llama-2-7b")
    parser.add_argument("--precision", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs=2, default=(2, 4), help="of the two models")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--dtype", choices=("mixed", "bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--recompute", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    shape = SHAPES[args.shapes]
    few, more = (measured(shape, layers, args) for layers in args.layers)
    added = more["layers"] - few["layers"]
    left = shape["num_hidden_layers"] - more["layers"]
    whole = {
        name: more[name] + left * (more[name] - few[name]) / added
        for name in ("step", "peak_memory")
    }
    for run in (few, more):
        print(f"{run['layers']:3d} layers: {1e3 * run['step']:7.1f} ms a step")
    print(
        f"{shape['num_hidden_layers']:3d} layers: {1e3 * whole['step']:7.1f} ms a step, "
        f"{300 * whole['step']:.0f} s for 300 steps, {whole['peak_memory'] / 1e9:.1f} GB "
        f"(extrapolated; {args.shapes}, {args.precision} bits, {args.dtype}, "
        f"{args.batch_size} x {args.seq_len} tokens, {torch.cuda.get_device_name()})"
    )
    if args.shapes in NOTES:
        print(NOTES[args.shapes])
    if args.json:
        report = {"shapes": args.shapes, "runs": [few, more], "extrapolated": whole}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
