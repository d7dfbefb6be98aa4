"""How far a run is: a bar on a terminal, a plain line every few seconds elsewhere, nothing with ``-q``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click

from mupd_wsi.cli.console import Console
from mupd_wsi.request import Progress, ProgressCallback

#: Seconds between plain lines.
LINE_INTERVAL_S: Final = 5.0


@contextmanager
def progress_display(console: Console) -> Iterator[ProgressCallback | None]:
    """A callback for ``stain_slide`` that shows tiles, rate and the time left on standard error."""
    if console.quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        yield PlainLines(time.monotonic)


@contextmanager
def _bar() -> Iterator[ProgressCallback]:
    from tqdm import tqdm

    with tqdm(total=0, unit="tile", desc="staining", dynamic_ncols=True, leave=False) as bar:

        def report(progress: Progress) -> None:
            if bar.total != progress.total:
                bar.initial = progress.resumed  # neither the rate nor the time left count what was done before
                bar.reset(total=progress.total)
                bar.n = progress.resumed
            bar.update(progress.done - bar.n)

        yield report


class PlainLines:
    """Prints progress as a line every few seconds, and once at the end. Time runs from the first report on.

    Args:
        clock: seconds from an arbitrary origin.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start: float | None = None
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        """Take note, and print a line if it is time for one."""
        now = self._clock()
        if self._start is None:
            self._start, self._next = now, now + LINE_INTERVAL_S
        if now < self._next and progress.done < progress.total:
            return
        self._next = now + LINE_INTERVAL_S
        click.echo(line(progress.done, progress.total, now - self._start, progress.resumed), err=True)


def line(done: int, total: int, elapsed: float, resumed: int = 0) -> str:
    """``tiles 12/48, 1.50 tiles/s, ETA 0:24``.

    Args:
        done: tiles stained.
        total: tiles to stain.
        elapsed: seconds since the start.
        resumed: tiles that were stained before the start.
    """
    rate = (done - resumed) / elapsed if elapsed > 0 else 0.0
    eta = duration((total - done) / rate) if rate > 0 else "?"
    return f"tiles {done}/{total}, {rate:.2f} tiles/s, ETA {eta}"


def duration(seconds: float) -> str:
    """Seconds as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
