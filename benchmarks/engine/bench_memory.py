"""Memory of the decode engine over many generations: nothing may grow.

Prompts, lengths, precisions and sampling differ from one generation to the next, several run
together, and some are stopped early. Prints bytes in use after the first tenth, when all that is
made once has been made, and after each tenth more: of the process, and what torch holds of a GPU.

    python benchmarks/engine/bench_memory.py CHECKPOINT [--device cuda] [--generations 1000]
"""

import argparse
import os
import random
from pathlib import Path

import torch

from anyprec import Checkpoint
from anyprec.native import NativeEngine


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def in_use(device):
    found = {"process": resident_bytes()}
    if device == "cuda":
        torch.cuda.synchronize()
        found["allocated on the GPU"] = torch.cuda.memory_allocated()
        found["reserved on the GPU"] = torch.cuda.memory_reserved()
    return found


def submit(engine, precisions, rng):
    return engine.submit(
        [rng.randrange(200) for _ in range(rng.randint(1, 48))],
        max_new_tokens=rng.randint(1, 16),
        precision=rng.choice(precisions),
        temperature=rng.choice([0.0, 0.8]),
        top_k=rng.choice([0, 40]),
        repetition_penalty=rng.choice([1.0, 1.1]),
        seed=rng.randrange(1 << 30),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--generations", type=int, default=1000)
    parser.add_argument("--together", type=int, default=4)
    args = parser.parse_args()

    rng = random.Random(0)
    precisions = list(Checkpoint(args.checkpoint).available_precisions)
    engine = NativeEngine.from_directory(
        args.checkpoint, device=args.device, max_sequence_length=128, max_batch=args.together
    )
    tenth = max(1, args.generations // 10)
    first = None
    for done in range(1, args.generations + 1):
        sequence = submit(engine, precisions, rng)
        if done % args.together == 0:
            for _ in range(4):
                engine.step()
            engine.stop(sequence)  # one of them does not come to its end
            while not engine.idle:
                engine.step()
        if done % tenth:
            continue
        now = in_use(args.device)
        first = first or now
        shown = ", ".join(
            f"{name} {size / 1e6:.1f} MB ({(size - first[name]) / 1e6:+.1f})"
            for name, size in now.items()
        )
        print(f"{done:6d} generations: {shown}", flush=True)


if __name__ == "__main__":
    main()
