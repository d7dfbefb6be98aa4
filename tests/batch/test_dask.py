"""Real Dask clusters: one of local processes, and one whose scheduler and workers are started by their own commands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from doubles import make_slides
from standins import he_texture, save_slide

from mupd_wsi.batch.cluster import opened_client, read_cluster_file, thread_count
from mupd_wsi.cli.app import run
from mupd_wsi.errors import UsageError
from mupd_wsi.pipeline import stain_slide
from mupd_wsi.request import StainOptions

DASK = str(Path(sys.executable).parent / "dask")
#: One tile below the other: several bands.
OPTIONS = StainOptions(mpp=1.3, style="mif", tissue_mask=False)
ARGUMENTS = ["--target", "CD8,Hoechst", "--mpp", "1.3", "--as", "mif", "--no-tissue-mask"]


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A slide, and how one process stains it."""
    folder = tmp_path_factory.mktemp("tall")
    slide = save_slide(folder / "tall.png", he_texture(1700, 280))
    result = stain_slide(slide, "CD8,Hoechst", output=folder / "alone.ome.zarr", options=OPTIONS)
    return slide, level_0(result.output)


def level_0(path: Path) -> np.ndarray:
    return np.asarray(zarr.open_group(path, mode="r")["0"][:])  # type: ignore[index]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "mupd_wsi", *map(str, arguments)]


@pytest.mark.faults
def test_one_slide_on_local_processes(tall: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    slide, alone = tall
    out = tmp_path / "out.ome.zarr"
    done = subprocess.run(
        command("stain", slide, *ARGUMENTS, "--cluster", "local", "-o", out), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"tiles (\d+)/\1,", done.stderr)
    assert np.array_equal(level_0(out), alone)
    assert json.loads((tmp_path / "out.ome.zarr.json").read_text())["cluster"]["threads"] >= 1


class Loopback:
    """A scheduler and two workers of one thread, without the nannies that would replace a dead one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self.address = self._said("scheduler", r"Scheduler at:\s+(tcp://\S+)")
        one = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0")
        self.workers = [self._start("worker", self.address, *one, "--name", name) for name in ("a", "b")]

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{arguments[0]}.log").open("ab") as log:
            return subprocess.Popen([DASK, *arguments], cwd=self._folder, stdout=log, stderr=log)

    def _said(self, name: str, pattern: str) -> str:
        deadline = time.monotonic() + 120
        while (found := re.search(pattern, (self._folder / f"{name}.log").read_text())) is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return found.group(1)

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[Loopback]:
    (tmp_path / "dask").mkdir()
    cluster = Loopback(tmp_path / "dask")
    yield cluster
    cluster.stop()


@pytest.mark.faults
def test_a_worker_that_is_killed_costs_its_band_only(
    tall: tuple[Path, np.ndarray], loopback: Loopback, tmp_path: Path
) -> None:
    slide, alone = tall
    out = tmp_path / "out.ome.zarr"
    process = subprocess.Popen(
        command("stain", slide, *ARGUMENTS, "--cluster", loopback.address, "-o", out, "-q"),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob(".out.mupd-part/bands-*/0/c/0/*/0")):  # until the first rows are written
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    loopback.workers[0].send_signal(signal.SIGKILL)
    _, shown = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    assert np.array_equal(level_0(out), alone)


@pytest.mark.faults
def test_a_client_that_is_killed_goes_on(tall: tuple[Path, np.ndarray], loopback: Loopback, tmp_path: Path) -> None:
    slide, alone = tall
    out = tmp_path / "out.ome.zarr"
    run_it = command("stain", slide, *ARGUMENTS, "--cluster", loopback.address, "-o", out)
    process = subprocess.Popen([*run_it, "-q"], stderr=subprocess.DEVNULL)
    log = tmp_path / ".out.mupd-part" / "tiles.log"
    while not (log.exists() and b'"band"' in log.read_bytes()):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = subprocess.run([*run_it, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["details"]["tiles"]["resumed"] > 0
    assert np.array_equal(level_0(out), alone)
    assert not (tmp_path / ".out.mupd-part").exists()


@pytest.mark.faults
def test_a_batch_on_a_running_cluster(loopback: Loopback, tmp_path: Path) -> None:
    make_slides(tmp_path / "in", ["a.png", "b.png", "c.png"])
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    done = subprocess.run(
        command("batch", tmp_path / "in", *ARGUMENTS, "--cluster", loopback.address, "-o", tmp_path / "out", "--json"),
        capture_output=True,
        text=True,
    )
    values = json.loads(done.stdout)
    assert (done.returncode, values["done"], values["left"]) == (1, 3, 0), done.stderr
    assert [Path(failure["slide"]).name for failure in values["failed"]] == ["bad.png"]


#: In place of a batch system's own command: runs the script, which comes as a file or on standard input, at once.
SUBMIT = """#!/bin/sh
for script; do :; done
[ -f "$script" ] && cp "$script" {folder}/job.sh || cat > {folder}/job.sh
setsid bash {folder}/job.sh > {folder}/job.txt 2>&1 &
echo "Submitted batch job <$!>"
"""
CANCEL = """#!/bin/sh
for number; do :; done
echo "$number" >> {folder}/cancelled
kill -- "-$number"
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    ("engine", "submit", "cancel", "wanted"),
    [
        ("slurm", "sbatch", "scancel", "#SBATCH -p gpu"),
        ("pbs", "qsub", "qdel", "#PBS -q gpu"),
        ("sge", "qsub", "qdel", "#$ -q gpu"),
        ("lsf", "bsub", "bkill", "#BSUB -q gpu"),
    ],
)
def test_a_batch_system_is_asked_for_workers_and_they_are_given_back(
    engine: str, submit: str, cancel: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in ((submit, SUBMIT), (cancel, CANCEL)):
        (tmp_path / name).write_text(text.format(folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    asked = {"engine": engine, "jobs": 1, "cores": 1, "memory": "2GB", "queue": "gpu", "walltime": "00:10"}
    asked |= {"log_directory": str(tmp_path)} | ({"lsf_units": "mb", "use_stdin": True} if engine == "lsf" else {})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(asked))
    with opened_client(str(tmp_path / "c.yaml")) as client:
        assert thread_count(client) == 1
        worker = client.submit(os.getpid).result(timeout=60)
        assert worker != os.getpid()
    assert wanted in (tmp_path / "job.sh").read_text()
    assert (tmp_path / "cancelled").exists()


def test_no_cluster_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], cmu_slide: Path) -> None:
    (tmp_path / "c.yaml").write_text("engine: fortran\n")
    for where, code, expected in ((tmp_path / "c.yaml", 2, "slurm, pbs"), (tmp_path / "none.yaml", 2, "none.yaml")):
        assert run(["stain", str(cmu_slide), "--target", "CD8", "--cluster", str(where)]) == code
        shown = capsys.readouterr().err
        assert expected in shown
        assert shown.count("\n") == 1


def test_a_cluster_file_becomes_a_job(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("engine: slurm\njobs: 3\ncores: 8\nmemory: 32GB\nqueue: gpu\nwalltime: '04:00:00'\n")
    engine, jobs, rest = read_cluster_file(path)
    assert (engine, jobs) == ("slurm", 3)
    assert rest == {"cores": 8, "memory": "32GB", "queue": "gpu", "walltime": "04:00:00"}
    path.write_text("engine: slurm\njobs: many\n")
    with pytest.raises(UsageError, match="many"):
        read_cluster_file(path)
