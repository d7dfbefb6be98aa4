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


def network_seconds(slide: str, targets: str) -> float:
    """Seconds in the network, summed over the batches that ``mupd-wsi stain`` gives it, after one batch to warm up."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "unwritten.ome.tiff"
        with opened_job(slide, targets, "mupd-mini", place, StainOptions(), Stopwatch()) as job:
            seconds = 0.0
            tiles = list(job.tiles())
            first = tiles[: job.tiles_at_once]
            job.stain(first, [job.read(tile) for tile in first])
            waiting = iter(tiles)
            while batch := list(islice(waiting, job.tiles_at_once)):
                pixels = [job.read(tile) for tile in batch]
                start = time.perf_counter()
                job.stain(batch, pixels)
                seconds += time.perf_counter() - start
            return seconds


if __name__ == "__main__":
    sys.stdout.write(f"{network_seconds(*sys.argv[1:3]):.3f}\n")
