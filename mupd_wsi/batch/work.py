"""One slide at a time, with a model that is loaded once: what a process, a thread or a cluster's worker runs."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from mupd_wsi.batch.tasks import LASTING, Outcome, SlideTask
from mupd_wsi.batch.transfer import deliver, tell_source
from mupd_wsi.errors import MupdError
from mupd_wsi.pipeline import stain_slide
from mupd_wsi.request import ProgressCallback, StainResult
from mupd_wsi.writers.staging import remove

if TYPE_CHECKING:
    from mupd_wsi.model import TileStainer

#: What torch says where a GPU has failed; memory that is full is told otherwise, and survived.
DEVICE_WORDS: Final = ("CUDA error", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS")


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one worker works.

    Attributes:
        model: name of the model, or its bundle's folder.
        device: that the network runs on.
        cores: that the worker keeps to, by the system's numbers; empty for any.
        threads: its share of the cores; None for all that the process may use.
        batch_size: tiles in one pass; None: one a thread on the CPU, else by the device.
        trust: run a model that is a program.
    """

    model: str
    device: str = "auto"
    cores: tuple[int, ...] = ()
    threads: int | None = None
    batch_size: int | None = None
    trust: bool = False


def seats(model: str, devices: Sequence[str], jobs: int, batch_size: int | None, *, trust: bool = False) -> list[Seat]:
    """Seats for several processes on this machine, each with its own share of the cores.

    Args:
        model: name or folder.
        devices: one process each; where there is one only, ``jobs`` processes use it.
        jobs: processes; never more than there are cores.
        batch_size: as the user wants it, or None.
        trust: run a model that is a program.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    usable = len(cores) or os.cpu_count() or 1
    places = list(devices) if len(devices) > 1 else [devices[0]] * max(1, min(jobs, usable))
    count = len(places)
    shares = [tuple(cores[i * usable // count : (i + 1) * usable // count]) for i in range(count)]
    return [
        Seat(model, device, share, max(1, len(share) or usable // count), batch_size, trust)
        for device, share in zip(places, shares, strict=True)
    ]


class Worker:
    """Stains slides one after the other. The model is loaded for the first one.

    Args:
        seat: where.
    """

    def __init__(self, seat: Seat) -> None:
        self._seat: Final = seat
        self._stainer: TileStainer | None = None

    def stain(self, task: SlideTask, progress: ProgressCallback | None = None) -> Outcome:
        """Stain a slide; whatever goes wrong with it is told, not raised."""
        try:
            return _success(self._run(task, progress))
        except MemoryError:
            return Outcome(False, "out of memory; use fewer --jobs or a smaller --batch-size")
        except (MupdError, OSError) as error:
            return Outcome(False, one_line(error), lasting=isinstance(error, LASTING))
        except Exception as error:  # a bug must not cost the other slides; the log gets its trace
            reason = f"unexpected {type(error).__name__}: {one_line(error)}"
            broken = isinstance(error, RuntimeError) and any(words in str(error) for words in DEVICE_WORDS)
            return Outcome(False, reason, trace="".join(traceback.format_exception(error)), broken=broken)

    def close(self) -> None:
        """Let go of the model."""
        if self._stainer is not None:
            self._stainer.close()
            self._stainer = None

    def _run(self, task: SlideTask, progress: ProgressCallback | None) -> StainResult:
        if self._stainer is None:
            self._stainer = self._load()
        options = replace(
            task.options, device="auto", batch_size=None, workers=task.options.workers or self._seat.threads
        )
        task.output.parent.mkdir(parents=True, exist_ok=True)
        result = stain_slide(
            task.local or task.slide,
            task.targets,
            model=self._stainer,
            output=task.output,
            options=options,
            progress=progress,
        )
        if task.local is not None:
            result = tell_source(result, task.slide)
        if task.remote is not None:
            deliver(result, task.remote)
            for path in (result.output, result.preview, result.record):
                remove(path)
        return result

    def _load(self) -> TileStainer:
        from mupd_wsi.model import load_model
        from mupd_wsi.model.devices import resolve_device

        device = resolve_device(self._seat.device)
        batch_size = self._seat.batch_size or (self._seat.threads if device == "cpu" else None)
        stainer = load_model(self._seat.model, device=device, batch_size=batch_size, trust=self._seat.trust)
        # Model and libraries are there to stay: Python need not look through them for what slides leave behind, and
        # looks the sooner. Without this, the remains of some hundred slides lie about before it does.
        gc.collect()
        gc.freeze()
        return stainer


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _success(result: StainResult) -> Outcome:
    details = result.details
    return Outcome(
        True,
        seconds=round(result.seconds, 3),
        tiles=details["tiles"]["stained"],
        tissue_fraction=details["tissue_fraction"],
        warnings=result.warnings,
    )
