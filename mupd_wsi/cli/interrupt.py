"""Ctrl-C and SIGTERM end the command at once, cleanly where that is quick and in any case within two seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Final, NoReturn

EXIT_INTERRUPTED: Final = 130
EXIT_TERMINATED: Final = 143

#: Seconds that a stopped run has for tidying up. Unfinished outputs never carry their final name, so that
#: ending without the tidying is safe too.
GRACE_S: Final = 1.5


class Terminated(KeyboardInterrupt):
    """SIGTERM came. It is a kind of KeyboardInterrupt so that whatever tidies up after Ctrl-C does so here."""


def install_handlers() -> None:
    """Turn SIGINT and SIGTERM into exceptions of the main thread.

    Also where the parent ignores SIGINT, as shells do for background jobs: a job stopped by ``kill -INT`` stops.
    """
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)


def leave(stop: KeyboardInterrupt) -> NoReturn:
    """End the process with 130, or 143 for SIGTERM, as shells have it.

    Not by way of Python's own shutdown, which waits for native threads: network passes take seconds.
    """
    sys.stdout.flush()
    sys.stderr.write("mupd-wsi: stopped\n")
    sys.stderr.flush()
    os._exit(EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED)


def _on_signal(number: int, frame: FrameType | None) -> None:
    del frame
    stop = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
    deadline = threading.Timer(GRACE_S, leave, (stop,))
    deadline.daemon = True
    deadline.start()
    raise stop
