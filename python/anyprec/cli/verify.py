"""anyprec verify: is a checkpoint whole?"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from anyprec.cli.errors import clear_errors
from anyprec.cli.output import JsonOption, console_for, human_bytes, write_json


@clear_errors
def verify_command(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint's directory.")],
    json: JsonOption = None,
) -> None:
    """Check every tensor and file of a checkpoint against its manifest.

    Prints all problems and exits with 1 when there is any.

    Example: anyprec verify out
    """
    from anyprec._core import verify_checkpoint

    report = verify_checkpoint(checkpoint)
    problems = report["problems"]
    console = console_for(json)
    for problem in problems:
        console.print(f"[red]problem:[/red] {escape(problem)}", soft_wrap=True)
    checked = f"{report['tensors']} tensors, {human_bytes(report['bytes'])}"
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        console.print(f"{escape(str(checkpoint))}: {count} ({checked} checked)", soft_wrap=True)
    else:
        console.print(f"{escape(str(checkpoint))}: whole ({checked})", soft_wrap=True)
    write_json({"path": str(checkpoint), "ok": not problems, **report}, json)
    if problems:
        raise typer.Exit(1)
