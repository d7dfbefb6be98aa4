"""What a worker of a local cluster does first; Dask calls it by name (``preload``), also where one replaces a dead one.

A worker of one thread gets one core: what reads slides for it, and what its libraries start, shares that core. Without
that a single worker would use more of the machine than each of many, and they would get in each other's way.
"""

from __future__ import annotations

import importlib
import os
from typing import Any


def dask_setup(worker: Any) -> None:
    """Keep the thread that does the tasks, and all that it starts, to one core, and load the network's library."""
    worker.executors["default"].submit(_settle, int(worker.name))


def _settle(number: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})  # of this thread, and of those that it starts
    importlib.import_module("mupd_wsi.model.stainer")  # takes seconds, while the client looks at the slide
