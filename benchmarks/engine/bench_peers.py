"""The decode engine on a CPU beside llama.cpp, in one run: prompts and decoding, tokens a second.

Both read the same model: an anyprec checkpoint, and the GGUF file that it was made of. They take
turns, and the turns repeat, so that a noisy neighbour hits both; figures are the best of the turns.
Greedy sampling is in both.

    pip install llama-cpp-python
    python benchmarks/engine/bench_peers.py CHECKPOINT MODEL.gguf [--threads 2]
        [--precisions 2,3,4,8] [--context 64] [--new-tokens 64] [--turns 5] [--json FILE]
"""

import argparse
import ctypes
import json
import time
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from anyprec.native import NativeEngine


class Anyprec:
    def __init__(self, checkpoint, precisions, length):
        self.engine = NativeEngine.from_directory(
            checkpoint, precisions=precisions, max_sequence_length=length
        )

    def turn(self, prompt, new_tokens, precision):
        """Tokens a second of the prompt, and of each step after it."""
        self.engine.submit(prompt, max_new_tokens=new_tokens + 1, precision=precision)
        begin = time.perf_counter()
        while not self.engine.step():
            pass
        read = time.perf_counter()
        while not self.engine.idle:
            self.engine.step()
        end = time.perf_counter()
        return len(prompt) / (read - begin), new_tokens / (end - read)


class LlamaCpp:
    """By the C functions, without the package's Python objects in between."""

    def __init__(self, file, threads, length):
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = length, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def decode(self, tokens):
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(array, len(tokens))
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, (self.size,)).argmax())

    def turn(self, prompt, new_tokens, precision):
        del precision
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        begin = time.perf_counter()
        token = self.decode(prompt)
        read = time.perf_counter()
        for _ in range(new_tokens):
            token = self.decode([token])
        end = time.perf_counter()
        return len(prompt) / (read - begin), new_tokens / (end - read)


@llama_cpp.llama_log_callback
def _silent(level, text, data):
    del level, text, data


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precisions", default="2,3,4,8")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    precisions = [int(item) for item in args.precisions.split(",")]
    length = args.context + args.new_tokens + 8
    peer = LlamaCpp(args.gguf, args.threads, length)
    own = Anyprec(args.checkpoint, precisions, length)
    contestants = {f"{bits} bits": (own, bits) for bits in precisions}
    contestants[f"llama.cpp, {args.gguf.name}"] = (peer, None)
    prompt = [17 * i % 997 for i in range(args.context)]
    best = {name: (0.0, 0.0) for name in contestants}
    for _ in range(args.turns):
        for name, (engine, precision) in contestants.items():
            found = engine.turn(prompt, args.new_tokens, precision)
            best[name] = tuple(max(pair) for pair in zip(best[name], found, strict=True))

    table = Table(title=f"{args.threads} threads, context {args.context}: tokens a second")
    table.add_column("")
    table.add_column("prompt", justify="right")
    table.add_column("decode", justify="right")
    for name, (prefill, decode) in best.items():
        table.add_row(name, f"{prefill:.0f}", f"{decode:.1f}")
    Console().print(table)
    if args.json:
        report = {name: {"prefill": p, "decode": d} for name, (p, d) in best.items()}
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
