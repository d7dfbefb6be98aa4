"""``kill -9`` at any moment: the same run goes on, does nothing twice, and gives the same pixels."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Final

import killable as killable_module
import numpy as np
import pytest
from killable import STAGES, stain
from standins import StandInStainer, he_texture, levels_of, save_slide

from mupd_wsi.errors import OutputError
from mupd_wsi.validation import validate_slide

SCRIPT = Path(__file__).with_name("killable.py")
SIZE = (1100, 1400)
TILES = 6 * 8
WORK = ".o.mupd-part"
#: Of a tile in the log, at most: 192 px, three channels.
RECORD_BYTES: Final = 192 * 192 * 3 + 1000
#: Twenty kills, those of the quick set, and those of runs that write OME-Zarr.
KILLS: Final = [(stage, number) for stage in STAGES for number in range(3)][:-1]
QUICK: Final = [("keeping", 1), ("pyramid", 0), ("rename", 2)]
ZARR: Final = [(stage, 0) for stage in STAGES if stage not in {"reading", "staining"}]


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mupd_wsi.pipeline.save_preview", killable_module.no_picture)


def killable(folder: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(folder), name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


class Whole:
    """An uninterrupted run, and how often each stage is called in one."""

    def __init__(self, folder: Path, name: str) -> None:
        save_slide(folder / "s.png", he_texture(*SIZE))
        done = killable(folder, name, "count", 0, "after")
        assert done.returncode == 0, done.stderr
        self.calls: dict[str, int] = json.loads(done.stdout)
        self.pixels = levels_of(folder / name)
        assert len(self.pixels) > 1


@pytest.fixture(scope="module")
def whole_tiff(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"), "o.ome.tiff")


@pytest.fixture(scope="module")
def whole_zarr(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"), "o.ome.zarr")


def killed_and_taken_up(whole: Whole, folder: Path, name: str, stage: str, number: int) -> None:
    dice = random.Random(f"{stage} {number} {name}")
    save_slide(folder / "s.png", he_texture(*SIZE))
    at, when = dice.randrange(whole.calls[stage]), dice.choice(["before", "after"])
    dead = killable(folder, name, stage, at, when)
    assert dead.returncode == -signal.SIGKILL, f"{stage} {at} {when}: {dead.stderr}"
    left = {path.name for path in folder.iterdir()}
    assert left <= {"s.png", WORK, "o.preview.png", f"{name}.json", name}, f"{stage} {at} {when}"
    if name in left:  # it appears last, and whole
        assert validate_slide(folder / name).ok
    log = folder / WORK / "tiles.log"
    kept = log.stat().st_size if log.exists() else 0
    stainer = StandInStainer(tile=256, halo=32)
    try:
        result = stain(folder, name, stainer)
    except OutputError as error:
        assert "--overwrite" in str(error), "the kill came when all was done"  # noqa: PT017
        assert {name, "o.preview.png", f"{name}.json"} <= left
    else:
        resumed = result.details["tiles"]["resumed"]
        assert len(stainer.own_origins) == TILES - resumed
        assert resumed >= kept // RECORD_BYTES - 1
        assert not (folder / WORK).exists()
    found = levels_of(folder / name)
    assert all(np.array_equal(a, b) for a, b in zip(found, whole.pixels, strict=True)), f"{stage} {at} {when}"
    assert validate_slide(folder / name).ok


@pytest.mark.parametrize(("stage", "number"), QUICK)
def test_a_killed_run_goes_on(stage: str, number: int, whole_tiff: Whole, tmp_path: Path) -> None:
    killed_and_taken_up(whole_tiff, tmp_path, "o.ome.tiff", stage, number)


@pytest.mark.faults
@pytest.mark.parametrize(("stage", "number"), [kill for kill in KILLS if kill not in QUICK])
def test_a_killed_run_goes_on_at_more_moments(stage: str, number: int, whole_tiff: Whole, tmp_path: Path) -> None:
    killed_and_taken_up(whole_tiff, tmp_path, "o.ome.tiff", stage, number)


@pytest.mark.faults
@pytest.mark.parametrize(("stage", "number"), ZARR)
def test_a_killed_run_into_zarr_goes_on(stage: str, number: int, whole_zarr: Whole, tmp_path: Path) -> None:
    killed_and_taken_up(whole_zarr, tmp_path, "o.ome.zarr", stage, number)


@pytest.mark.faults
def test_killed_from_outside_again_and_again(whole_tiff: Whole, tmp_path: Path) -> None:
    """At random times, whatever the run is doing; each run goes further than the one before or begins where it was."""
    save_slide(tmp_path / "s.png", he_texture(*SIZE))
    dice = random.Random(0)
    command = [sys.executable, str(SCRIPT), str(tmp_path), "o.ome.tiff", "count", "0", "after"]
    log, sizes = tmp_path / WORK / "tiles.log", [0]
    for _ in range(8):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not log.exists():
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.4))
        process.kill()
        process.communicate()
        if (tmp_path / "o.ome.tiff").exists():
            break
        sizes.append(log.stat().st_size)
    assert all(after > before - RECORD_BYTES for before, after in pairwise(sizes))
    if not (tmp_path / "o.ome.tiff").exists():
        stain(tmp_path, "o.ome.tiff")
    found = levels_of(tmp_path / "o.ome.tiff")
    assert all(np.array_equal(a, b) for a, b in zip(found, whole_tiff.pixels, strict=True))


@pytest.mark.faults
def test_the_real_model_goes_on_after_a_kill(cmu_slide: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mupd_wsi", "stain", str(cmu_slide), "--target", "CD8", "--batch-size", "1"]
    whole = subprocess.run([*command, "-o", "whole.ome.tiff"], cwd=tmp_path, capture_output=True, check=False)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen([*command, "-o", "o.ome.tiff"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    log = tmp_path / WORK / "tiles.log"
    while process.poll() is None and not (log.exists() and log.stat().st_size > 10_000):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert log.exists()
    done = subprocess.run([*command, "-o", "o.ome.tiff", "--json"], cwd=tmp_path, capture_output=True, check=True)
    tiles = json.loads(done.stdout)["details"]["tiles"]
    assert 0 < tiles["resumed"] <= tiles["stained"] == 6
    same = zip(levels_of(tmp_path / "o.ome.tiff"), levels_of(tmp_path / "whole.ome.tiff"), strict=True)
    assert all(np.array_equal(a, b) for a, b in same)
    assert not (tmp_path / WORK).exists()
