"""Where commands write: tables for people, JSON for programs."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE", help="Also write the report as JSON to FILE; - for stdout."
    ),
]


def console_for(json_target: str | None) -> Console:
    """A console on stdout, or on stderr when stdout is for JSON."""
    return Console(stderr=json_target == "-", highlight=False)


def write_json(report: Any, json_target: str | None) -> None:
    """Writes a report to a file or, for "-", to stdout; nothing for None."""
    if json_target is None:
        return
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if json_target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        path = Path(json_target)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def human_bytes(count: float) -> str:
    """1500 -> "1.5 KB" (powers of 1000, as disks and file managers count)."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
