"""Errors of the command line: one clear line on stderr and exit code 1."""

import functools
import os
from collections.abc import Callable
from typing import Any

import typer

# Set to anything but "" or "0" to see tracebacks.
DEBUG_VARIABLE = "ANYPREC_DEBUG"

# Usage errors, which typer itself reports with exit code 2. The class is click's, or that of the
# copy of click that newer versions of typer carry.
_ClickException = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

# Errors whose message is meant for the user; others are shown with their type.
_EXPECTED = (ValueError, OSError, ImportError, RuntimeError)


def clear_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a command: whatever it raises becomes a line on stderr and exit code 1."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, _ClickException):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except Exception as error:
            if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
                raise
            typer.echo(f"anyprec: {describe(error)}", err=True)
            raise typer.Exit(1) from None

    return wrapped


def describe(error: Exception) -> str:
    """An error's message on one line."""
    message = " ".join(str(error).split()) or "no message"
    if isinstance(error, _EXPECTED) or type(error).__module__.startswith("anyprec"):
        return f"error: {message}"
    return f"{type(error).__name__}: {message} (for a traceback set {DEBUG_VARIABLE}=1)"
