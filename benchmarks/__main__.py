"""``python -m benchmarks``: measures the figures that mupd-wsi promises; exits 1 where one is missed.

Writes results.json, where the figures of parts that were not asked for stay. Needs ../shared/data (see README.md). A
command is always compared with what it is compared to in the same run, turn by turn; medians are shown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from importlib.util import find_spec
from pathlib import Path

from benchmarks import batches
from benchmarks.choices import CHOSEN, OTHERS
from benchmarks.figures import Figure
from benchmarks.measured_run import MeasuredRun, measured_run
from benchmarks.orion_slide import write_slide
from mupd_wsi.model.devices import usable_cores

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "shared" / "data"
GIB = 2**30
PEER = "wsi_tile_processor"
#: Side of the slide that mupd-mini stains by another engine, px.
MINI_SIDE = 5120
#: Names a Python that lazyslide is installed for: its torchvision does not fit the pinned torch.
LAZYSLIDE_PYTHON = "LAZYSLIDE_PYTHON"


def stain(slide: Path, targets: str, folder: Path, *more: str) -> MeasuredRun:
    """The whole command, as a user runs it."""
    output = folder / "stained.ome.tiff"
    command = [sys.executable, "-m", "mupd_wsi", "stain", str(slide), "--target", targets, "-o", str(output)]
    return measured_run([*command, "--overwrite", "-q", *more])


def orion(folder: Path, runs: int) -> list[Figure]:
    """The ORION slide, all markers: whole command over network, wall time, memory."""
    slide = folder / "orion-he.tif"
    write_slide(DATA / "orion-crc01", slide)
    network, whole = [], []
    for _ in range(runs):
        command = [sys.executable, "-m", "benchmarks.network_time", str(slide), "all"]
        network.append(float(measured_run(command).output))
        whole.append(stain(slide, "all", folder))
    ratios = [run.wall_s / seconds for run, seconds in zip(whole, network, strict=True)]
    return [
        _memory_formula("ORION, all markers", folder, whole),
        Figure("ORION, all markers: whole command / network alone", statistics.median(ratios), "x", 1.10),
        Figure("ORION, all markers: start to finish", statistics.median(r.wall_s for r in whole), "s", 360),
        Figure("ORION, all markers: peak memory", max(r.peak_bytes for r in whole) / GIB, "GiB", 2),
    ]


def biopsy(folder: Path, runs: int) -> list[Figure]:
    """EAS2-HE1 (1.26 gigapixels), CD8."""
    taken = [stain(DATA / "slides" / "EAS2-HE1.svs", "CD8", folder) for _ in range(runs)]
    return [
        _memory_formula("EAS2-HE1, CD8", folder, taken),
        Figure("EAS2-HE1, CD8: start to finish", statistics.median(r.wall_s for r in taken), "s", 20),
        Figure("EAS2-HE1, CD8: peak memory", max(r.peak_bytes for r in taken) / GIB, "GiB", 2),
    ]


def height(folder: Path, _runs: int) -> list[Figure]:
    """Peak memory of a slide twice and four times as high, over that of the slide itself (all markers)."""
    peaks = []
    for repeat in (1, 2, 4):
        slide = folder / f"height-{repeat}.tif"
        batches.synthetic(slide, 3072, 3072 * repeat, mpp=1.3)
        peaks.append(stain(slide, "all", folder).peak_bytes)
    return [
        Figure("peak memory at 2 x the height", peaks[1] / peaks[0], "x", 1.10),
        Figure("peak memory at 4 x the height", peaks[2] / peaks[0], "x", 1.10),
    ]


def identity(folder: Path, runs: int) -> list[Figure]:
    """A model that costs nothing on 20,000 px square: ours over libvips, and over whom else there is."""
    slide = folder / "identity.svs"
    batches.synthetic(slide, 20_000)
    peers = {"wsi-tile-processor": [sys.executable, "-m", "benchmarks.peer_run"]} if find_spec(PEER) else {}
    if python := os.environ.get(LAZYSLIDE_PYTHON):
        peers["lazyslide"] = [python, "-m", "benchmarks.lazyslide_run"]
    ours, floor = [], []
    theirs: dict[str, list[MeasuredRun]] = {name: [] for name in peers}
    for _ in range(runs):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            place = Path(name)
            module = [sys.executable, "-m"]
            ours.append(
                measured_run([*module, "benchmarks.identity_run", str(slide), str(place / "a.ome.tiff")], place)
            )
            floor.append(measured_run([*module, "benchmarks.vips_run", str(slide), str(place / "b.tif")]))
        for peer, command in peers.items():
            with tempfile.TemporaryDirectory(dir=folder) as name:
                words = [str(slide), str(Path(name) / ("c.ome.tiff" if peer == "wsi-tile-processor" else "c.zarr"))]
                theirs[peer].append(measured_run([*command, *words, name], Path(name)))
    times = [run.wall_s / other.wall_s for run, other in zip(ours, floor, strict=True)]
    figures = [Figure("identity, 20,000 px: ours / vips tiffsave", statistics.median(times), "x", 2)]
    if "wsi-tile-processor" in peers:
        figures.append(_mini_by_peer(folder, runs))
    for peer, taken in theirs.items():
        times = [run.wall_s / other.wall_s for run, other in zip(ours, taken, strict=True)]
        held = [_held(run) / _held(other) for run, other in zip(ours, taken, strict=True)]
        figures += [
            Figure(f"identity, 20,000 px: ours / {peer}, time", statistics.median(times), "x", 1 / 3),
            Figure(f"identity, 20,000 px: ours / {peer}, memory and scratch", statistics.median(held), "x", 0.5),
        ]
    return figures


def _mini_by_peer(folder: Path, runs: int) -> Figure:
    """The shipped model, CD8, through this engine and through wsi-tile-processor: the same tiles of the same slide."""
    slide = folder / "mini.svs"
    batches.synthetic(slide, MINI_SIDE, mpp=1.3)
    times = []
    for _ in range(runs):
        ours = stain(slide, "CD8", folder, "--no-tissue-mask", "--no-normalise")
        with tempfile.TemporaryDirectory(dir=folder) as name:
            words = [str(slide), str(Path(name) / "c.ome.tiff"), name, "mupd-mini"]
            times.append(ours.wall_s / measured_run([sys.executable, "-m", "benchmarks.peer_run", *words]).wall_s)
    return Figure(f"mupd-mini, {MINI_SIDE} px: ours / wsi-tile-processor, time", statistics.median(times), "x", 1)


def choices(_folder: Path, runs: int) -> list[Figure]:
    """The way that the network runs on this processor over the other ways, turn by turn."""
    module = [sys.executable, "-m", "benchmarks.choices"]
    taken: dict[str, list[float]] = {}
    for _ in range(runs):
        chosen = float(measured_run([*module, CHOSEN]).output)
        for other in OTHERS:
            taken.setdefault(other, []).append(chosen / float(measured_run([*module, other]).output))
    return [Figure(f"network: {CHOSEN} / {other}", statistics.median(taken[other]), "x", 1.05) for other in OTHERS]


def resume(folder: Path, runs: int) -> list[Figure]:
    """What a kill half-way costs on the ORION slide, all markers."""
    slide = folder / "resume-he.tif"
    write_slide(DATA / "orion-crc01", slide)
    return batches.resume(folder, runs, slide)


def _memory_formula(what: str, folder: Path, runs: list[MeasuredRun]) -> Figure:
    """Measured peak over what the record of the last run expects, or the other way round, whichever is above 1."""
    record = json.loads((folder / "stained.ome.tiff.json").read_text(encoding="utf-8"))
    ratio = max(run.peak_bytes for run in runs) / record["expected_peak_bytes"]
    return Figure(f"{what}: peak memory against its formula", max(ratio, 1 / ratio), "x", 1.2)


def _keep_results(figures: list[Figure], runs: int) -> None:
    """Write figures to results.json, in place of older ones of the same names; the other parts' stay."""
    path = HERE / "results.json"
    kept = {entry["name"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))} if path.exists() else {}
    how = {
        "runs": runs,
        "machine": platform.machine(),
        "cores": usable_cores(),
        "date": str(date.today()),
    }
    kept |= {figure.name: asdict(figure) | {"kept": figure.kept} | how for figure in figures}
    path.write_text(json.dumps(list(kept.values()), indent=2) + "\n", encoding="utf-8")


def _held(run: MeasuredRun) -> int:
    return run.peak_bytes + run.scratch_bytes


PARTS: dict[str, Callable[[Path, int], list[Figure]]] = {
    "orion": orion,
    "biopsy": biopsy,
    "height": height,
    "choices": choices,
    "identity": identity,
    "tiny": batches.tiny,
    "many": batches.many,
    "workers": batches.workers,
    "resume": resume,
}
#: Part that is measured where it is asked for alone.
LONG = "many"


def main() -> int:
    """Measure what was asked for, show it, keep it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all but {LONG})")
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each command")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    if not DATA.is_dir():
        sys.exit(f"benchmark: {DATA} is missing; see benchmarks/README.md")
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts or (name for name in PARTS if name != LONG):
            for figure in PARTS[part](Path(folder), arguments.runs):
                figures.append(figure)
                verdict = "kept" if figure.kept else "MISSED"
                line = f"{figure.name:<52} {figure.value:8.2f} {figure.unit:<4} at most {figure.at_most:g}: {verdict}"
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
            _keep_results(figures, arguments.runs)  # what is measured is not lost where a later part fails
    return 0 if all(figure.kept for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
