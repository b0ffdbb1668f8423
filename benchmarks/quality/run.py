"""Quality of a model by recipe and codebook: quantize, refine, evaluate, one report.

A variant is RECIPE:CODEBOOK, or RECIPE:CODEBOOK:PRECISIONS with the precisions to refine after it,
or RECIPE:CODEBOOK:PRECISIONS:blocks to calibrate them block by block instead (blockwise.py).
CODEBOOK is lut, lut-GROUP_SIZE, hybrid, hybrid-LUT_BITS-CELL_GROUPS, bcq or bcq-GROUP_SIZE. A
recipe that does not ship is looked for in benchmarks/quality/recipes too. Each of
its stages leaves its result in the folder, and a run that was interrupted goes on with the first
stage that is missing; one whose request has changed is done again, with those after it.

    python benchmarks/quality/run.py MODEL --text TEST.txt --learn TEXT.txt --out results \\
        --variant fast:lut --variant balanced:bcq-128:2,3,4 --variant best:hybrid-3-io

Writes into the folder VARIANT.json, an evaluation as of `anyprec eval --json` (so that
`anyprec plot results` draws them), and summary.json with times and peak memory of every stage.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blockwise import calibrate_blocks

from anyprec import AnyPrecisionForCausalLM, Checkpoint
from anyprec.calibrate import placed
from anyprec.evaluate import evaluate, load_text, windows
from anyprec.quantization import quantize
from anyprec.refinement import refine
from anyprec.report import bits_per_weight, linear_sizes
from anyprec.source import Source, load_source

_STARTED = time.monotonic()


@dataclass(frozen=True)
class Variant:
    recipe: str
    codebook: str
    refined: tuple[int, ...]
    by_blocks: bool = False

    @classmethod
    def parse(cls, text: str) -> Variant:
        parts = text.split(":")
        by_blocks = len(parts) == 4 and parts.pop() == "blocks"
        if len(parts) not in (2, 3) or not all(parts):
            raise argparse.ArgumentTypeError(
                f"{text!r}: wanted RECIPE:CODEBOOK, RECIPE:CODEBOOK:2,3,4 or "
                "RECIPE:CODEBOOK:2,3,4:blocks"
            )
        try:
            refined = tuple(int(item) for item in parts[2].split(",")) if len(parts) == 3 else ()
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r}: precisions {parts[2]!r}, wanted 2,3,4 for example"
            ) from None
        codebook_options(parts[1])
        own = Path(__file__).parent / "recipes" / f"{parts[0]}.json"
        recipe = str(own) if own.is_file() else parts[0]
        return cls(recipe, parts[1], refined, by_blocks)

    @property
    def base(self) -> str:
        """Of the quantized checkpoint, which variants that differ in refinement only share."""
        return f"{Path(self.recipe).stem}-{self.codebook}"

    @property
    def name(self) -> str:
        if not self.refined:
            return self.base
        way = "blocks" if self.by_blocks else "refined"
        return f"{self.base}-{way}{''.join(map(str, self.refined))}"


def codebook_options(text: str) -> dict[str, Any]:
    """What `quantize` calls a codebook that a variant names."""
    name, *details = text.split("-")
    if name == "hybrid" and len(details) == 2 and details[0].isdigit():
        return {"codebook": name, "lut_bits": int(details[0]), "cell_groups": details[1]}
    if name in ("lut", "bcq") and len(details) == 1 and details[0].isdigit():
        return {"codebook": name, "group_size": int(details[0])}
    if details:
        raise argparse.ArgumentTypeError(
            f"{text!r}: wanted lut, hybrid, hybrid-3-io, bcq or bcq-128, for example"
        )
    return {"codebook": name}


class Stages:
    """Runs stages of work once; the result of each is a file."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device = folder / "stages", device
        self._folder.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        name: str,
        request: dict[str, Any],
        work: Callable[[], dict[str, Any]],
        needed: Path | None = None,
    ) -> dict[str, Any]:
        """needed: what the stage makes beside its result; without it the stage is done again."""
        file = self._folder / f"{name}.json"
        request = json.loads(json.dumps(request))
        if file.exists() and (needed is None or needed.exists()):
            done = json.loads(file.read_text())
            if done["request"] == request:
                say(f"{name}: there already")
                return done
        say(f"{name} ...")
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        started = time.monotonic()
        result = work()
        done = {
            "request": request,
            "seconds": time.monotonic() - started,
            "peak_gpu_memory": self._peak(result) if on_gpu else None,
            "result": result,
        }
        write(file, done)
        say(f"{name}: {done['seconds']:.1f} s")
        return done

    def _peak(self, result: dict[str, Any]) -> int:
        """Bytes; refining begins to count anew with each precision, so their own counts join."""
        costs = [cost["peak_memory"] for cost in result.get("costs", ())]
        return max(torch.cuda.max_memory_allocated(self._device), *costs, 0)


def say(text: str) -> None:
    print(f"[{time.monotonic() - _STARTED:6.1f} s] {text}", flush=True)


