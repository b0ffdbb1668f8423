"""Seconds of a quantization end to end, by stage, for a model of Llama-2-7B's shapes.

The model has random weights, made on the device, and the calibration tokens are random: times do
not depend on what they say. Everything runs in this process, from the model in memory to the
checkpoint on disk, which is removed. Stages that grow with the blocks are extrapolated to
`--extrapolate` of them.

    python benchmarks/quantize/bench_7b.py --layers 4 --json fast.json
    python benchmarks/quantize/bench_7b.py --recipe balanced --layers 2
    python benchmarks/quantize/bench_7b.py                             # all 32 blocks
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from anyprec import _core, quantization, refinement
from anyprec.datasets import Tokens
from anyprec.modules import select_linears
from anyprec.source import Source
from anyprec.work import WorkDirectory

# What is timed: where it is, its name, and the stage that it is a part of (one at a time), or None.
# Pieces are stored, and on a GPU the checkpoint written, by threads of their own beside the rest:
# their seconds are added up.
STAGES = [
    (Source, "sha256", "hash the source"),
    (quantization, "calibrate", "calibrate"),
    (quantization, "_fit", "fit linears"),
    (quantization, "build_tree", "fit linears: tree"),
    (quantization, "fit_to_hessian", "fit linears: to Hessians"),
    (quantization, "planes_of", "fit linears: planes"),
    (quantization, "to_host", "fit linears: to the CPU"),
    (WorkDirectory, "store", "store pieces (beside)"),
    (quantization, "write_checkpoint", "write the checkpoint (beside)"),
    (quantization._Run, "_wait_for", "wait for the checkpoint"),
    (quantization, "refine", "distil"),
]


class Clock:
    """Seconds by stage; a GPU's work counts where it was asked for."""

    def __init__(self, cuda: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._cuda = cuda
        self._lock = threading.Lock()

    def timed(self, function: Callable, stage: str, beside: bool) -> Callable:
        @functools.wraps(function)
        def call(*args, **kwargs):
            self._wait(beside)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._wait(beside)
                self.add(stage, time.perf_counter() - start)

        return call

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def _wait(self, beside: bool) -> None:
        if self._cuda and not beside:
            torch.cuda.synchronize()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, name, stage in STAGES:
                timed = self.timed(getattr(owner, name), stage, stage.endswith("(beside)"))
                stack.enter_context(mock.patch.object(owner, name, timed))
            yield
        # Linears are fitted as soon as calibration has their sums.
        if self._cuda and "calibrate" in self.seconds:
            self.seconds["calibrate"] -= self.seconds.get("fit linears", 0.0)


class NoTokenizer:
    def save_pretrained(self, folder: str) -> None:
        pass


def random_model(args: argparse.Namespace) -> torch.nn.Module:
    config = LlamaConfig(
        num_hidden_layers=args.layers,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        vocab_size=args.vocab,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval().to("cpu")


def random_tokens(vocab: int, tokenizer, dataset="random", *, num_examples, seq_len, **_) -> Tokens:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, vocab, (num_examples or 100, seq_len))
    return Tokens(ids, "random", None)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(args: argparse.Namespace) -> dict:
    cuda = torch.device(args.device).type == "cuda"
    start = time.perf_counter()
    model = random_model(args)
    making = time.perf_counter() - start
    weights = sum(n.out_features * n.in_features for n in select_linears(model).linears)
    clock = Clock(cuda)
    tokens = functools.partial(random_tokens, args.vocab)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with (
        tempfile.TemporaryDirectory(dir=args.folder) as folder,
        mock.patch.object(quantization, "calibration_tokens", tokens),
        mock.patch.object(refinement, "calibration_tokens", tokens),
        clock.watching(),
    ):
        out = Path(folder) / "out"
        start = time.perf_counter()
        quantization.quantize(
            model,
            out,
            tokenizer=NoTokenizer(),
            num_examples=args.examples,
            seq_len=args.seq_len,
            device=args.device,
            recipe=args.recipe,
            codebook=args.codebook,
            seed_precision=args.seed_precision,
            threads=args.threads,
        )
        total = time.perf_counter() - start
        written = folder_bytes(out)
    outer = {s for s in clock.seconds if ":" not in s and not s.endswith("(beside)")}
    clock.add("other", total - sum(clock.seconds[stage] for stage in outer))
    return {
        "device": torch.cuda.get_device_name(args.device) if cuda else "CPU",
        "threads": torch.get_num_threads(),
        "recipe": args.recipe,
        "codebook": args.codebook,
        "layers": args.layers,
        "weights": weights,
        "tokens": [args.examples, args.seq_len],
        "making_the_model_s": making,
        "seconds": clock.seconds,
        "total_s": total,
        "checkpoint_bytes": written,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if cuda else 0,
    }


def show(report: dict, blocks: int) -> None:
    scale = blocks / report["layers"]
    print(
        f"{report['device']}, {report['threads']} threads; recipe {report['recipe']}, "
        f"{report['codebook']}; {report['weights'] / 1e9:.2f}e9 weights in {report['layers']} "
        f"blocks; {report['tokens'][0]} x {report['tokens'][1]} tokens"
    )
    print(f"{'stage':<28}{'seconds':>9}{f'{blocks} blocks':>12}")
    order = ["other"] if "other" in report["seconds"] else []
    for stage in [s for _, _, s in STAGES if s in report["seconds"]] + order:
        seconds = report["seconds"][stage]
        print(f"{stage:<28}{seconds:>9.2f}{seconds * scale:>12.1f}")
    print(f"{'total':<28}{report['total_s']:>9.2f}{report['total_s'] * scale:>12.1f}")
    print(
        f"peak of GPU memory {report['peak_gpu_bytes'] / 2**30:.1f} GiB, checkpoint "
        f"{report['checkpoint_bytes'] / 2**30:.2f} GiB; making the model (not counted): "
        f"{report['making_the_model_s']:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--codebook", default="lut", choices=["lut", "hybrid", "bcq"])
    parser.add_argument("--seed-precision", type=int, default=3)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--extrapolate", type=int, default=32, metavar="BLOCKS")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written, and removed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    report = run(args)
    show(report, args.extrapolate)
    if args.json:
        report["anyprec"] = _core.__version__
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
