"""Prints the seconds that the network alone takes for the batches of a run: nothing is read or written meanwhile.

python -m benchmarks.network_time SLIDE TARGETS
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from mupd_wsi.engine.overlap import Stopwatch
from mupd_wsi.engine.resources import opened_job
from mupd_wsi.request import StainOptions

CALL_BATCHES = 8


def network_seconds(slide: str, targets: str) -> float:
    """Seconds in the network for the tiles of ``mupd-wsi stain``, after a few to warm up.

    It is given many tiles at a time, so that its threads wait for each other as seldom as they do there.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "unwritten.ome.tiff"
        with opened_job(slide, targets, "mupd-mini", place, StainOptions(), Stopwatch()) as job:
            seconds = 0.0
            tiles = list(job.tiles())
            at_once = CALL_BATCHES * job.stainer.batch_size
            first = tiles[: job.stainer.batch_size]
            job.stain(first, [job.read(tile) for tile in first])
            waiting = iter(tiles)
            while batch := list(islice(waiting, at_once)):
                pixels = [job.read(tile) for tile in batch]
                start = time.perf_counter()
                job.stain(batch, pixels)
                seconds += time.perf_counter() - start
            return seconds


if __name__ == "__main__":
    sys.stdout.write(f"{network_seconds(*sys.argv[1:3]):.3f}\n")
