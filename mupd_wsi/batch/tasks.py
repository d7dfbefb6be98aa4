"""What is passed between those who list slides, those who stain them, and those who keep the books. Plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mupd_wsi.errors import NotHEError, PixelSizeError, RegionError, UsageError
from mupd_wsi.request import Progress, StainOptions

#: Errors that the same request will meet again.
LASTING = (UsageError, PixelSizeError, RegionError, NotHEError)


@dataclass(frozen=True, slots=True)
class SlideTask:
    """One slide to be stained once.

    Attributes:
        key: the output's name below the batch's folder, with forward slashes; no two tasks share one.
        slide: path or URL.
        targets: as the user spelled them.
        output: full path of the stained slide.
        options: the rest.
        local: where a copy of the slide lies that is to be read instead; None reads the slide itself.
        remote: URL that the output is put at when it is complete; None leaves it in its place.
    """

    key: str
    slide: str
    targets: tuple[str, ...]
    output: Path
    options: StainOptions
    local: Path | None = None
    remote: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended.

    Attributes:
        ok: whether the stained slide is there.
        reason: why not, one line.
        trace: stack trace of an error that nobody expected; empty otherwise.
        lasting: the same request would fail in the same way.
        broken: the device has failed, and this process cannot use it any more.
        seconds: that staining took.
        tiles: that the network has seen.
        tissue_fraction: of the stained area, 0-1.
        warnings: one sentence each.
    """

    ok: bool
    reason: str = ""
    trace: str = ""
    lasting: bool = False
    broken: bool = False
    seconds: float = 0.0
    tiles: int = 0
    tissue_fraction: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has begun with a task."""

    task: SlideTask


@dataclass(frozen=True, slots=True)
class Advanced:
    """A worker has stained some more tiles of a task."""

    task: SlideTask
    progress: Progress


@dataclass(frozen=True, slots=True)
class Ended:
    """A task is over."""

    task: SlideTask
    outcome: Outcome


Event = Started | Advanced | Ended


class Feed(Protocol):
    """Where workers get their tasks from."""

    @property
    def exhausted(self) -> bool:
        """Whether no task will come any more."""

    def take(self) -> SlideTask | None:
        """The next task; None where there is none at the moment. Returns within a tenth of a second or so."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A slide that is not stained.

    Attributes:
        slide: path or URL.
        key: of its task.
        reason: why, one line.
    """

    slide: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is.

    Attributes:
        total: slides of the batch.
        done: stained by this run.
        skipped: stained before.
        failed: given up.
        active: tiles of the slides at work, by key.
        seconds: since the start.
    """

    total: int
    done: int
    skipped: int
    failed: int
    active: Mapping[str, Progress] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def eta(self) -> float | None:
        """Seconds left, by the slides stained so far and the parts of those at work; None before there are any."""
        parts = sum(p.done / p.total for p in self.active.values() if p.total)
        worked = self.done + self.failed + parts
        left = self.total - self.skipped - worked
        return self.seconds * left / worked if worked > 0 else None


BatchCallback = Callable[[BatchProgress], None]
