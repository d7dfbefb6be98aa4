"""The job script: read by bash and shellcheck, run as plain processes, and run by a real SLURM where there is one."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from doubles import make_slides
from standins import he_texture, levels_of, save_slide

from mupd_wsi.batch.ledger import read_states
from mupd_wsi.batch.slurm import ArrayJob, array_script
from mupd_wsi.cli.app import run
from mupd_wsi.errors import UsageError
from mupd_wsi.pipeline import stain_slide
from mupd_wsi.request import StainOptions

SLURM = [shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("slurmctld", "slurmd", "munged")]
#: What the big slide takes long enough for: to be stopped in the middle.
SLOW = ["--mpp", "1.3", "--no-tissue-mask"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where the script finds this mupd-wsi, and an scontrol that only notes what it is asked for."""
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "scontrol"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    tool.chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path}


def script(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> Path:
    arguments = ["slurm", "--inputs", str(folder / "in"), "--target", "CD8", "-o", str(folder / "out")]
    assert run([*arguments, "--array", "2", "--cpus", "1", "--mem", "0", "--time", "10", *options]) == 0
    (folder / "job.sh").write_text(capsys.readouterr().out)
    return folder / "job.sh"


@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_bash_and_shellcheck_have_nothing_to_say(gpus: int, tmp_path: Path) -> None:
    job = ArrayJob(array=16, gpus=gpus, time="2-12:00:00")
    text = array_script(job, ["it's a folder/*.svs", "--target", "CD8", "-o", "a b;c"], "a b;c")
    path = tmp_path / "job.sh"
    path.write_text(text)
    assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""
    assert ("--devices cuda:0,cuda:1,cuda:2,cuda:3" in text) is (gpus == 4)
    assert ("#SBATCH --gpus=" in text) is (gpus > 0)
    assert "#SBATCH --array=1-16\n" in text
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", path], capture_output=True, text=True).stdout == ""


@pytest.mark.parametrize("wrong", [{"time": "soon"}, {"mem": "much"}, {"array": 0}, {"time": "1:2:3:4"}])
def test_what_slurm_does_not_know_is_refused(wrong: dict[str, str | int]) -> None:
    with pytest.raises(UsageError):
        ArrayJob(**({"array": 2} | wrong))  # type: ignore[arg-type]


def test_wrong_options_of_batch_are_refused_when_the_script_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["slurm", "--inputs", "x", "--target", "CD8", "--array", "2"]
    assert run([*base, "--frobnicate"]) == 2
    assert "--frobnicate" in capsys.readouterr().err
    assert run([*base, "--seed", "x"]) == 2


def test_the_tasks_share_the_slides(
    tmp_path: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    make_slides(tmp_path / "in", ["a.png", "b.png", "c.png"])
    job = script(tmp_path, capsys, "--mpp", "0.5")
    for number in ("1", "2"):
        done = subprocess.run(
            ["bash", job], env=environment | {"SLURM_ARRAY_TASK_ID": number}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert [s.state for s in read_states(tmp_path / "out")] == ["done"] * 3
    assert sorted(p.name for p in (tmp_path / "out").glob("*.jsonl")) == ["batch.1-of-2.jsonl", "batch.2-of-2.jsonl"]
    assert (tmp_path / "out" / "summary.csv").read_text().count(",done,") == 3
    assert not (tmp_path / "asked").exists()


@pytest.mark.faults
def test_usr1_stops_the_task_and_has_it_requeued(
    tmp_path: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    save_slide(tmp_path / "in" / "a.png", he_texture(2400, 2400))
    job = script(tmp_path, capsys, *SLOW)
    ids = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "77"}
    task = subprocess.Popen(["bash", job], env=environment | ids, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: states(tmp_path) == ["unfinished"])
    task.send_signal(signal.SIGUSR1)
    task.communicate(timeout=60)
    assert (tmp_path / "asked").read_text() == "requeue 77_1\n"
    assert states(tmp_path) == ["unfinished"]
    assert list((tmp_path / "out").glob("*.ome.tiff")) == []


def states(folder: Path) -> list[str]:
    logs = list((folder / "out").glob("*.jsonl")) if (folder / "out").exists() else []
    return [state.state for state in read_states(folder / "out")] if logs else []


def wait_until(condition: Callable[[], bool], told: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, f"it never came: {told()}"
        time.sleep(0.2)


CONF = """
ClusterName=mupd
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A SLURM of one node with two cores; yields the environment that its commands need."""
    if None in SLURM:
        pytest.skip("no SLURM here (Debian: slurm-wlm, munge)")
    folder = tmp_path / "slurm"
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True, mode=0o700)
    (folder / "munge" / "key").write_bytes(os.urandom(1024))
    (folder / "munge" / "key").chmod(0o600)
    ports = dict(zip(("control", "node"), free_ports(), strict=True))
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, user=getpass.getuser(), **ports))
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    control, node, munge = (str(tool) for tool in SLURM)
    names = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "pid", "log", "seed")]
    started = []
    try:
        for command in (
            [munge, "--foreground", "--force", f"--socket={folder}/munge/socket", *names],
            [control, "-D", "-L", str(folder / "control.log")],
            [node, "-D", "-N", "localhost", "-L", str(folder / "node.log")],
        ):
            log = (folder / f"{Path(command[0]).name}.out").open("wb")
            with log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(1)
        if any(process.poll() is not None for process in started):
            pytest.skip("SLURM does not start here: " + " ".join(p.read_text() for p in folder.glob("*.out")))
        wait_until(lambda: "idle" in asked(environment, "sinfo", "-h", "-o", "%T"))
        yield environment
        asked(environment, "scancel", "--user", getpass.getuser())
        wait_until(lambda: asked(environment, "squeue", "-h") == "")
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as two:
        for s in (one, two):
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in (one, two)]


