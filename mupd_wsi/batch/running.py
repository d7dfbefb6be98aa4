"""A whole batch: every slide is stained, or named with its reason, and none twice."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mupd_wsi.batch.crew import crew_events
from mupd_wsi.batch.feeding import TodoFeed
from mupd_wsi.batch.fetching import FetchingFeed
from mupd_wsi.batch.ledger import PATTERN, Ledger, Shard, read_states
from mupd_wsi.batch.matching import Match, ModelFacts
from mupd_wsi.batch.summary import Summary, summarise
from mupd_wsi.batch.tasks import (
    Advanced,
    BatchCallback,
    BatchProgress,
    Ended,
    Event,
    Failure,
    Feed,
    Outcome,
    SlideTask,
    Started,
)
from mupd_wsi.batch.work import seats
from mupd_wsi.request import Progress

#: Seconds between two summaries while a batch runs.
SUMMARY_INTERVAL_S: Final = 60.0
#: Default bound of the copies in a cache, bytes.
CACHE_BYTES: Final = 50 * 10**9

#: Who stains: takes a feed's tasks and yields what happens to them; closing it stops all.
Events = Callable[[Feed], Generator[Event]]


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How a batch is run.

    Attributes:
        model: name of the model, or its bundle's folder.
        devices: one process each where there are several.
        jobs: processes where there is one device.
        batch_size: tiles in one pass; None: by the device.
        shard: which part of the batch to do.
        retry: further attempts for slides that failed for a reason that may pass.
        keep_going: False stops at the first slide that fails.
        cache: folder that slides are copied to ahead of their turn; None reads them where they are.
        cache_bytes: what the copies may take.
        trust: run a model that is a program.
    """

    model: str = "mupd-mini"
    devices: tuple[str, ...] = ("auto",)
    jobs: int = 1
    batch_size: int | None = None
    shard: Shard = Shard()  # noqa: RUF009  (frozen)
    retry: int = 0
    keep_going: bool = True
    cache: Path | None = None
    cache_bytes: int = CACHE_BYTES
    trust: bool = False


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a run of a batch has done.

    Attributes:
        done: slides stained by this run.
        skipped: slides stained before.
        failed: slides that are not stained, each with its reason.
        left: slides that were not begun, because a failure ended the run.
        summary: of the whole batch, all shards and earlier runs included.
    """

    done: int
    skipped: int
    failed: tuple[Failure, ...]
    left: int
    summary: Summary

    @property
    def ok(self) -> bool:
        """Whether all slides of this run are stained."""
        return not self.failed and not self.left


def run_batch(
    tasks: Sequence[SlideTask],
    folder: Path,
    options: BatchOptions,
    *,
    progress: BatchCallback | None = None,
    events: Events | None = None,
) -> BatchResult:
    """Stain all slides that are not stained yet; keep a log, a table and a page of it in the batch's folder.

    Memory bound: the list of tasks; nothing grows with the pixels or the number of slides stained.

    Args:
        tasks: of the whole batch; the shard's part of them is done.
        folder: of the batch.
        options: the rest.
        progress: called in this thread whenever something has happened.
        events: who stains; None: processes on this machine.

    Raises:
        OutputError: the folder cannot be written.
        BundleError: the model cannot be read.
    """
    facts = model_facts(options.model, trust=options.trust)
    shard = options.shard
    own = list(tasks[shard.number - 1 :: shard.count])
    begun = _begun(folder)
    places = seats(options.model, options.devices, options.jobs, options.batch_size, trust=options.trust)
    crew = events or (lambda feed: crew_events(feed, places))
    with ExitStack() as stack:
        ledger = stack.enter_context(closing(Ledger(folder, shard)))
        ledger.begin(own, shard, [Path(sys.argv[0]).name, *sys.argv[1:]])
        books = _Books(ledger, folder, len(own), progress)
        stack.callback(summarise, folder)
        todo = own
        for attempt in range(options.retry + 1):
            feed = TodoFeed(todo, facts, begun | books.begun, books)
            _run_round(feed, crew, books, options)
            todo = books.to_retry if attempt < options.retry and (options.keep_going or not books.failed) else []
            if not todo:
                break
            books.take_back(todo)
    return BatchResult(books.done, books.skipped, tuple(books.failed.values()), books.left, summarise(folder))


def model_facts(model: str, *, trust: bool = False) -> ModelFacts:
    """What tasks are compared with, without loading the weights, but for those of the zoo.

    Raises:
        BundleError: there is no such model, its card cannot be read, or it is a program that is not trusted.
    """
    from mupd_wsi.model.loading import settled_card

    info = settled_card(model, trust=trust)
    return ModelFacts(info.panel, info.weights_sha256)


def _run_round(todo: TodoFeed, crew: Events, books: _Books, options: BatchOptions) -> None:
    """Every task of a feed once."""
    with closing(FetchingFeed(todo, books, options.cache, options.cache_bytes)) as feed, closing(crew(feed)) as events:
        for event in events:
            books.note(event)
            if isinstance(event, Ended):
                feed.release(event.task)
            if books.failed and not options.keep_going:
                return


def _begun(folder: Path) -> frozenset[str]:
    if not any(folder.glob(PATTERN)):
        return frozenset()
    return frozenset(state.key for state in read_states(folder) if state.attempts)


class _Books:
    """Counts, logs and reports; see :class:`~mupd_wsi.batch.feeding.Books`. Used from one thread."""

    def __init__(self, ledger: Ledger, folder: Path, total: int, progress: BatchCallback | None) -> None:
        self._ledger, self._folder, self._total = ledger, folder, total
        self._progress = progress or (lambda _: None)
        self._start = time.monotonic()
        self._next_summary = self._start + SUMMARY_INTERVAL_S
        self._active: dict[str, Progress] = {}
        self.done = self.skipped = 0
        self.begun: frozenset[str] = frozenset()
        self.failed: dict[str, Failure] = {}
        self.to_retry: list[SlideTask] = []
        self._report()

    @property
    def left(self) -> int:
        """Slides that nothing has been said of."""
        return self._total - self.done - self.skipped - len(self.failed)

    def note(self, event: Event) -> None:
        """Take note of what a worker does."""
        if isinstance(event, Started):
            self._ledger.started(event.task)
            self._active[event.task.key] = Progress(0, 0)
        elif isinstance(event, Advanced):
            self._active[event.task.key] = event.progress
        else:
            self.end(event.task, event.outcome)
            return
        self._report()

    def skip(self, task: SlideTask, found: Match) -> None:
        """A task was done before."""
        self.skipped += 1
        self._ledger.skipped(task, found.record or {})
        self._report()

    def end(self, task: SlideTask, outcome: Outcome) -> None:
        """A task is over."""
        self._active.pop(task.key, None)
        self._ledger.ended(task, outcome)
        if outcome.ok:
            self.done += 1
        else:
            self.failed[task.key] = Failure(task.slide, task.key, outcome.reason)
            if not outcome.lasting:
                self.to_retry.append(replace(task, local=None))
        self._report()

    def take_back(self, tasks: list[SlideTask]) -> None:
        """These tasks get another attempt."""
        for task in tasks:
            del self.failed[task.key]
        self.begun |= {task.key for task in tasks}
        self.to_retry = []

    def _report(self) -> None:
        now = time.monotonic()
        if now >= self._next_summary:
            summarise(self._folder)
            self._next_summary = time.monotonic() + SUMMARY_INTERVAL_S
        self._progress(
            BatchProgress(self._total, self.done, self.skipped, len(self.failed), dict(self._active), now - self._start)
        )
