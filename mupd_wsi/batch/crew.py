"""Processes that stain slides side by side. One that dies costs its slide one attempt and is replaced.

So is one whose GPU fails: its context is of no use after that. A seat where either happens time after time is left out
while there are others: a broken GPU would otherwise take slide after slide, and fail them all.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Final, NoReturn, Protocol

from mupd_wsi.batch.tasks import Advanced, Ended, Event, Feed, Outcome, SlideTask, Started
from mupd_wsi.batch.work import Seat, Worker
from mupd_wsi.request import Progress, ProgressCallback

#: Seconds that a stopped worker has for tidying up before it is killed.
STOP_S: Final = 1.0
#: Seconds between two looks at a feed that has nothing at the moment.
POLL_S: Final = 0.05
#: Slides in a row that a seat may fail for no reason of theirs.
MAX_FAILURES: Final = 3


class SlideWorker(Protocol):
    """Who stains in a process; see :class:`mupd_wsi.batch.work.Worker`."""

    def stain(self, task: SlideTask, progress: ProgressCallback | None = None) -> Outcome:
        """Stain a slide; whatever goes wrong with it is told, not raised."""


def crew_events(feed: Feed, places: list[Seat], worker: Callable[[Seat], SlideWorker] = Worker) -> Generator[Event]:
    """Stain a feed's slides in processes of their own, one a seat, and tell how it goes. Closing it stops them all.

    Args:
        feed: of tasks.
        places: one process each; one that is left out is taken from the list.
        worker: made in the process; can be pickled.
    """
    members = [_Member(seat, worker) for seat in places]
    try:
        while True:
            for member in members:
                if member.task is None and (task := feed.take()) is not None:
                    member.assign(task)
                    yield Started(task)
            busy = {member.connection: member for member in members if member.task is not None}
            if not busy and feed.exhausted:
                return
            hungry = len(busy) < len(members) and not feed.exhausted
            for connection in wait(list(busy), POLL_S if hungry or not busy else None) if busy else ():
                member = busy[connection]  # type: ignore[index]
                last = member.failures == MAX_FAILURES - 1 and len(members) > 1
                yield from member.news(left_out=last)
                if last and member.failures == MAX_FAILURES:
                    members.remove(member)
                    places.remove(member.seat)
                    _stop([member])
    finally:
        _stop(members)


class _Member:
    """One process, and the task it works on.

    Attributes:
        seat: that it has.
        task: None while it is idle.
        failures: slides that it has failed in a row for no reason of theirs.
    """

    def __init__(self, seat: Seat, worker: Callable[[Seat], SlideWorker]) -> None:
        self.seat: Final = seat
        self._worker: Final = worker
        self.failures = 0
        self.task: SlideTask | None = None
        self._begin()

    def assign(self, task: SlideTask) -> None:
        """Give an idle process its next task; one that has died meanwhile is replaced."""
        self.task = task
        try:
            self.connection.send(task)
        except OSError:
            self._replace()
            self.connection.send(task)

    def news(self, *, left_out: bool) -> Iterator[Event]:
        """What a busy process has to tell: one message, or its death.

        Args:
            left_out: whether this seat is not used any more if it fails once more.
        """
        assert self.task is not None  # news are asked for from busy members only
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            message, broken = Outcome(False, self._replace()), True
        else:
            broken = isinstance(message, Outcome) and message.broken
            if broken:
                self.ask_to_stop()
                self._replace()
        if isinstance(message, Progress):
            yield Advanced(self.task, message)
            return
        self.failures = self.failures + 1 if broken else 0
        if broken and left_out:
            why = f"{self.seat.device} has failed {MAX_FAILURES} slides in a row and is left out from now on"
            message = replace(message, reason=f"{message.reason}; {why}")
        task, self.task = self.task, None
        yield Ended(task, message)

    def ask_to_stop(self) -> None:
        """SIGTERM, which a worker obeys at once."""
        self.process.terminate()

    def be_gone(self, deadline: float) -> None:
        """Wait until a moment of the monotonic clock, then kill."""
        self.process.join(max(0.0, deadline - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
        self.process.close()

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, self.seat, self._worker), name="mupd-worker", daemon=True
        )
        self.process.start()
        theirs.close()

    def _replace(self) -> str:
        """Put a new process in a dead one's seat; returns what it died of."""
        self.process.join(STOP_S)
        code = self.process.exitcode
        self.be_gone(time.monotonic())
        self._begin()
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        hint = "; it may have run out of memory: use fewer --jobs" if how == "SIGKILL" else ""
        return f"its worker process died ({how}){hint}"


def _stop(members: Sequence[_Member]) -> None:
    for member in members:
        member.ask_to_stop()
    deadline = time.monotonic() + STOP_S
    for member in members:
        member.be_gone(deadline)


class _StoppedError(BaseException):
    """SIGTERM came: unwinds whatever is at work."""


def _serve(connection: Connection, seat: Seat, make: Callable[[Seat], SlideWorker]) -> None:
    """The worker process: takes tasks until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, _on_term)
    logging.lastResort = None
    warnings.simplefilter("ignore")
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if seat.cores:
        os.sched_setaffinity(0, seat.cores)
    worker = make(seat)
    try:
        with contextlib.suppress(EOFError, OSError):  # the parent is gone
            while True:
                connection.send(worker.stain(connection.recv(), connection.send))
    except _StoppedError:
        os._exit(128 + signal.SIGTERM)  # Python's own shutdown would wait for the network's threads


def _leave_with_parent() -> NoReturn:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
    os._exit(1)


def _on_term(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise _StoppedError
