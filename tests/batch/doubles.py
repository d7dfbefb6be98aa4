"""A batch without processes, stained by the stand-in: quick enough to run many."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from standins import PANEL, StandInStainer, he_texture, save_slide

from mupd_wsi.batch.inputs import find_slides
from mupd_wsi.batch.matching import ModelFacts
from mupd_wsi.batch.naming import plan_tasks
from mupd_wsi.batch.tasks import Ended, Event, Feed, Outcome, SlideTask, Started
from mupd_wsi.batch.work import Seat, Worker
from mupd_wsi.request import ProgressCallback, StainOptions, StainResult

FACTS = ModelFacts(PANEL, "0" * 64)


class StandInWorker(Worker):
    """A worker whose model is the stand-in."""

    def _load(self) -> StandInStainer:  # type: ignore[override]
        return StandInStainer()


class OnStandInDevice(StandInWorker):
    """A worker that leaves a line about each slide: its device, process and cores; and fails where it is told to.

    Args:
        seat: of the worker; the model's name is the folder to write to. A file there with the device's name makes it
            fail, and holds how: ``error`` or ``death``.
    """

    def __init__(self, seat: Seat) -> None:
        super().__init__(seat)
        self._own, self._folder = seat, Path(seat.model)

    def _run(self, task: SlideTask, progress: ProgressCallback | None) -> StainResult:
        told = {"device": self._own.device, "pid": os.getpid(), "cores": sorted(os.sched_getaffinity(0))}
        with (self._folder / "told.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(told | {"key": task.key}) + "\n")
        while self._own.device == "cuda:0" and (self._folder / "cuda:1").exists() and self._told("cuda:1") < 3:
            time.sleep(0.02)  # or it would have done all while the other one starts
        fault = self._folder / self._own.device
        if fault.exists():
            if fault.read_text() == "death":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        return super()._run(task, progress)

    def _told(self, device: str) -> int:
        return (self._folder / "told.jsonl").read_text(encoding="utf-8").count(f'"{device}"')


class InPlace:
    """Stains a feed's slides one after the other, here; remembers which.

    Args:
        before: called with each task before it is stained; what it raises ends the run, an outcome replaces staining.
    """

    def __init__(self, before: Callable[[SlideTask], Outcome | None] = lambda _: None) -> None:
        self.stained: list[str] = []
        self._before = before

    def __call__(self, feed: Feed) -> Generator[Event]:
        worker = StandInWorker(Seat("stand-in", threads=1))
        while not feed.exhausted:
            if (task := feed.take()) is not None:
                yield Started(task)
                self.stained.append(task.key)
                yield Ended(task, self._before(task) or worker.stain(task))


def make_slides(folder: Path, names: Sequence[str], side: int = 90) -> Path:
    """Small H&E pictures; they need ``mpp``."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_slide(folder / name, he_texture(side, side, seed))
    return folder


def tasks_of(slides: Path, folder: Path, targets: str = "CD8", **options: object) -> list[SlideTask]:
    """The tasks of a folder of pictures."""
    chosen = replace(StainOptions(mpp=0.5), **options)
    entries = find_slides([str(slides)], [], pictures=True, outside=folder)
    return plan_tasks(entries, (targets,), PANEL, folder, chosen)


def grey(side: int) -> np.ndarray:
    """Nothing that could be tissue."""
    return np.full((side, side, 3), 240, np.uint8)
