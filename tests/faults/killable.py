"""A run that kills itself, as ``kill -9`` does, at the n-th call of whatever a stage is made of.

    python killable.py FOLDER OUTPUT STAGE N before|after

With the stage ``count`` it runs to its end and prints how often each stage is called.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from standins import StandInStainer

from mupd_wsi import pipeline
from mupd_wsi.engine.journal import Journal
from mupd_wsi.pipeline import StainOptions, stain_slide
from mupd_wsi.request import ProgressCallback, StainResult
from mupd_wsi.slides import Slide
from mupd_wsi.writers.ngff import ZarrStore
from mupd_wsi.writers.pyramid import PyramidCutter
from mupd_wsi.writers.tiff import TiffStore

FSYNC = os.fsync
#: Stage -> the functions that it is made of.
STAGES: dict[str, tuple[tuple[Any, str], ...]] = {
    "reading": ((Slide, "read"),),
    "staining": ((StandInStainer, "stain"),),
    "keeping": ((Journal, "_append"),),
    "writing": ((PyramidCutter, "add"),),
    "pyramid": ((TiffStore, "take"), (ZarrStore, "take")),
    "finishing": ((TiffStore, "complete"), (ZarrStore, "complete"), (os, "fsync")),
    "rename": ((Path, "replace"), (Path, "rename"), (Path, "unlink"), (Path, "touch"), (os, "rmdir")),
}


def stain(
    folder: Path, name: str, stainer: StandInStainer | None = None, progress: ProgressCallback | None = None
) -> StainResult:
    """The run that is killed, and what goes on from it."""
    return stain_slide(
        folder / "s.png",
        "all",
        model=stainer or StandInStainer(tile=256, halo=32),
        output=folder / name,
        options=StainOptions(mpp=1.3, style="mif", tissue_mask=False),
        progress=progress,
    )


def no_picture(path: Path, *_: object) -> None:
    """In place of the preview, drawing which would take most of such a short run."""
    path.write_bytes(b"picture")


def main(folder: Path, name: str, stage: str, at: int, after: bool) -> None:
    calls: Counter[str] = Counter()
    pipeline.save_preview = no_picture
    for own, functions in STAGES.items():
        for holder, function in functions:
            setattr(holder, function, _watched(getattr(holder, function), own, calls, own == stage, at, after))
    stain(folder, name)
    print(json.dumps(calls))


def _watched(
    function: Callable[..., Any], own: str, calls: Counter[str], deadly: bool, at: int, after: bool
) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        if own == "pyramid" and arguments[1].level == 0:
            return function(*arguments, **keywords)
        if function is FSYNC and threading.current_thread().name == "mupd-beat":
            return function(*arguments, **keywords)  # comes by the clock, not by the work
        calls[own] += 1
        dies = deadly and calls[own] > at
        if dies and own == "keeping":  # in the middle of a record
            function(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if dies and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **keywords)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "after")
