"""``stain`` and ``validate`` as a user runs them, with the shipped model on a part of a real slide."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mupd_wsi.cli.app import run
from mupd_wsi.cli.stain import in_bytes

#: One tile of tissue on the CMU slide, level-0 pixels.
ROI = "600,900,500,400"


def run_here(
    arguments: list[str | Path], capsys: pytest.CaptureFixture[str], code: int = 0
) -> pytest.CaptureResult[str]:
    assert run([str(a) for a in arguments]) == code
    return capsys.readouterr()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_target_ends_with_where_the_outputs_lie(
    cmu_slide: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = run_here(["stain", cmu_slide, "--target", "CD8", "--roi", ROI], capsys)
    paths = dict(line.split(":", 1) for line in shown.out.splitlines())
    stem = "CMU-1-Small-Region.CD8"
    assert {name: path.strip() for name, path in paths.items()} == {
        "stained slide": str(here / f"{stem}.ome.tiff"),
        "preview": str(here / f"{stem}.preview.png"),
        "record": str(here / f"{stem}.ome.tiff.json"),
    }
    assert sorted(p.name for p in here.iterdir()) == sorted(Path(p.strip()).name for p in paths.values())
    assert "tiles 1/1" in shown.err
    assert "research use only" in shown.err

    refused = run_here(["stain", cmu_slide, "--target", "CD8", "--roi", ROI], capsys, 3)
    assert "--overwrite" in refused.err
    again = run_here(["stain", cmu_slide, "--target", "CD8", "--roi", ROI, "--overwrite", "-q"], capsys)
    assert all(line.startswith("mupd-wsi: warning: ") for line in again.err.splitlines())

    assert "right" in run_here(["validate", f"{stem}.ome.tiff"], capsys).out
    info = json.loads(run_here(["info", f"{stem}.ome.tiff", "--json"], capsys).out)
    assert info["mpp"]["x"] == pytest.approx(1.3)


def test_json_is_one_object_on_standard_output(cmu_slide: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["stain", cmu_slide, "--target", "CD3e,panCK", "--target", "DAPI", "--roi", ROI, "--json"]
    values = json.loads(run_here([*arguments, "-o", "three.ome.zarr"], capsys).out)
    assert Path(values["output"]) == here / "three.ome.zarr"
    assert Path(values["preview"]).is_file()
    assert json.loads(Path(values["record"]).read_text()) == values["details"]
    report = json.loads(run_here(["validate", "three.ome.zarr", "--json"], capsys).out)
    assert report["ok"]


def test_dry_run_writes_nothing(cmu_slide: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads(run_here(["stain", cmu_slide, "--target", "all", "--dry-run", "--json"], capsys).out)
    assert plan["style"] == "mif"
    assert len(plan["targets"]) == 18
    assert (plan["width"], plan["height"]) == (853, 1139)
    assert 0 < plan["tiles_to_run"] <= plan["tiles"] == 6
    assert plan["peak_memory_bytes"] > 0
    assert plan["seconds"] > 0
    text = run_here(["stain", cmu_slide, "--target", "CD8", "--dry-run"], capsys).out
    assert "nothing was written" in text
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("fixture", "options", "code", "expected"),
    [
        ("tcga_slide", [], 3, "--mpp"),
        ("wrong_mpp_slide", [], 3, "1000"),
        ("fluorescence_slide", ["--strict"], 3, "H&E"),
        ("cmu_slide", ["--roi", "5000,5000,10,10"], 3, "roi"),
        ("cmu_slide", ["--mpp", "99"], 3, "99"),
        ("cmu_slide", ["--target", "CD999"], 2, "CD8a"),
        ("cmu_slide", ["--target", "all", "--as", "ihc"], 2, "mif"),
        ("cmu_slide", ["--device", "toaster"], 2, "toaster"),
        ("cmu_slide", ["--model", "no-such-model"], 3, "mupd-mini"),
        ("cmu_slide", ["-o", "missing/out.ome.tiff"], 3, "missing"),
        ("cmu_slide", ["-o", "out.png"], 2, ".ome.tiff"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(
    fixture: str,
    options: list[str],
    code: int,
    expected: str,
    here: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slide = request.getfixturevalue(fixture)
    shown = run_here(["stain", slide, "--target", "CD8", *options], capsys, code)
    assert shown.out == ""
    assert shown.err.startswith("mupd-wsi: error: ")
    assert shown.err.count("\n") == 1
    assert expected.lower() in shown.err.lower()
    assert list(here.iterdir()) == []


@pytest.mark.usefixtures("here")
def test_a_slide_that_does_not_look_like_h_and_e_is_warned_of(
    fluorescence_slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = run_here(["stain", fluorescence_slide, "--target", "CD8", "--roi", "0,0,400,400", "-q"], capsys)
    assert "mupd-wsi: warning: " in shown.err
    assert "H&E" in shown.err


def test_ctrl_c_leaves_nothing(cmu_slide: Path, here: Path) -> None:
    command = [sys.executable, "-m", "mupd_wsi", "stain", str(cmu_slide), "--target", "all", "--readout", "sample"]
    process = subprocess.Popen([*command, "--steps", "50", "-v"], cwd=here, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while not list(here.iterdir()) and process.poll() is None:
        time.sleep(0.05)  # until the writer has begun its temporary file
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert [p.name for p in here.iterdir() if not p.name.startswith(".")] == []


@pytest.mark.faults
def test_a_second_run_leaves_and_a_stopped_one_goes_on(cmu_slide: Path, here: Path) -> None:
    command = [sys.executable, "-m", "mupd_wsi", "stain", str(cmu_slide), "--target", "all", "-o", "o.ome.tiff"]
    command += ["--batch-size", "1"]
    process = subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE, text=True)
    log = here / ".o.mupd-part" / "tiles.log"
    while process.poll() is None and not (log.exists() and log.stat().st_size > 10_000):
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)  # it must not end before the second one has looked
    second = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert second.returncode == 3
    shown = f"mupd-wsi: error: another process is already working on o.ome.tiff (process {process.pid} on "
    assert second.stderr.startswith(shown)
    assert second.stderr.count("\n") == 1
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "mupd-wsi: stopped; the same command goes on where it was" in said
    assert [path.name for path in here.iterdir()] == [".o.mupd-part"]
    done = subprocess.run([*command, "--json"], cwd=here, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["details"]["tiles"]["resumed"] > 0


def test_validate_says_what_is_wrong(cmu_slide: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "error" in run_here(["validate", cmu_slide], capsys, 1).out
    (here / "text.ome.tiff").write_bytes(b"no slide at all")
    assert "not right" in run_here(["validate", "text.ome.tiff"], capsys, 1).out
    assert run_here(["validate", "missing.ome.tiff"], capsys, 3).err.count("\n") == 1


@pytest.mark.parametrize(("count", "text"), [(0, "0 MiB"), (5 * 2**20, "5 MiB"), (3 * 2**29, "1.5 GiB")])
def test_in_bytes(count: int, text: str) -> None:
    assert in_bytes(count) == text
