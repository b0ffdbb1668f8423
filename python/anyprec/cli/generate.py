"""anyprec generate: one prompt answered at one or several precisions."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from anyprec.cli.device import DeviceOption, DtypeOption, resolve
from anyprec.cli.errors import clear_errors
from anyprec.cli.maps import PrecisionMapOption, needed_precisions, read_maps
from anyprec.cli.output import JsonOption, console_for, write_json

if TYPE_CHECKING:
    from anyprec.model import AnyPrecisionForCausalLM
    from anyprec.precision import PrecisionRequest


@clear_errors
def generate_command(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint's directory.")],
    prompt: Annotated[str, typer.Option(help="The prompt; - reads it from stdin.")],
    precision: Annotated[
        list[int] | None,
        typer.Option(help="Bits; repeat it to compare. The checkpoint's widest by default."),
    ] = None,
    precision_map: PrecisionMapOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the likeliest token every time.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample from the likeliest tokens of this mass.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling, at every precision.")] = 0,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without chat template.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    json: JsonOption = None,
) -> None:
    """Generate text from a prompt. Only what the precisions need is loaded.

    Tokens a second are those after the first token: the prompt's own time does not count.

    Example: anyprec generate out --prompt "Why is the sky blue?" --precision 3 --precision 8
    """
    from anyprec._core import Checkpoint

    device, dtype = resolve(device, dtype)
    console = console_for(json)
    text = sys.stdin.read() if prompt == "-" else prompt
    # Opened before the slow import of transformers, so that a wrong path is told at once.
    maps = read_maps(precision_map, checkpoint)
    wanted = list(dict.fromkeys(precision or []))
    if not wanted and not maps:
        wanted = [max(Checkpoint(checkpoint).available_precisions)]
    loaded = needed_precisions(wanted, maps)
    Checkpoint(checkpoint, loaded)

    from anyprec.model import AnyPrecisionForCausalLM

    model = AnyPrecisionForCausalLM.from_quantized(
        checkpoint, precisions=loaded, device=device, dtype=dtype
    )
    tokenizer = _tokenizer(checkpoint)
    inputs = _encode(tokenizer, text, raw).to(model.device)
    options = _sampling(model, tokenizer, temperature, top_p)
    results = []
    options["max_new_tokens"] = max_new_tokens
    runs = [({"precision": bits}, f"{bits} bits", bits) for bits in wanted]
    runs += [({"precision_map": name}, name, each) for name, each in maps.items()]
    for key, title, request in runs:
        if len(runs) > 1:
            console.print(f"[bold]{escape(title)}[/bold]")
        answer = _answer(model, tokenizer, inputs, console, seed, request, **options)
        results.append({**key, **answer})
        console.print(f"[dim]{escape(_summary(answer))}[/dim]")
    write_json({"checkpoint": str(checkpoint), "prompt": text, "results": results}, json)


def _tokenizer(checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(f"{checkpoint}: no tokenizer that can be loaded: {error}") from error


def _encode(tokenizer: Any, prompt: str, raw: bool) -> Any:
    if raw or not tokenizer.chat_template:
        return tokenizer(prompt, return_tensors="pt")
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )


def _sampling(
    model: "AnyPrecisionForCausalLM", tokenizer: Any, temperature: float, top_p: float
) -> dict[str, Any]:
    """Exactly what the command line says, whatever generation_config.json prefers."""
    options: dict[str, Any] = {"do_sample": temperature > 0, "temperature": None, "top_p": None}
    if temperature > 0:
        options |= {"temperature": temperature, "top_p": top_p}
    options["top_k"] = None if temperature == 0 else 0
    eos = model.generation_config.eos_token_id
    if model.generation_config.pad_token_id is None:
        eos = eos[0] if isinstance(eos, list) else eos
        options["pad_token_id"] = tokenizer.eos_token_id if eos is None else eos
    return options


def _answer(
    model: "AnyPrecisionForCausalLM",
    tokenizer: Any,
    inputs: Any,
    console: Console,
    seed: int,
    precision: "PrecisionRequest",
    **options: Any,
) -> dict[str, Any]:
    import torch
    from transformers import TextStreamer

    from anyprec.speed import TokenClock

    class ConsoleStreamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            console.file.write(text + ("\n" if stream_end else ""))
            console.file.flush()

    clock = TokenClock(ConsoleStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True))
    torch.manual_seed(seed)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    output = model.generate(**inputs, precision=precision, streamer=clock, **options)
    tokens = output[0, inputs["input_ids"].shape[1] :]
    return {
        "text": tokenizer.decode(tokens, skip_special_tokens=True),
        "new_tokens": int(tokens.numel()),
        "tokens_per_second": clock.tokens_per_second,
    }


def _summary(answer: dict[str, Any]) -> str:
    count = answer["new_tokens"]
    tokens = "1 token" if count == 1 else f"{count} tokens"
    speed = answer["tokens_per_second"]
    return tokens if speed is None else f"{tokens}, {speed:.1f} tokens/s"
