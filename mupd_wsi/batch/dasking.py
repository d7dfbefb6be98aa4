"""The slides of a batch on the workers of a Dask cluster, one slide a worker."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any, Final

from mupd_wsi.batch.cluster import thread_count
from mupd_wsi.batch.tasks import Ended, Event, Feed, Outcome, SlideTask, Started
from mupd_wsi.batch.work import Seat, Worker, one_line

#: Seconds between two looks for slides that have ended.
POLL_S: Final = 0.2


def dask_events(feed: Feed, client: Any, seat: Seat) -> Generator[Event]:
    """Stain a feed's slides on a cluster; a slide whose worker dies is given to another. Closing it takes them back.

    Args:
        feed: the slides; their paths, and the outputs', are those that the workers see.
        client: of the cluster.
        seat: of each worker.
    """
    import distributed

    running: dict[Any, SlideTask] = {}
    try:
        while running or not feed.exhausted:
            while len(running) < thread_count(client) and (task := feed.take()) is not None:
                running[client.submit(stain_here, seat, task, pure=False)] = task
                yield Started(task)
            if not running:
                continue
            try:
                done, _ = distributed.wait(list(running), timeout=POLL_S, return_when="FIRST_COMPLETED")
            except TimeoutError:
                continue
            for future in done:
                yield Ended(running.pop(future), _outcome(future))
                future.release()
    finally:
        if running:
            client.cancel(list(running), force=True)


def _outcome(future: Any) -> Outcome:
    error = future.exception()
    if error is None:
        outcome: Outcome = future.result()
        return outcome
    return Outcome(False, f"its workers died one after the other: {one_line(error)}")


class _Workers(threading.local):
    """A thread's own worker, which keeps its model from slide to slide."""

    worker: Worker | None = None
    seat: Seat | None = None


_own = _Workers()


def stain_here(seat: Seat, task: SlideTask) -> Outcome:
    """Stain one slide. Runs on a worker of the cluster."""
    if _own.worker is None or _own.seat != seat:
        if _own.worker is not None:
            _own.worker.close()
        _own.worker, _own.seat = Worker(seat), seat
    return _own.worker.stain(task)
