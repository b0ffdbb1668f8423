"""Where the microseconds of a token go: the engine's decode step on a GPU, part by part.

Random weights of a model's shapes, one sequence or --batch of them. Steps replay the CUDA graph
under torch's profiler; a kernel counts from the end of the one before it, or from its own start if
that is later, to its end, so that parts and gaps add up to the step (kernels overlap: each starts
before the one before it has ended). The last lines are the step by the same clock and the one
without a profiler.

    python benchmarks/engine/profile_step.py --shapes llama-3.1-8b --precisions 3,4,8 \\
        [--codebook hybrid --lut-bits 3 --cell-groups io] [--dense] [--context 512] [--json FILE]
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from anyprec.bench_shapes import SHAPES
from anyprec.native import NativeEngine
from anyprec.options import CODEBOOKS, codebook_form

# What a kernel's name says of its part, first match first; every other kernel is a linear's.
NAMES = {
    "norm_kernel": "norms",
    "rotary_kernel": "rotary, cache write",
    "decode_kernel": "attention",
    "decode_cluster_kernel": "attention",
    "add_parts": "attention",
    "gated": "gate x up",
    "sample": "sampling",
    "argmax": "sampling",
    "elementwise": "other",
    "index": "other",
    "gather": "other",
    "emcpy": "other",
    "emset": "other",
}
# The linears between two other parts: the first and the second. A norm parts them or, where it goes
# with the second one's launch, the end of the first kernel.
LINEARS = {
    (None, "rotary, cache write"): ("Q/K/V", "Q/K/V"),
    ("attention", "gate x up"): ("attention output", "gate/up"),
    ("gate x up", "rotary, cache write"): ("down", "Q/K/V"),
    ("gate x up", "sampling"): ("down", "head"),
}
WARM_STEPS = 4
BLOCK = 16  # tokens
BETWEEN = "nothing, between steps"


@dataclass
class Kernel:
    start: float
    end: float
    part: str


def part_of(name):
    return next((part for key, part in NAMES.items() if key in name), "linear")


def name_linears(between, first, second):
    normed = any(kernel.part == "norms" for kernel in between)
    name = None
    for kernel in between:
        if kernel.part == "linear":
            kernel.part = name or first
            name = name or (first if normed else second)
        elif kernel.part == "norms" and name:
            name = second


def named(kernels):
    """Each linear's name, by the parts around it."""
    around = {part for pair in LINEARS for part in pair}
    before, between = None, []
    for kernel in kernels:
        if kernel.part not in around:
            between.append(kernel)
            continue
        if (before, kernel.part) in LINEARS:
            name_linears(between, *LINEARS[before, kernel.part])
        before, between = kernel.part, []
    return kernels


def shares(kernels, before):
    """Microseconds by part, from `before`, the end of the step before this one."""
    spent = defaultdict(float)
    reached = before
    for i, kernel in enumerate(kernels):
        if kernel.start > reached:
            spent["nothing, within the step" if i else BETWEEN] += kernel.start - reached
        spent[kernel.part] += max(0.0, kernel.end - max(reached, kernel.start))
        reached = max(reached, kernel.end)
    return spent


def steps_of(events):
    """The kernels of each step, which sampling ends."""
    kernels = sorted(
        (
            Kernel(event.time_range.start, event.time_range.end, part_of(event.name))
            for event in events
            if event.device_type == torch.autograd.DeviceType.CUDA
        ),
        key=lambda kernel: kernel.start,
    )
    steps, current = [], []
    for kernel in kernels:
        if current and current[-1].part == "sampling" and kernel.part != "sampling":
            steps.append(current)
            current = []
        current.append(kernel)
    return [named(step) for step in steps]


def warm_steps(args):
    return WARM_STEPS + args.batch  # a prompt may take a step


def new_tokens(args):
    """Of a sequence: enough to last for the steps that are timed and for those profiled."""
    return warm_steps(args) + 2 * args.steps + 2


def profiled(engine, precision, args):
    prompt = [17 * i % 997 for i in range(args.context)]
    for _ in range(args.batch):
        engine.submit(prompt, max_new_tokens=new_tokens(args), precision=precision)
    for _ in range(warm_steps(args)):
        engine.step()
    times = []
    for _ in range(args.steps):
        begin = time.perf_counter()
        tokens = engine.step()
        times.append(1e6 * (time.perf_counter() - begin))
        if len(tokens) != args.batch:
            raise SystemExit(f"a step gave {len(tokens)} tokens, wanted {args.batch}")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(args.steps):
            engine.step()
    while not engine.idle:
        engine.step()
    kernels = steps_of(profiler.events())
    ends = [max(kernel.end for kernel in step) for step in kernels]
    steps = [shares(step, end) for step, end in zip(kernels[1:], ends, strict=False)]
    parts = {part: 0.0 for step in steps for part in step}
    for part in parts:
        parts[part] = statistics.median(step[part] for step in steps)
    return {"parts": parts, "step": statistics.median(times), "steps": len(steps)}


def table(reports, title):
    parts = list(dict.fromkeys(part for report in reports.values() for part in report["parts"]))
    shown = Table(title=title)
    shown.add_column("us")
    for name in reports:
        shown.add_column(name, justify="right")
    for part in parts:
        cells = (
            f"{report['parts'].get(part, 0):.1f} "
            f"{report['parts'].get(part, 0) / sum(report['parts'].values()):4.0%}"
            for report in reports.values()
        )
        shown.add_row(part, *cells)
    shown.add_row("sum", *(f"{sum(report['parts'].values()):.1f}" for report in reports.values()))
    shown.add_row("step", *(f"{report['step']:.1f}" for report in reports.values()))
    return shown


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--precisions", default="2,3,4,6,8")
    parser.add_argument("--codebook", choices=list(CODEBOOKS), default="lut")
    parser.add_argument("--lut-bits", type=int)
    parser.add_argument("--cell-groups")
    parser.add_argument("--group-size", type=int, default=0)
    parser.add_argument("--quantize-head", action="store_true")
    parser.add_argument("--dense", action="store_true", help="also the engine with float16 linears")
    parser.add_argument("--batch", type=int, default=1, help="sequences (default: %(default)s)")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()

    precisions = [int(item) for item in args.precisions.split(",")]
    bits, groups = codebook_form(args.codebook, args.lut_bits, args.cell_groups)
    form = {"lut_bits": bits, "cell_groups": groups, "group_size": args.group_size}
    length = -(-(args.context + new_tokens(args)) // BLOCK) * BLOCK  # whole blocks
    options = {
        "device": "cuda",
        "dtype": "float16",
        "max_sequence_length": length,
        "cache_tokens": args.batch * length,
        "max_batch": args.batch,
        "block_size": BLOCK,
    }
    reports = {}
    if args.dense:
        engine = NativeEngine.from_shape(SHAPES[args.shapes], **options)
        reports["float16"] = profiled(engine, None, args)
        del engine
        torch.cuda.empty_cache()
    engine = NativeEngine.from_shape(
        SHAPES[args.shapes], precisions, form, args.quantize_head, **options
    )
    for precision in precisions:
        reports[f"{precision} bits"] = profiled(engine, precision, args)
    head = ", quantized head" if args.quantize_head else ""
    title = (
        f"{args.shapes}, {args.codebook} ({bits}, {groups}, {args.group_size}){head}, "
        f"batch {args.batch}, context {args.context}, {torch.cuda.get_device_name()}"
    )
    Console(width=120).print(table(reports, title))
    if args.json:
        Path(args.json).write_text(json.dumps({"title": title, **reports}, indent=2) + "\n")


if __name__ == "__main__":
    main()
