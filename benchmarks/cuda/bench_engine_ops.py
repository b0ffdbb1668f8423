"""Microseconds of what a decoder computes between its linear layers on this GPU, beside what the
bytes alone would take at the copy ceiling of the same run, and beside plain torch operators.

Calls are replayed as one CUDA graph; attention turns over copies of the cache that together exceed
the L2 cache. Figures are medians of the replays.

    python benchmarks/cuda/bench_engine_ops.py [--rows M ...] [--contexts N ...] [--json FILE]
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from bench_linear import copies_of, copy_ceiling, median_us
from rich.console import Console
from rich.table import Table

import anyprec  # noqa: F401  registers the operators

# Llama-3.1-8B
HIDDEN, INTERMEDIATE, VOCABULARY = 4096, 14336, 128256
QUERY_HEADS, KV_HEADS, HEAD_SIZE = 32, 8, 128
BLOCK_SIZE = 32
ops = torch.ops.anyprec


def random(*shape):
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def add_norm(x, residual, weight):
    residual += x
    return torch.nn.functional.rms_norm(residual, weight.shape, weight, 1e-5)


def gate(gate_up):
    gate, up = gate_up.chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up


def bench_rows(m):
    """(name, calls, bytes, plain torch's calls or None) of operators on rows."""
    x, residual, weight = random(m, HIDDEN), random(m, HIDDEN), random(HIDDEN)
    norm = (x, residual, weight, 1e-5, 0.0)
    norm_bytes = 2 * 4 * x.numel()
    yield (
        "add, norm",
        [partial(ops.engine_add_rms_norm, *norm)],
        norm_bytes,
        [partial(add_norm, x, residual, weight)],
    )
    gate_up = random(m, 2 * INTERMEDIATE)
    gate_bytes = 3 * gate_up.numel()
    yield "gate", [partial(ops.engine_gated, gate_up, "silu")], gate_bytes, [partial(gate, gate_up)]
    if m <= 2:
        calls = [partial(ops.engine_add_rms_norm_planes, *norm)]
        yield "add, norm, planes", calls, norm_bytes + 3 * x.numel(), None
        calls = [partial(ops.engine_gated_planes, gate_up, "silu")]
        yield "gate, planes", calls, gate_bytes + 3 * gate_up.numel() // 2, None
    qkv = random(m, (QUERY_HEADS + 2 * KV_HEADS) * HEAD_SIZE)
    tables = torch.randn(2, 4096, HEAD_SIZE // 2, device="cuda")
    caches = torch.zeros(2, 8, BLOCK_SIZE, KV_HEADS, HEAD_SIZE, device="cuda").bfloat16()
    positions = torch.arange(m, device="cuda", dtype=torch.int32)
    slots = torch.arange(m, device="cuda") % (8 * BLOCK_SIZE)
    call = partial(
        ops.engine_rotary_to_cache, qkv, positions, slots, *tables, None, None, 0.0, 0.0, *caches
    )
    yield "rotary, cache", [call], 4 * qkv.numel(), None
    logits = torch.randn(m, VOCABULARY, device="cuda", dtype=torch.bfloat16)

    def sampling(temperature, top_k, top_p):
        def row(value, dtype):
            return torch.full((m,), value, device="cuda", dtype=dtype)

        floats = [row(value, torch.float32) for value in (top_p, 0.0, 1.0)]
        integers = [row(0, torch.int64)] * 2
        history = torch.full((m, 1), -1, device="cuda")
        return partial(
            ops.engine_sample,
            logits,
            row(temperature, torch.float32),
            row(top_k, torch.int32),
            *floats,
            *integers,
            history,
        )

    bytes_of_logits = 2 * logits.numel()
    yield (
        "sample, greedy",
        [sampling(0.0, 0, 1.0)],
        bytes_of_logits,
        [partial(torch.argmax, logits, -1)],
    )
    yield "sample", [sampling(1.0, 0, 1.0)], bytes_of_logits, None
    yield "sample, top-k 50, top-p 0.9", [sampling(1.0, 50, 0.9)], bytes_of_logits, None


def attention_calls(m, context, rows_each, operator):
    """m sequences with `context` keys, of which the last rows_each are queries."""
    blocks_each = -(-context // BLOCK_SIZE)
    # The table has room for more, as an engine's has.
    widest = max(blocks_each, 4096 // BLOCK_SIZE)
    table = torch.zeros(m, widest, dtype=torch.int32)
    table[:, :blocks_each] = torch.randperm(m * blocks_each).view(m, blocks_each)
    table = table.cuda()
    start = torch.arange(m + 1, device="cuda", dtype=torch.int32) * rows_each
    lengths = torch.full((m,), context, device="cuda", dtype=torch.int32)
    shape = (m * blocks_each, BLOCK_SIZE, KV_HEADS, HEAD_SIZE)
    size = 2 * m * context * KV_HEADS * HEAD_SIZE * 2
    copies = min(copies_of(size), max(1, (16 << 30) // size))
    q = random(m * rows_each, QUERY_HEADS, HEAD_SIZE)
    calls = []
    for _ in range(copies):
        keys, values = random(*shape), random(*shape)
        calls.append(
            partial(operator, q, keys, values, table, start, lengths, HEAD_SIZE**-0.5, 0, 0.0)
        )
    return calls, size


def torch_attention(m, context, rows_each):
    q = random(m, QUERY_HEADS, rows_each, HEAD_SIZE)
    size = 2 * m * context * KV_HEADS * HEAD_SIZE * 2
    calls = []
    for _ in range(min(copies_of(size), max(1, (16 << 30) // size))):
        keys, values = (random(m, KV_HEADS, context, HEAD_SIZE) for _ in range(2))
        calls.append(
            partial(
                torch.nn.functional.scaled_dot_product_attention,
                q,
                keys,
                values,
                is_causal=rows_each == context,
                enable_gqa=True,
            )
        )
    return calls


def measure(name, m, calls, size, peer, ceiling, **more):
    us = median_us(calls)
    peer_us = median_us(peer) if peer else None
    floor = size / ceiling / 1000
    return {"name": name, "m": m, "us": us, "floor_us": floor, "torch_us": peer_us, **more}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 16])
    parser.add_argument("--contexts", nargs="+", type=int, default=[128, 512, 4096, 32768])
    parser.add_argument("--prompts", nargs="+", type=int, default=[512, 4096])
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    ceiling = copy_ceiling()
    device = torch.cuda.get_device_name()
    results = []
    for m in args.rows:
        for name, calls, size, peer in bench_rows(m):
            results.append(measure(name, m, calls, size, peer, ceiling))
        for context in args.contexts:
            if m * context > 1 << 19:
                continue
            calls, size = attention_calls(m, context, 1, ops.engine_attention)
            peer = torch_attention(m, context, 1)
            results.append(measure(f"attention to {context}", m, calls, size, peer, ceiling))
            del calls, peer
            if m <= 2 and context == 512:
                calls, size = attention_calls(m, context, 1, ops.engine_attention_planes)
                name = f"attention to {context}, planes"
                results.append(measure(name, m, calls, size, None, ceiling))
                del calls
            torch.cuda.empty_cache()
    for prompt in args.prompts:
        calls, size = attention_calls(1, prompt, prompt, ops.engine_attention)
        peer = torch_attention(1, prompt, prompt)
        flops = 2 * 2 * QUERY_HEADS * HEAD_SIZE * prompt * prompt / 2
        result = measure(f"attention of {prompt}", prompt, calls, size, peer, ceiling)
        result["tflop_s"] = flops / result["us"] / 1e6
        results.append(result)
    table = Table(title=f"Llama-3.1-8B shapes, bf16, {device}, copy ceiling {ceiling:.0f} GB/s")
    for column in ("operator", "rows", "us", "bytes at the ceiling, us", "plain torch, us"):
        table.add_column(column, justify="left" if column == "operator" else "right")
    for r in results:
        name = r["name"]
        if "tflop_s" in r:
            name += f" ({r['tflop_s']:.0f} TFLOP/s)"
        peer = "" if r["torch_us"] is None else f"{r['torch_us']:.2f}"
        table.add_row(name, str(r["m"]), f"{r['us']:.2f}", f"{r['floor_us']:.2f}", peer)
    Console(width=120).print(table)
    if args.json:
        report = {"device": device, "copy_gb_s": ceiling, "results": results}
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
