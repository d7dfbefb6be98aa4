"""Ctrl-C and SIGTERM end the command at once, cleanly where that is quick and in any case within two seconds."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Final

from mupd_wsi.cli.failures import EXIT_INTERRUPTED, EXIT_TERMINATED

#: Seconds that a stopped run has for tidying up. Unfinished outputs never carry their final name, so that
#: ending without the tidying is safe too.
GRACE_S: Final = 1.7


class Terminated(KeyboardInterrupt):
    """SIGTERM came. It is a kind of KeyboardInterrupt so that whatever tidies up after Ctrl-C does so here."""


def install_handlers() -> None:
    """Turn SIGINT and SIGTERM into exceptions of the main thread.

    Also where the parent ignores SIGINT, as shells do for background jobs: a job stopped by ``kill -INT`` stops.
    """
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)


def exit_code(stop: KeyboardInterrupt) -> int:
    """130 for Ctrl-C, 143 for SIGTERM, as shells have it."""
    return EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED


def _on_signal(number: int, frame: FrameType | None) -> None:
    del frame
    stop = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
    deadline = threading.Timer(GRACE_S, os._exit, (exit_code(stop),))
    deadline.daemon = True
    deadline.start()
    raise stop
