"""What the user sees of an error: one line on standard error, and an exit code."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType
from typing import Final

import click

from mupd_wsi.errors import MupdError, UsageError

EXIT_PROBLEMS: Final = 1
EXIT_USAGE: Final = 2
EXIT_BAD_INPUT: Final = 3

#: Errors that a user can cause or meet; all others are bugs and reach :func:`report_bug`.
EXPECTED: Final = (click.ClickException, MupdError, OSError, MemoryError)


def report(error: BaseException, *, verbose: bool) -> int:
    """Print one line about an expected error (and its stack trace where ``verbose``); return the exit code."""
    if verbose and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    click.echo(f"mupd-wsi: error: {_one_line(error)}", err=True)
    if isinstance(error, click.ClickException):
        return error.exit_code
    return EXIT_USAGE if isinstance(error, UsageError) else EXIT_BAD_INPUT


def report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A ``sys.excepthook`` for everything unexpected: one line that says how to learn more. Python exits with 1."""
    del trace  # it is the business of -v, which puts Python's own hook back
    text = f": {_joined(str(error))}" if str(error) else ""
    click.echo(
        f"mupd-wsi: error: unexpected {kind.__name__}{text}; run again with -v and report what it shows", err=True
    )


def show_stack_traces() -> None:
    """Let Python print the stack trace of unexpected errors again."""
    sys.excepthook = sys.__excepthook__


def _one_line(error: BaseException) -> str:
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{_joined(error.format_message())} See '{error.ctx.command_path} --help'."
    if isinstance(error, click.ClickException):
        return _joined(error.format_message())
    if isinstance(error, MupdError):
        return _joined(str(error.args[0]) if error.args else str(error))
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or use fewer --workers and a smaller --batch-size"
    return _joined(str(error) or type(error).__name__)


def _joined(text: str) -> str:
    return " ".join(text.split())
