"""Runs a command and takes the operating system's own account of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """What one run of a command took.

    Attributes:
        wall_s: from start to exit.
        cpu_s: user and system time of the process and its children.
        peak_bytes: largest resident set of the process.
        scratch_bytes: the most that it had on disk in the watched folder.
        output: its standard output.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    output: str
    scratch_bytes: int = 0


def measured_run(
    command: Sequence[str], watched: Path | None = None, look: Callable[[], bool] | None = None
) -> MeasuredRun:
    """Run a command to its end.

    Args:
        command: its words.
        watched: folder whose size on disk is looked at while it runs, twice a second.
        look: called ten times a second while it runs; where it says False the command is killed, as a power cut would.

    Raises:
        SystemExit: it failed; its standard error has been shown.
    """
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    start = time.perf_counter()
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    with _Watch(watched) as watch, running as process:
        assert process.stdout is not None
        killed = look is not None and _kill_when_told(process, look)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode and not killed:
        sys.exit(f"benchmark: {' '.join(command)} failed with exit code {process.returncode}")
    kilobytes = usage.ru_maxrss // 1024 if sys.platform == "darwin" else usage.ru_maxrss
    return MeasuredRun(wall, usage.ru_utime + usage.ru_stime, kilobytes * 1024, output, watch.largest)


def _kill_when_told(process: subprocess.Popen[str], look: Callable[[], bool]) -> bool:
    """Look until the process has ended, which leaves its account to be taken; whether it was killed."""
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if not look():
            process.kill()
            return True
        time.sleep(0.1)
    return False


class _Watch:
    """Looks at a folder's size on disk until it is told to stop."""

    def __init__(self, folder: Path | None) -> None:
        self.largest = 0
        self._folder, self._stop, self._thread = folder, Event(), Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while self._folder is not None and not self._stop.wait(0.5):
            self.largest = max(self.largest, sum(_blocks(path) for path in self._folder.rglob("*")))


def _blocks(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:  # gone since it was listed
        return 0
