from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mupd_wsi.engine import lock
from mupd_wsi.engine.lock import locked
from mupd_wsi.errors import OutputError

HOLDER = """
import sys, time
from pathlib import Path
from mupd_wsi.engine.lock import locked
with locked(Path(sys.argv[1]), Path("o.ome.tiff"), lambda: None):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def take(folder: Path) -> None:
    with locked(folder, Path("o.ome.tiff"), lambda: None):
        assert (folder / "owner.json").is_file()


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    take(tmp_path / "work")
    take(tmp_path / "work")
    assert list(tmp_path.iterdir()) == []


def test_it_leaves_what_others_put_there(tmp_path: Path) -> None:
    with locked(tmp_path / "work", Path("o"), lambda: None):
        (tmp_path / "work" / "tiles.log").touch()
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"lock", "tiles.log"}


def test_two_in_one_process(tmp_path: Path) -> None:
    with locked(tmp_path / "work", Path("o"), lambda: None), pytest.raises(OutputError, match="already working"):
        take(tmp_path / "work")
    take(tmp_path / "work")


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    process = hold(tmp_path / "work")
    with pytest.raises(OutputError, match=rf"already working on o\.ome\.tiff \(process {process.pid} on "):
        take(tmp_path / "work")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    take(tmp_path / "work")
    assert list(tmp_path.iterdir()) == []


def test_of_many_at_once_one_works(tmp_path: Path) -> None:
    inside, worked, refused = [], [], []

    def run() -> None:
        try:
            with locked(tmp_path / "work", Path("o"), lambda: None):
                inside.append(1)
                worked.append(len(inside))
                time.sleep(0.002)
                inside.pop()
        except OutputError:
            refused.append(1)

    for _ in range(10):
        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(worked) + len(refused) == 60
    assert set(worked) == {1}
    assert list(tmp_path.iterdir()) == []


def other_host(folder: Path) -> Path:
    """What a holder on a host that flock does not reach leaves to be seen."""
    folder.mkdir()
    owner = folder / "owner.json"
    owner.write_text(json.dumps({"host": "elsewhere", "pid": 7, "word": "w"}), encoding="utf-8")
    return owner


def test_a_living_holder_on_another_host_is_seen_by_its_signs_of_life(tmp_path: Path) -> None:
    owner, stop = other_host(tmp_path / "work"), threading.Event()

    def beat() -> None:
        tick = 0
        while not stop.wait(0.05):
            tick += 1
            os.utime(owner, (tick, tick))  # a clock that is decades off

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(OutputError, match="process 7 on elsewhere"):
        take(tmp_path / "work")
    stop.set()
    thread.join()


def test_a_dead_holder_on_another_host_is_waited_for_and_then_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE_S", 0.3)
    other_host(tmp_path / "work")
    take(tmp_path / "work")
    assert list(tmp_path.iterdir()) == []


def test_one_that_slept_too_long_notices(tmp_path: Path) -> None:
    with locked(tmp_path / "work", Path("o"), lambda: None) as ownership:
        ownership.beat()
        ownership.require()
        (tmp_path / "work" / "owner.json").write_text(json.dumps({"host": "elsewhere", "pid": 7, "word": "w"}))
        ownership.beat()
        with pytest.raises(OutputError, match="taken over"):
            ownership.require()
    assert (tmp_path / "work" / "owner.json").exists()


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_or_file_in_the_way_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    if kind == "link":
        (tmp_path / "work").symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / "work").touch()
    with pytest.raises(OutputError, match="in the way"):
        take(tmp_path / "work")
    assert list((tmp_path / "elsewhere").iterdir()) == []
