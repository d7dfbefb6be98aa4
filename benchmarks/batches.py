"""The figures of many slides: overhead of tiny ones, workers of a cluster, and what going on costs after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Figure
from benchmarks.free_model import write_free_model
from benchmarks.measured_run import measured_run

SCRIPT: Final = Path(__file__).parent.parent / "sample_data" / "make_synthetic_slide.py"
#: Slides of the tiny batch and of the long one, and how many go before the first look at memory and clock.
TINY: Final = 1000
MANY: Final = 10_000
WARM: Final = 100
TINY_SIDE: Final = 300
#: Stages of a record that are no overhead: reading tiles, the network, writing the image.
WORK: Final = ("read", "network", "write", "finish")
#: Side of the slide that the workers share; it takes one of them minutes.
SHARED_SIDE: Final = 20_000


def tiny(folder: Path, _runs: int, count: int = TINY, *more: str) -> list[Figure]:
    """A batch of many slides of 300 px, by the command itself."""
    slides = folder / f"tiny-{count}"
    slides.mkdir()
    synthetic(folder / "tiny.tif", TINY_SIDE)
    for number in range(count):
        os.link(folder / "tiny.tif", slides / f"{number:05}.tif")
    out = folder / f"tiny-{count}-out"
    command = [sys.executable, "-m", "mupd_wsi", "batch", str(slides), "--target", "CD8", "-o", str(out), "-q", *more]
    log, memory = out / "batch.jsonl", list[int]()
    with subprocess.Popen(command, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}) as process:
        ended = _ended(log)
        while process.poll() is None:
            time.sleep(0.5)
            if next(ended) >= WARM:
                memory.append(_resident(process.pid))
    if process.returncode:
        sys.exit(f"benchmark: {' '.join(command)} failed with exit code {process.returncode}")
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    ends = [event for event in events if event["event"] == "done"]
    first, last = (datetime.fromisoformat(ends[i]["time"]) for i in (WARM - 1, -1))
    taken = (last - first).total_seconds() / (len(ends) - WARM)
    worked = statistics.mean(_work_seconds(out / f"{event['key']}.json") for event in ends[WARM:])
    peak = max(memory[-5:])
    return [
        Figure(f"batch of {count} slides of {TINY_SIDE} px: overhead a slide", 1000 * (taken - worked), "ms", 50),
        Figure(f"memory after {count} such slides / after {WARM}", peak / memory[0], "x", 1.05),
    ]


def many(folder: Path, runs: int) -> list[Figure]:
    """The same with ten times as many slides, and a model that costs nothing: mupd-mini takes most of an hour."""
    return tiny(folder, runs, MANY, "--model", str(write_free_model(folder / "free")), "--trust")


def workers(folder: Path, runs: int, side: int = SHARED_SIDE) -> list[Figure]:
    """One slide on one and on two local workers of one thread, turn by turn."""
    slide = folder / "shared.tif"
    synthetic(slide, side)
    shares: dict[str, list[float]] = {"staining": [], "whole": []}
    for _ in range(runs):
        seconds: list[dict[str, float]] = []
        for count in ("1", "2"):
            words = [str(slide), str(folder / "shared.ome.zarr"), count]
            command = [sys.executable, "-m", "benchmarks.cluster_run", *words]
            seconds.append(json.loads(measured_run(command).output))
        for name, found in shares.items():
            found.append(seconds[1][name] / seconds[0][name])
    return [
        Figure("time on 2 local workers / on 1", statistics.median(shares["staining"]), "x", 1 / 1.7),
        Figure("the same, cluster's start and end included", statistics.median(shares["whole"]), "x", 1 / 1.7),
    ]


def resume(folder: Path, runs: int, slide: Path, targets: str = "all") -> list[Figure]:
    """A run that is killed half-way and the one that goes on, together, over one that is left alone."""
    ratios = [_resumed(folder, slide, targets) for _ in range(runs)]
    processor, wall = (statistics.median(column) for column in zip(*ratios, strict=True))
    return [
        Figure("killed half-way and resumed / left alone, processor time", processor, "x", 1.05),
        Figure("the same, start to finish", wall, "x", 1.05),
    ]


def _resumed(folder: Path, slide: Path, targets: str) -> tuple[float, float]:
    """Processor and wall time of both runs over those of one."""
    command = [sys.executable, "-m", "mupd_wsi", "stain", str(slide), "--target", targets, "--overwrite", "-q", "-o"]
    log, largest = folder / ".resumed.mupd-part" / "tiles.log", 0
    output = folder / "resumed.ome.tiff"

    def grow() -> bool:
        nonlocal largest
        largest = max(largest, _size(log))
        return True

    whole = measured_run([*command, str(output)], look=grow)
    killed = measured_run([*command, str(output)], look=lambda: _size(log) < largest / 2)
    rest = measured_run([*command, str(output)])
    tiles = json.loads(output.with_name(f"{output.name}.json").read_text(encoding="utf-8"))["tiles"]
    if not 0 < tiles["resumed"] < tiles["total"]:
        sys.exit(f"benchmark: the kill came at the wrong time, {tiles['resumed']} tiles were kept")
    return (killed.cpu_s + rest.cpu_s) / whole.cpu_s, (killed.wall_s + rest.wall_s) / whole.wall_s


def synthetic(path: Path, width: int, height: int | None = None, mpp: float = 0.5) -> None:
    """Write a slide of drawn tissue, px; square where no height is given."""
    size = f"{width}x{height or width}"
    measured_run([sys.executable, str(SCRIPT), str(path), "--size", size, "--mpp", str(mpp)])


def _ended(log: Path) -> Iterator[int]:
    """How many slides a batch's log says are done, each time it is asked."""
    while not log.exists():
        yield 0
    with log.open(encoding="utf-8") as lines:
        count = 0
        while True:
            count += lines.read().count('"event": "done"')  # lines are written whole
            yield count


def _work_seconds(record: Path) -> float:
    seconds: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))["seconds"]
    return sum(float(seconds.get(name, 0)) for name in WORK)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _resident(pid: int) -> int:
    """Resident bytes of a process and all below it (Linux)."""
    return sum(_own_resident(one) for one in _family(pid))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended since it was listed
            for child in listed.read_text().split():
                yield from _family(int(child))


def _own_resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # gone since it was listed
        return 0
