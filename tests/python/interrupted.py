"""Runs of the quantize pipeline that are killed at a chosen point, in processes of their own."""

import contextlib
import multiprocessing
import os
import signal
from pathlib import Path

# Where a run can be killed; "<what>:<n>" is the n-th time, counted from 1.
POINTS = (
    "sequence:2",  # between two backward passes
    "piece:1",  # the first sums written, not yet under their name
    "piece:5",
    "piece done:14",  # all sums there, no linear fitted
    "piece:17",
    "piece done:20",
    "writer:1",  # half of the checkpoint written under a temporary name
    "published:1",  # the checkpoint is in place, the work directory not yet removed
)


def run_and_die(point: str, model: Path, out: Path, options: dict) -> int:
    """Quantizes in a new process that is killed with SIGKILL at `point`; returns its exit code.

    Forked from a server that has everything imported and has started no threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "anyprec.quantization",
            "transformers.models.llama.modeling_llama",
            "transformers.models.auto",
        ]
    )
    process = context.Process(target=_run, args=(point, str(model), str(out), options))
    process.start()
    process.join()
    return process.exitcode


def _run(point: str, model: str, out: str, options: dict) -> None:
    from anyprec import quantization, work

    what, _, count = point.partition(":")
    left = int(count)

    def reached(name: str) -> None:
        nonlocal left
        if name == what:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    real_replace = os.replace

    def replace(source, target):
        if Path(target).suffix == ".safetensors":
            reached("piece")
        real_replace(source, target)
        reached("piece done")

    def write_checkpoint(request, path, pieces, overwrite):
        def some():
            for index, piece in enumerate(pieces):
                if index == 3:
                    reached("writer")
                yield piece

        real_write(request, path, some(), overwrite)
        reached("published")

    class Steps:
        def line(self, text):
            pass

        @contextlib.contextmanager
        def stage(self, title, total):
            yield lambda: reached("sequence") if title == "calibrate" else None

    real_write = quantization.write_checkpoint
    quantization.write_checkpoint = write_checkpoint
    work.os.replace = replace
    quantization.quantize(model, out, progress=Steps(), **options)
