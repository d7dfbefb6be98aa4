"""Where the command writes: results on standard output, everything for people on standard error."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from mupd_wsi.cli.failures import show_stack_traces

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Console:
    """How much a run of the command says. One exists for each run and is click's context object.

    Attributes:
        verbose: show stack traces and the log.
        quiet: show errors and the result only.
        as_json: the result is one JSON object.
    """

    verbose: bool = False
    quiet: bool = False
    as_json: bool = False

    def note(self, text: str) -> None:
        """A line for people."""
        if not self.quiet:
            click.echo(text, err=True)

    def warn(self, text: str) -> None:
        """A warning, shown in any case."""
        click.secho(f"mupd-wsi: warning: {text}", err=True, fg="yellow")

    def result(self, lines: str, values: Mapping[str, Any]) -> None:
        """The result of a verb: ``lines`` for people, or ``values`` where JSON was asked for."""
        click.echo(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) if self.as_json else lines)


def start_logging(console: Console) -> None:
    """Keep the chatter of libraries from users who did not ask for it with ``-v``."""
    if console.verbose:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s", force=True)
        show_stack_traces()
        return
    logging.lastResort = None
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def json_option(command: F) -> F:
    """``--json`` for a verb."""
    return _console_flag("--json", "as_json", "Print one JSON object on standard output.")(command)


def verbose_option(command: F) -> F:
    """``-v`` for a verb."""
    return _console_flag("-v", "verbose", "Show the log, and stack traces of errors.", long="--verbose")(command)


def quiet_option(command: F) -> F:
    """``-q`` for a verb."""
    return _console_flag("-q", "quiet", "Show errors and the result only.", long="--quiet")(command)


def _console_flag(flag: str, field: str, text: str, long: str | None = None) -> Callable[[F], F]:
    def keep(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        del parameter
        console = context.ensure_object(Console)
        setattr(console, field, value)
        if console.verbose and console.quiet:
            raise click.UsageError("Give -v or -q, not both.", context)
        if field == "verbose":
            start_logging(console)

    names = [flag] if long is None else [flag, long]
    return click.option(*names, field, is_flag=True, expose_value=False, callback=keep, help=text)
