"""The README's code runs, and its commands print what it shows (numbers and versions aside)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
#: What differs from machine to machine; the last one: the bar's lines, of which a slow machine prints more.
DIFFERING = (
    (re.compile(r"\d+(?:[.:]\d+)*"), "N"),
    (re.compile(r"N [MG]iB"), "N iB"),
    (re.compile(r"(?:^tiles N/N, N tiles/s, ETA [N?]\n)+", re.M), "tiles N/N\n"),
)


@dataclass(frozen=True)
class Command:
    line: str
    shown: str


def commands() -> list[Command]:
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", README, flags=re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            line, _, shown = part.partition("\n")
            found.append(Command(line, shown))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cmu_slide: Path) -> Path:
    place = tmp_path_factory.mktemp("readme")
    (place / "sample_data").mkdir()
    shutil.copy(cmu_slide, place / "sample_data" / "CMU-1-Small-Region.svs")
    return place


def in_shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        env=os.environ | {"PATH": path, "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def same_everywhere(text: str) -> str:
    for pattern, replacement in DIFFERING:
        text = pattern.sub(replacement, text)
    return text


def test_the_tour_runs_and_prints_what_it_shows(folder: Path) -> None:
    assert commands()
    for command in commands():
        done = in_shell(command.line, folder)
        assert done.returncode == 0, f"{command.line}\n{done.stdout}"
        shown, printed = same_everywhere(command.shown), same_everywhere(done.stdout.replace(str(folder), "/home/me"))
        assert shown == printed, f"$ {command.line}"


def test_the_python_blocks_run(folder: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
    assert blocks
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stderr
