"""Perplexity of a real model: our clustering beside the original method's, the rest the same.

Quantizes a model twice from the same calibration text, once as `anyprec quantize` does and once
with flash1dkmeans (the package that Any-Precision LLM, arXiv 2402.10517, clusters with) in the
place of our clustering, and evaluates both checkpoints on the same windows of text.

    python benchmarks/quantize/bench_quality.py MODEL --calibration FILE --text FILE --device cuda
"""

import argparse
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from bench_quantizer import quantize_with_flash1dkmeans, weighted_error
from rich.console import Console
from rich.table import Table

from anyprec import AnyPrecisionForCausalLM, _core
from anyprec.evaluate import evaluate, load_text, windows
from anyprec.quantization import quantize
from anyprec.source import load_source

PRECISIONS = range(3, 9)


def cluster_as_the_original(name, weights, sensitivities, *, seed_precision, **options):
    """Takes the place of _core.quantize_matrix."""
    parent = options["parent_precision"]
    codes, tables = quantize_with_flash1dkmeans(weights, sensitivities, seed_precision, parent)
    luts = {seed_precision + i: table for i, table in enumerate(tables)}
    errors = {
        b: weighted_error(weights, sensitivities, codes >> (parent - b), luts[b]) for b in luts
    }
    return SimpleNamespace(
        codes=codes, luts={b: table[:, None] for b, table in luts.items()}, errors=errors
    )


METHODS = {"anyprec": _core.quantize_matrix, "flash1dkmeans": cluster_as_the_original}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", default="builtin", help="calibration text")
    parser.add_argument("--text", required=True, help="text to measure perplexity on")
    parser.add_argument("--num-examples", type=int, default=100)
    parser.add_argument("--max-windows", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()

    source = load_source(args.model)
    tokens = windows(source.tokenizer, load_text(args.text), max_windows=args.max_windows)
    options = dict(
        dataset=args.calibration,
        num_examples=args.num_examples,
        precisions=PRECISIONS,
        device=args.device,
    )
    scores = {}
    with tempfile.TemporaryDirectory() as folder:
        for method, cluster in METHODS.items():
            out = Path(folder) / method
            with mock.patch.object(_core, "quantize_matrix", cluster):
                quantize(args.model, out, **options)
            model = AnyPrecisionForCausalLM.from_quantized(
                out, device=args.device, dtype=args.dtype
            )
            scores[method] = evaluate(model, tokens, PRECISIONS).results

    table = Table(title=f"perplexity, {len(tokens)} windows of {tokens.shape[1]} tokens")
    for column in ("method", *[f"{b} bits" for b in PRECISIONS]):
        table.add_column(column, justify="right")
    for method, results in scores.items():
        table.add_row(method, *[f"{score.perplexity:.3f}" for score in results])
    Console().print(table)
    if args.json:
        report = {m: [score.to_dict() for score in results] for m, results in scores.items()}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
