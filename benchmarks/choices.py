"""Prints the seconds a tile that the network takes in one way of running it on a processor; all markers, read-out.

python -m benchmarks.choices WAY

``torch.compile`` is not among the ways: it had not done with the first tile after 200 s, and a run takes half of that.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import torch

from mupd_wsi.model import SampleOptions, Stainer, load_model
from mupd_wsi.model.devices import usable_cores

#: What the engine does: docs/decisions/0004.
CHOSEN: Final = "a tile a thread, fp32"
BF16: Final = "a tile a thread, bf16"
ALL_CORES: Final = "a tile on all cores"
PROCESSES: Final = "a process a core"
OTHERS: Final = (BF16, ALL_CORES, PROCESSES)
#: Tiles for each core that are timed.
TILES_A_CORE: Final = 6
#: Tells a process of :data:`PROCESSES` which core is its own.
CORE: Final = "BENCHMARK_CORE"


def seconds_a_tile(way: str) -> float:
    """Wall time over tiles, on all cores that there are."""
    if way == PROCESSES:
        return _by_processes()
    stainer = _stainer(way)
    count = TILES_A_CORE * (1 if CORE in os.environ else usable_cores())
    side, halo = stainer.info.tile, stainer.info.halo
    tiles = np.random.default_rng(0).integers(60, 250, (count, side, side, 3), np.uint8)
    places = [(512 * i, 0) for i in range(count)]
    stainer.stain(tiles[: stainer.batch_size], places[: stainer.batch_size], SampleOptions(), margin=halo)
    if CORE in os.environ:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()  # until all are
    start = time.perf_counter()
    stainer.stain(tiles, places, SampleOptions(), margin=halo)
    return (time.perf_counter() - start) / count


def _stainer(way: str) -> Stainer:
    if core := os.environ.get(CORE):
        os.sched_setaffinity(0, {int(core)})
    precision = "bf16" if way == BF16 else "fp32"
    stainer = load_model("mupd-mini", device="cpu", precision=precision, batch_size=1 if way == ALL_CORES else None)
    if way == ALL_CORES:
        stainer._threads = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(usable_cores(),))
    return stainer


def _by_processes() -> float:
    command = [sys.executable, "-m", "benchmarks.choices", CHOSEN]
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | {CORE: str(core)})
        for core in sorted(os.sched_getaffinity(0))
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()  # it is ready
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found = [float(process.communicate()[0]) for process in running]
    return max(found) / len(found)


if __name__ == "__main__":
    sys.stdout.write(f"{seconds_a_tile(sys.argv[1]):.4f}\n")
