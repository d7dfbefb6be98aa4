"""How far a batch is: bars on a terminal, plain lines elsewhere, nothing with ``-q``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

import click

from mupd_wsi.cli.console import Console
from mupd_wsi.cli.progress import LINE_INTERVAL_S, duration, fitting_display

if TYPE_CHECKING:
    from mupd_wsi.batch.tasks import BatchCallback, BatchProgress

#: More slides at work than this are counted.
MAX_NAMED: Final = 4


def batch_display(console: Console) -> AbstractContextManager[BatchCallback | None]:
    """A callback for ``run_batch`` that shows slides, the tiles of those at work, and the time left."""
    return fitting_display(console, _bar, lambda: BatchLines(time.monotonic))


@contextmanager
def _bar() -> Iterator[BatchCallback]:
    from tqdm import tqdm

    form = "{desc} {n_fmt}/{total_fmt} {bar} {postfix}"
    with tqdm(total=0, desc="slides", dynamic_ncols=True, leave=False, bar_format=form) as bar:

        def report(progress: BatchProgress) -> None:
            bar.total = progress.total
            bar.n = progress.done + progress.skipped + progress.failed
            bar.set_postfix_str(batch_line(progress).partition(", ")[2])

        yield report


class BatchLines:
    """Prints a line every few seconds, and once at the end.

    Args:
        clock: seconds from an arbitrary origin.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = clock() + LINE_INTERVAL_S

    def __call__(self, progress: BatchProgress) -> None:
        """Take note, and print a line if it is time for one."""
        over = progress.done + progress.skipped + progress.failed == progress.total
        if self._clock() < self._next and not over:
            return
        self._next = self._clock() + LINE_INTERVAL_S
        click.echo(batch_line(progress), err=True)


def batch_line(progress: BatchProgress) -> str:
    """``slides 3/12, 1 failed, ETA 1:02:03, at work: a.CD8 24/99``."""
    parts = [f"slides {progress.done + progress.skipped + progress.failed}/{progress.total}"]
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    parts.append(f"ETA {'?' if progress.eta is None else duration(progress.eta)}")
    active = [
        f"{PurePosixPath(key).name.partition('.ome.')[0]} {tiles.done}/{tiles.total or '?'}"
        for key, tiles in progress.active.items()
    ]
    if active:
        more = f" and {len(active) - MAX_NAMED} more" if len(active) > MAX_NAMED else ""
        parts.append(f"at work: {', '.join(active[:MAX_NAMED])}{more}")
    return ", ".join(parts)
