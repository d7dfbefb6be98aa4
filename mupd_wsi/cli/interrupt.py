"""Ctrl-C, SIGTERM and SIGUSR1 end the command at once, cleanly where that is quick, and within two seconds anyway."""

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


#: What a stopped run says besides; see :func:`advise`.
_advice = ""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGUSR1 came. A kind of KeyboardInterrupt, so that whatever tidies up after Ctrl-C does so here."""


def install_handlers() -> None:
    """Turn SIGINT, SIGTERM and SIGUSR1 into exceptions of the main thread.

    SIGUSR1 is what batch systems send some time before a job's wall-time limit, where they are asked to.
    Also where the parent ignores SIGINT, as shells do for background jobs: a job stopped by ``kill -INT`` stops.
    """
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, _on_signal)


def advise(text: str) -> None:
    """What to say where the command is stopped from now on: what the user can do next."""
    global _advice
    _advice = text


def leave(stop: KeyboardInterrupt) -> NoReturn:
    """End the process with 130, or 143 for SIGTERM, as shells have it.

    Not by way of Python's own shutdown, which waits for native threads: network passes take seconds.
    """
    sys.stdout.flush()
    sys.stderr.write(f"mupd-wsi: stopped{_advice and f'; {_advice}'}\n")
    sys.stderr.flush()
    os._exit(EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED)


def _on_signal(number: int, frame: FrameType | None) -> None:
    del frame
    stop = KeyboardInterrupt() if number == signal.SIGINT else Terminated()
    deadline = threading.Timer(GRACE_S, leave, (stop,))
    deadline.daemon = True
    deadline.start()
    raise stop
