"""anyprec refine: distils a checkpoint's codebooks from the original model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from anyprec.cli.device import resolve
from anyprec.cli.errors import clear_errors
from anyprec.cli.eval import parse_precisions
from anyprec.cli.output import JsonOption, console_for, write_json

if TYPE_CHECKING:
    from anyprec.refinement import Refinement


@clear_errors
def refine_command(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint's directory.")],
    original: Annotated[
        str,
        typer.Option(help="The model it was made from: a folder, a hub name or a GGUF file."),
    ],
    precisions: Annotated[
        str, typer.Option(help="Comma-separated: those to refine. The lower, the more it gives.")
    ] = "2,3,4",
    out: Annotated[
        Path | None, typer.Option(help="A new directory; by default the checkpoint is replaced.")
    ] = None,
    dataset: Annotated[
        str,
        typer.Option(help="Text to learn from, as for quantize. More text gives more."),
    ] = "builtin",
    num_examples: Annotated[
        int | None, typer.Option(min=2, help="Sequences; by default all that the text has.")
    ] = None,
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens in each of them.")] = 512,
    random_state: Annotated[
        int | None,
        typer.Option(help="Picks windows at random; without it the text's first ones are taken."),
    ] = None,
    held_out: Annotated[
        int, typer.Option(min=1, help="Of the sequences, those that judge instead of teaching.")
    ] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimizer a precision.")] = 300,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in a step.")] = 8,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of the standard deviation of a row; by default the precision's own."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto (a GPU where there is one), cpu, cuda")
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="To compute in: auto (float32 on a CPU; on a GPU mixed, and bfloat16 for large "
            "models), mixed (float32, products in bfloat16), float32, bfloat16 or float16."
        ),
    ] = "auto",
    cuda_graph: Annotated[
        bool, typer.Option(help="On a GPU, capture a step as one CUDA graph and replay it.")
    ] = True,
    json: JsonOption = None,
) -> None:
    """Distil the codebooks of chosen precisions from the original model.

    Codes stay, and every other precision: what changes are the tables (norms and biases are
    shared by all precisions). A part of the text that is not trained on decides; a precision that
    does not get better there keeps what it had.

    Example: anyprec refine out --original model --precisions 2,3 --dataset text.txt --device cuda
    """
    from anyprec.refinement import refine

    console = console_for(json)
    done = refine(
        checkpoint,
        original,
        precisions=parse_precisions(precisions),
        out=out,
        dataset=dataset,
        num_examples=num_examples,
        seq_len=seq_len,
        random_state=random_state,
        held_out=held_out,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        device=resolve(device, dtype)[0],
        dtype=dtype,
        cuda_graph=cuda_graph,
        progress=True,
    )
    console.print(_table(done))
    verb = "written" if done.written else "nothing written: no precision got better"
    console.print(f"{verb}: {escape(done.out)}" if done.written else verb, soft_wrap=True)
    write_json(done.to_dict(), json)


def _table(done: "Refinement") -> Table:
    table = Table()
    for header in ("precision", "held-out KL before", "after", "best at step"):
        table.add_column(header, justify="right")
    for outcome in done.outcomes:
        table.add_row(
            str(outcome.precision),
            f"{outcome.before:.4f}",
            f"{outcome.after:.4f}" if outcome.kept else "kept",
            str(outcome.step) if outcome.kept else "-",
        )
    return table
