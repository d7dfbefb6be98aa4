"""Runs a command and takes the operating system's own account of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """What one run of a command took.

    Attributes:
        wall_s: from start to exit.
        cpu_s: user and system time of the process and its children.
        peak_bytes: largest resident set of the process.
        output: its standard output.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    output: str


def measured_run(command: Sequence[str]) -> MeasuredRun:
    """Run a command to its end.

    Raises:
        SystemExit: it failed; its standard error has been shown.
    """
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"benchmark: {' '.join(command)} failed with exit code {process.returncode}")
    kilobytes = usage.ru_maxrss // 1024 if sys.platform == "darwin" else usage.ru_maxrss
    return MeasuredRun(wall, usage.ru_utime + usage.ru_stime, kilobytes * 1024, output)