def write(file: Path, content: Any) -> None:
    """Whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, file)


def evaluated(
    checkpoint: Path, source: Source, text: str, args: argparse.Namespace
) -> dict[str, Any]:
    device = torch.device(args.device)
    opened = Checkpoint(checkpoint)
    precisions = opened.available_precisions
    model = AnyPrecisionForCausalLM.from_quantized(checkpoint, device=device, dtype=args.dtype)
    tokens = windows(source.tokenizer, load_text(text), args.seq_len, args.max_windows)
    with placed(source.model, device, model.dtype) as original:
        report = evaluate(model, tokens, precisions, original).to_dict()
    sizes = linear_sizes(opened)
    for row in report["results"]:
        each = {size.name: row["precision"] for size in sizes}
        row["bits_per_weight"] = bits_per_weight(sizes, each)
        shown = row["perplexity"]
        say(
            f"  {row['precision']} bits ({row['bits_per_weight']:.2f}): perplexity "
            f"{'overflow' if shown is None else format(shown, '.3f')}, "
            f"KL {row['kl'] if row['kl'] is None else format(row['kl'], '.5f')}, "
            f"top-1 {row['top1']:.2%}"
        )
    say(f"  original: {report['original']['perplexity']:.3f}")
    return report | {"dataset": Path(text).name, "device": args.device, "dtype": args.dtype}


def one_variant(
    variant: Variant, stages: Stages, source: Source, args: argparse.Namespace
) -> dict[str, Any]:
    made = args.out / "checkpoints" / variant.base
    quantizing = {
        "recipe": variant.recipe,
        **codebook_options(variant.codebook),
        "seed_precision": args.seed_precision,
        "dataset": args.learn,
        "num_examples": args.num_examples,
        "device": args.device,
    }
    done = {
        "quantize": stages.run(
            f"{variant.base}.quantize",
            {"model": args.model, **quantizing},
            lambda: {
                "status": quantize(
                    source.model,
                    made,
                    tokenizer=source.tokenizer,
                    overwrite=True,
                    precisions=range(2, 9),
                    progress=True,
                    **quantizing,
                ).status
            },
            needed=made,
        )
    }
    judged, refining = made, None
    if variant.refined:
        judged = args.out / "checkpoints" / variant.name
        refining = {
            "precisions": variant.refined,
            "dataset": args.learn,
            "steps": args.block_steps if variant.by_blocks else args.steps,
            "device": args.device,
        }
        way = calibrated_by_blocks if variant.by_blocks else refined
        done["refine"] = stages.run(
            f"{variant.name}.refine",
            {"of": done["quantize"]["request"], **refining},
            lambda: way(made, judged, source, refining),
            needed=judged,
        )
        for cost in done["refine"]["result"].get("costs", ()):
            say(f"  {cost['precision']} bits: {1e3 * cost['step']:.1f} ms a step")
    for text in args.text:
        suffix = "" if text == args.text[0] else f"-{Path(text).stem}"
        evaluating = {
            "of": [done["quantize"]["request"], refining],
            "text": text,
            "seq_len": args.seq_len,
            "max_windows": args.max_windows,
            "dtype": args.dtype,
            "device": args.device,
        }
        done[f"evaluate{suffix}"] = stages.run(
            f"{variant.name}.evaluate{suffix}",
            evaluating,
            lambda text=text: evaluated(judged, source, text, args),
        )
        folder = args.out if not suffix else args.out / suffix.removeprefix("-")
        folder.mkdir(exist_ok=True)
        write(folder / f"{variant.name}.json", done[f"evaluate{suffix}"]["result"])
    return {"variant": variant.name, "stages": done}


def refined(made: Path, out: Path, source: Source, options: dict[str, Any]) -> dict[str, Any]:
    done = refine(made, source, out=out, overwrite=True, progress=True, **options)
    if not done.written:  # what was there stands
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(made, out)
    return done.to_dict()


def calibrated_by_blocks(
    made: Path, out: Path, source: Source, options: dict[str, Any]
) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    return calibrate_blocks(made, source, out=out, say=say, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model folder, a hub name, or a .gguf file")
    parser.add_argument("--variant", type=Variant.parse, action="append", required=True)
    parser.add_argument("--text", action="append", required=True, help="to measure on; repeatable")
    parser.add_argument("--learn", required=True, help="text for calibration and distillation")
    parser.add_argument("--out", type=Path, required=True, help="the folder of results")
    parser.add_argument("--seed-precision", type=int, default=3)
    parser.add_argument("--num-examples", type=int, default=100, help="calibration sequences")
    parser.add_argument("--steps", type=int, default=300, help="of distillation, a precision")
    parser.add_argument("--block-steps", type=int, default=60, help="of each block")
    parser.add_argument(
        "--seq-len", type=int, default=2048, help="tokens in a window that is judged"
    )
    parser.add_argument("--max-windows", type=int)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float16", help="to evaluate in")
    args = parser.parse_args()

    device = torch.device(args.device)
    stages = Stages(args.out, device)
    source = load_source(args.model)
    say(f"{args.model} is read")
    summary: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "variants": [],
    }
    for variant in args.variant:
        summary["variants"].append(one_variant(variant, stages, source, args))
        summary["peak_ram"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        write(args.out / "summary.json", summary)
    say(f"done: {args.out / 'summary.json'}")


if __name__ == "__main__":
    main()
