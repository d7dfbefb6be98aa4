"""Slides that somebody has broken: a clear error or a right result, in bounded time and memory, and never a crash."""

from __future__ import annotations

import random
import select
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from standins import he_texture

from mupd_wsi.geometry import Region, Size
from mupd_wsi.writers import ImageSpec, open_writer

#: Seconds for one slide, on a machine that does other things as well.
PATIENCE_S = 60.0
KINDS = ("svs", "ndpi", "tif", "ome.tiff", "ome.zarr", "png")
#: 6 kinds of 55 mutations each; the quick set takes some of each.
MUTATIONS = 55
QUICK = 6


class Reader:
    """A process that reads slides; another one takes its place when it crashes or hangs."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, path: Path) -> str:
        """What :mod:`reader` says, or ``crash`` or ``hang``."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], PATIENCE_S)[0]:
            self.close()
            return "hang"
        answer = process.stdout.readline().strip()
        if not answer:
            code = process.wait()
            self.close()
            return f"crash {code}"
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, str(Path(__file__).with_name("reader.py"))]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        return self._process


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    one = Reader()
    yield one
    one.close()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Path]:
    """One good slide of each kind."""
    folder = tmp_path_factory.mktemp("seeds")
    found: dict[str, Path] = {}
    for kind, fixture in (("svs", "cmu_slide"), ("ndpi", "fluorescence_slide"), ("tif", "ihc_slide")):
        source: Path = request.getfixturevalue(fixture)
        found[kind] = Path(shutil.copy(source, folder / f"seed.{kind}"))
    for kind in ("ome.tiff", "ome.zarr"):
        spec = ImageSpec("seed", Size(700, 600), 0.5, (), (0.0, 0.0), {})
        writer = open_writer(folder / f"seed.{kind}", spec)
        rows = he_texture(600, 700).transpose(2, 0, 1)
        writer.write(Region(0, 0, 700, 600), np.ascontiguousarray(rows))
        found[kind] = writer.finish()
    Image.fromarray(he_texture(400, 500)).save(folder / "seed.png")
    return found | {"png": folder / "seed.png"}


def flip_bits(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 3, 30))):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def flip_bits_of_the_head(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 2, 8))):
        data[dice.randrange(min(len(data), 400))] = dice.randrange(256)


def flip_bits_of_the_tail(data: bytearray, dice: random.Random) -> None:
    """Where most TIFFs keep their tables."""
    for _ in range(dice.choice((1, 4, 16))):
        data[len(data) - 1 - dice.randrange(min(len(data), 6000))] = dice.randrange(256)


def write_extreme_numbers(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 4))):
        place = dice.choice((dice.randrange(len(data)), len(data) - dice.randrange(1, min(len(data), 4000))))
        number = dice.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0xFFFF))
        data[place : place + 4] = struct.pack("<I", number)[: len(data) - place]


def cut_off(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data)) :]


def zero_a_stretch(data: bytearray, dice: random.Random) -> None:
    start, length = dice.randrange(len(data)), dice.choice((16, 500, 20_000))
    stop = min(len(data), start + length)
    data[start:stop] = bytes(stop - start)


def move_a_stretch(data: bytearray, dice: random.Random) -> None:
    length = min(dice.choice((16, 300, 5000)), len(data) // 2)
    source, target = dice.randrange(len(data) - length), dice.randrange(len(data) - length)
    data[target : target + length] = data[source : source + length]


MUTATORS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip_bits,
    flip_bits_of_the_head,
    flip_bits_of_the_tail,
    write_extreme_numbers,
    cut_off,
    zero_a_stretch,
    move_a_stretch,
)


def mutated(seed: Path, target: Path, dice: random.Random) -> Path:
    """A broken copy: of a folder, one of its files is broken."""
    if seed.is_dir():
        shutil.copytree(seed, target)
        victim = dice.choice(sorted(path for path in target.rglob("*") if path.is_file()))
    else:
        victim = Path(shutil.copy(seed, target))
    data = bytearray(victim.read_bytes())
    dice.choice(MUTATORS)(data, dice)
    victim.chmod(0o644)
    victim.write_bytes(data)
    return target


def bad_answers(kind: str, numbers: range, seeds: dict[str, Path], reader: Reader, folder: Path) -> list[str]:
    right = reader.read(seeds[kind])
    assert right.startswith("ok ")
    bad, answers = [], Counter[str]()
    for number in numbers:
        path = mutated(seeds[kind], folder / f"{number}.{kind}", random.Random(f"{kind} {number}"))
        answer = reader.read(path)
        answers[answer.split()[0]] += 1
        if answer.split()[0] not in {"ok", "refused"}:
            bad.append(f"{kind} {number}: {answer}")
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert sum(answers.values()) == len(numbers)
    return bad


@pytest.mark.parametrize("kind", KINDS)
def test_some_broken_slides(kind: str, seeds: dict[str, Path], reader: Reader, tmp_path: Path) -> None:
    assert bad_answers(kind, range(QUICK), seeds, reader, tmp_path) == []


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_many_broken_slides(kind: str, seeds: dict[str, Path], reader: Reader, tmp_path: Path) -> None:
    assert bad_answers(kind, range(QUICK, QUICK + MUTATIONS), seeds, reader, tmp_path) == []


def test_a_broken_file_of_metadata_in_every_place(seeds: dict[str, Path], reader: Reader, tmp_path: Path) -> None:
    """Numbers in a Zarr's JSON replaced, one after the other."""
    text = (seeds["ome.zarr"] / "0" / "zarr.json").read_text()
    target = tmp_path / "a.ome.zarr"
    shutil.copytree(seeds["ome.zarr"], target)
    for number in ("-1", "0", "1e30", "99999999999", '"x"', "null"):
        for old in ("600", "700", "512", "1024"):
            (target / "0" / "zarr.json").write_text(text.replace(old, number, 1))
            answer = reader.read(target)
            assert answer.split()[0] in {"ok", "refused"}, f"{old} -> {number}: {answer}"
