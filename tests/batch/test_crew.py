"""Real worker processes with the shipped model."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import doubles
import pytest
from doubles import FACTS, OnStandInDevice, make_slides
from standins import he_texture, save_slide

from mupd_wsi.batch import running
from mupd_wsi.batch.crew import MAX_FAILURES, crew_events
from mupd_wsi.batch.inputs import find_slides
from mupd_wsi.batch.naming import plan_tasks
from mupd_wsi.batch.running import BatchOptions, BatchResult, model_facts, run_batch
from mupd_wsi.batch.tasks import BatchProgress, SlideTask
from mupd_wsi.batch.work import seats
from mupd_wsi.pipeline import stain_slide
from mupd_wsi.request import StainOptions

OPTIONS = StainOptions(mpp=0.5, style="mif", tissue_mask=False)
#: An output in a folder of its own.
PART = "mine/b.ome.zarr"


def tasks_of(slides: Path, folder: Path) -> list[SlideTask]:
    entries = find_slides([str(slides)], [], pictures=True, outside=folder)
    return plan_tasks(entries, ["CD8"], model_facts("mupd-mini").panel, folder, OPTIONS)


@pytest.mark.faults
def test_two_processes_a_bad_slide_and_one_that_is_killed(tmp_path: Path) -> None:
    slides, out = make_slides(tmp_path / "in", ["a.png", "b.png", "c.png", "d.png"]), tmp_path / "out"
    (slides / "bad.png").write_bytes(b"no picture")
    killed: list[int] = []

    def kill_one(progress: BatchProgress) -> None:
        processes = multiprocessing.active_children()
        if processes and not killed and len(progress.active) == len(processes):  # an idle one's death costs nothing
            killed.append(processes[0].pid or 0)
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


class Devices:
    """A batch on stand-ins of two GPUs, and what these tell of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slides = make_slides(folder / "in", [f"{name}.png" for name in "abcdefgh"])
        self.out = folder / "out"

    def run(self, devices: list[str], **options: Any) -> BatchResult:
        places = seats(str(self.folder), devices, 1, 1)
        chosen = BatchOptions(devices=tuple(devices), **options)
        tasks = doubles.tasks_of(self.slides, self.out)
        return run_batch(tasks, self.out, chosen, events=lambda feed: crew_events(feed, places, OnStandInDevice))

    def told(self) -> dict[str, list[dict[str, Any]]]:
        lines = [json.loads(line) for line in (self.folder / "told.jsonl").read_text().splitlines()]
        return {device: [line for line in lines if line["device"] == device] for device in ("cuda:0", "cuda:1")}


@pytest.fixture
def on_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Devices:
    monkeypatch.setattr(running, "model_facts", lambda *_, **__: FACTS)
    return Devices(tmp_path)


def test_each_device_has_one_process_with_its_own_cores(on_devices: Devices) -> None:
    assert on_devices.run(["cuda:0", "cuda:1"]).done == 8
    told = on_devices.told()
    assert all(len({line["pid"] for line in lines}) == 1 for lines in told.values())
    assert sorted(line["key"] for lines in told.values() for line in lines) == [f"{n}.CD8.ome.tiff" for n in "abcdefgh"]
    first, second = (set(lines[0]["cores"]) for lines in told.values())
    assert not first & second or len(os.sched_getaffinity(0)) == 1


@pytest.mark.parametrize("how", ["error", pytest.param("death", marks=pytest.mark.faults)])
def test_a_device_that_fails_costs_a_few_attempts_and_is_left_out(how: str, on_devices: Devices) -> None:
    (on_devices.folder / "cuda:1").write_text(how)
    first = on_devices.run(["cuda:0", "cuda:1"])
    assert (first.done, len(first.failed)) == (8 - MAX_FAILURES, MAX_FAILURES)
    reasons = [failure.reason for failure in first.failed]
    assert all(("uncorrectable ECC" if how == "error" else "SIGKILL") in reason for reason in reasons)
    assert ["cuda:1 has failed" in reason for reason in reasons] == [False] * (MAX_FAILURES - 1) + [True]
    lines = on_devices.told()["cuda:1"]
    assert len({line["pid"] for line in lines}) == len(lines) == MAX_FAILURES  # a fresh process after each


@pytest.mark.faults
def test_what_a_broken_device_has_failed_is_tried_again_on_the_others(on_devices: Devices) -> None:
    (on_devices.folder / "cuda:1").write_text("error")
    assert on_devices.run(["cuda:0", "cuda:1"], retry=1).ok
    assert len(on_devices.told()["cuda:1"]) == MAX_FAILURES


def test_the_only_device_fails_and_every_slide_is_named(on_devices: Devices) -> None:
    (on_devices.folder / "cuda:0").write_text("error")
    for slide in sorted(on_devices.slides.iterdir())[2:]:
        slide.unlink()
    result = on_devices.run(["cuda:0"])
    assert (result.done, len(result.failed)) == (0, 2)
    assert all("ECC" in failure.reason and "left out" not in failure.reason for failure in result.failed)


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


def test_a_manifest_through_the_command(tmp_path: Path) -> None:
    make_slides(tmp_path / "in", ["a.png", "b.png"])
    listed = tmp_path / "in" / "slides.csv"
    listed.write_text('slide,target,mpp,roi,output\na.png,,,,\nb.png,"CD8,panCK",1.3,"8,8,40,30",mine/b.ome.zarr\n')
    done = batch(tmp_path, "--manifest", listed, "--target", "CD20", "--mpp", "0.65", "-o", "out", "--json")
    shown, lines = done.communicate(timeout=120)
    assert (done.returncode, json.loads(shown)["done"]) == (0, 2), lines
    whole, part = (json.loads((tmp_path / "out" / f"{n}.json").read_text()) for n in ("a.CD20.ome.tiff", PART))
    assert (whole["targets"], whole["slide"]["mpp"]["x"]) == (["CD20"], 0.65)
    assert (part["targets"], part["request"]["roi"]["width"]) == (["CD8a", "Pan-CK"], 40)
    assert (part["output"]["width"], part["output"]["height"]) == (40, 30)
    listed.write_text("slide,mpp\na.png,0\nb.png,many\n")
    refused = batch(tmp_path, "--manifest", listed, "--target", "CD20", "-o", "other")
    told = refused.communicate(timeout=120)[1]
    assert refused.returncode == 2
    assert re.fullmatch(r"[^\n]*slides\.csv[^\n]*line 3: mpp 'many'[^\n]*\n", told)
    assert not (tmp_path / "other").exists()