def asked(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.faults
def test_a_real_slurm_runs_stops_and_requeues_the_tasks(
    tmp_path: Path, cluster: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    make_slides(tmp_path / "in", ["b.png", "c.png"])
    save_slide(tmp_path / "in" / "a.png", he_texture(1200, 1200))
    job = script(tmp_path, capsys, *SLOW)
    number = asked(cluster, "sbatch", "--parsable", f"--chdir={tmp_path}", str(job)).strip()
    wait_until(lambda: states(tmp_path).count("unfinished") >= 1 and "a.png" in at_work(tmp_path))
    asked(cluster, "scancel", "--signal=USR1", "--batch", f"{number}_1")  # as SLURM itself does before the time limit
    wait_until(lambda: f"{number}_1 PENDING" in asked(cluster, "squeue", "-h", "-o", "%i %T"))
    (tmp_path / "in" / "a.png").unlink()
    make_slides(tmp_path / "in", ["a.png"])  # that the rest be quick
    asked(cluster, "scontrol", "update", f"JobId={number}_1", "StartTime=now")  # SLURM would wait for two minutes
    wait_until(lambda: asked(cluster, "squeue", "-h") == "")
    assert states(tmp_path) == ["done"] * 3
    assert "out of time" in (tmp_path / f"mupd-wsi-{number}_1.txt").read_text()


@pytest.mark.faults
def test_one_slide_on_workers_that_a_real_slurm_starts(tmp_path: Path, cluster: dict[str, str]) -> None:
    """By way of dask-jobqueue: the workers are a SLURM job, which is over when the slide is done."""
    slide = save_slide(tmp_path / "s.png", he_texture(1700, 280))
    (tmp_path / "c.yaml").write_text(
        f"engine: slurm\njobs: 1\ncores: 2\nmemory: 4GB\nwalltime: '00:10:00'\nlog_directory: {tmp_path}\n"
        f"job_directives_skip: ['--mem']\njob_script_prologue: ['cd {tmp_path}']\n"
    )
    words = ["stain", str(slide), "--target", "CD8", *SLOW]
    command = [sys.executable, "-m", "mupd_wsi", *words]
    done = subprocess.run(
        [*command, "--cluster", "c.yaml", "-o", "a.ome.zarr", "--json"],
        env=cluster,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["details"]["cluster"]["threads"] >= 1
    wait_until(lambda: asked(cluster, "squeue", "-h") == "")
    alone = stain_slide(slide, "CD8", output=tmp_path / "b.ome.zarr", options=StainOptions(mpp=1.3, tissue_mask=False))
    for one, other in zip(levels_of(tmp_path / "a.ome.zarr"), levels_of(alone.output), strict=True):
        assert np.array_equal(one, other)


def at_work(folder: Path) -> str:
    return " ".join(s.slide for s in read_states(folder / "out") if s.state == "unfinished")
