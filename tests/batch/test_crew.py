"""Real worker processes with the shipped model."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doubles import make_slides
from standins import he_texture, save_slide

from mupd_wsi.batch.inputs import find_slides
from mupd_wsi.batch.naming import plan_tasks
from mupd_wsi.batch.running import BatchOptions, model_facts, run_batch
from mupd_wsi.batch.tasks import BatchProgress, SlideTask
from mupd_wsi.batch.work import seats
from mupd_wsi.pipeline import stain_slide
from mupd_wsi.request import StainOptions

OPTIONS = StainOptions(mpp=0.5, style="mif", tissue_mask=False)


def tasks_of(slides: Path, folder: Path) -> list[SlideTask]:
    entries = find_slides([str(slides)], [], pictures=True, outside=folder)
    return plan_tasks(entries, ["CD8"], model_facts("mupd-mini").panel, folder, OPTIONS)


@pytest.mark.faults
def test_two_processes_a_bad_slide_and_one_that_is_killed(tmp_path: Path) -> None:
    slides, out = make_slides(tmp_path / "in", ["a.png", "b.png", "c.png", "d.png"]), tmp_path / "out"
    (slides / "bad.png").write_bytes(b"no picture")
    killed: list[int] = []

    def kill_one(progress: BatchProgress) -> None:
        if progress.active and not killed:
            killed.extend(p.pid or 0 for p in multiprocessing.active_children()[:1])
            os.kill(killed[0], signal.SIGKILL)

    result = run_batch(tasks_of(slides, out), out, BatchOptions(jobs=2, retry=1), progress=kill_one)
    assert killed
    assert (result.done, [Path(f.slide).name for f in result.failed]) == (4, ["bad.png"])
    assert "SIGKILL" in (out / "batch.jsonl").read_text()
    assert multiprocessing.active_children() == []
    alone = stain_slide(slides / "c.png", "CD8", output=tmp_path / "c.ome.tiff", options=OPTIONS).output
    assert pixels(alone) == pixels(out / "c.CD8.ome.tiff")


def pixels(path: Path) -> bytes:
    import tifffile

    content: bytes = tifffile.imread(path).tobytes()
    return content


@pytest.mark.parametrize(
    ("devices", "jobs", "expected"), [(["cpu"], 1, 1), (["cpu"], 1000, None), (["cuda:0", "cuda:1"], 1, 2)]
)
def test_seats_share_the_cores_without_a_rest(devices: list[str], jobs: int, expected: int | None) -> None:
    cores = sorted(os.sched_getaffinity(0))
    found = seats("m", devices, jobs, None)
    assert len(found) == (len(cores) if expected is None else expected)
    if len(found) <= len(cores):
        assert sorted(core for seat in found for core in seat.cores) == cores
        assert all(seat.threads == len(seat.cores) for seat in found)
    assert [seat.device for seat in found][: len(devices)] == devices


def batch(here: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mupd_wsi", "batch", *map(str, arguments)]
    return subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_batch_leaves_no_process_and_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    slides = tmp_path / "in"
    slides.mkdir()
    save_slide(slides / "a.png", he_texture(2400, 2400))
    save_slide(slides / "b.png", he_texture(90, 90))
    arguments = ["in", "--target", "CD8", "-o", "out", "--mpp", "1.3", "--json"]
    process = batch(tmp_path, *arguments, "--no-tissue-mask")
    log = tmp_path / "out" / "batch.jsonl"
    while not (log.exists() and '"started"' in log.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    children = workers_of(process.pid)
    assert children
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "a worker outlives its batch"
        time.sleep(0.05)
    (slides / "a.png").unlink()
    again = batch(tmp_path, *arguments)
    values = json.loads(again.communicate(timeout=120)[0])
    assert (again.returncode, values["done"], values["ok"]) == (0, 1, True)


def workers_of(pid: int) -> list[str]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in listed if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_the_command_tells_who_failed(tmp_path: Path) -> None:
    make_slides(tmp_path / "in", ["a.png", "sub/a.png"])
    (tmp_path / "in" / "b.tif").write_bytes(b"II*\0 and no more")
    arguments = ["in", "--target", "CD8", "-o", "out", "--mpp", "0.5", "--jobs", "2"]
    first = batch(tmp_path, *arguments)
    shown, lines = first.communicate(timeout=120)
    assert first.returncode == 1
    assert "2 stained, 0 done before, 1 failed" in shown
    assert f"failed: {tmp_path / 'in' / 'b.tif'}: " in shown
    assert "slides 3/3, 1 failed" in lines
    with (tmp_path / "out" / "summary.csv").open(newline="") as stream:
        rows = {row["output"] or Path(row["slide"]).name: row for row in csv.DictReader(stream)}
    assert sorted(rows) == ["a.CD8.ome.tiff", "b.tif", "sub/a.CD8.ome.tiff"]
    assert rows["b.tif"]["reason"]
    status = subprocess.run(
        [sys.executable, "-m", "mupd_wsi", "status", "out", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    values = json.loads(status.stdout)
    assert status.returncode == 1
    assert values["counts"] == {"done": 2, "failed": 1, "unfinished": 0, "pending": 0}
    assert len(values["slides"]) == 3
