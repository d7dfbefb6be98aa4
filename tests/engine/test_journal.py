from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mupd_wsi.engine.journal import Core, Journal
from mupd_wsi.errors import OutputError
from mupd_wsi.layout import as_planes, lies_by_pixel

KEY = bytes(range(32))
SHAPE = (3, 20, 30)


def core(index: int) -> Core:
    pixels = np.random.default_rng(index).integers(0, 256, SHAPE, np.uint8)
    return Core(index, pixels, index / 7, on_damage=index % 2 == 1)


def written(path: Path, count: int) -> list[Core]:
    journal, cores = Journal(path, KEY), [core(i) for i in range(count)]
    for one in cores:
        journal.keep(one)
    journal.close()
    return cores


def same(one: Core, other: Core) -> bool:
    rest = (one.index, one.positivity, one.on_damage) == (other.index, other.positivity, other.on_damage)
    return rest and np.array_equal(one.pixels, other.pixels)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    cores = written(tmp_path / "log", 5)
    journal = Journal(tmp_path / "log", KEY)
    assert journal.indices() == {0, 1, 2, 3, 4}
    assert all(same(journal.replay(SHAPE, one.index), one) for one in cores)
    journal.close()


def test_what_lies_pixel_by_pixel_comes_back_so(tmp_path: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    journal = Journal(tmp_path / "log", KEY)
    journal.keep(Core(4, as_planes(picture), 1.0))
    journal.keep(core(5))
    journal.close()
    journal = Journal(tmp_path / "log", KEY)
    found, plain = journal.replay(SHAPE, 4).pixels, journal.replay(SHAPE, 5).pixels
    journal.close()
    assert lies_by_pixel(found)
    assert not lies_by_pixel(plain)
    assert np.array_equal(found, as_planes(picture))
    assert np.array_equal(plain, core(5).pixels)


def test_it_can_be_read_while_it_grows(tmp_path: Path) -> None:
    written(tmp_path / "log", 2)
    journal = Journal(tmp_path / "log", KEY)
    for index in (5, 9):
        journal.keep(core(index))
        assert same(journal.replay(SHAPE, 1), core(1))
        assert same(journal.replay(SHAPE, index), core(index))
    journal.note(b"hello")
    journal.close()
    journal = Journal(tmp_path / "log", KEY)
    assert (journal.indices(), journal.notes) == ({0, 1, 5, 9}, (b"hello",))
    journal.close()


def test_cut_off_anywhere_it_holds_what_was_whole(tmp_path: Path) -> None:
    cores = written(tmp_path / "log", 3)
    content = (tmp_path / "log").read_bytes()
    for length in [*range(0, 120), *range(120, len(content), 97)]:
        path = tmp_path / "cut"
        path.write_bytes(content[:length])
        journal = Journal(path, KEY)
        kept = journal.indices()
        assert kept == set(range(len(kept)))
        assert all(same(journal.replay(SHAPE, index), cores[index]) for index in kept)
        journal.keep(core(7))
        journal.close()
        again = Journal(path, KEY)
        assert again.indices() == {*kept, 7}
        assert same(again.replay(SHAPE, 7), core(7))
        again.close()


@pytest.mark.parametrize("seed", range(40))
def test_a_changed_byte_ends_it(seed: int, tmp_path: Path) -> None:
    """As after a loss of power: blocks that never reached the disk."""
    cores = written(tmp_path / "log", 3)
    content = bytearray((tmp_path / "log").read_bytes())
    content[np.random.default_rng(seed).integers(len(content))] ^= 0x40
    (tmp_path / "log").write_bytes(content)
    journal = Journal(tmp_path / "log", KEY)
    assert len(journal) < 3
    assert all(same(journal.replay(SHAPE, index), cores[index]) for index in journal.indices())
    journal.close()


def test_the_log_of_another_request_is_begun_anew(tmp_path: Path) -> None:
    written(tmp_path / "log", 3)
    journal = Journal(tmp_path / "log", KEY[::-1])
    assert len(journal) == 0
    journal.close()


def test_a_tile_of_another_shape_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "log", 1)
    journal = Journal(tmp_path / "log", KEY)
    with pytest.raises(OutputError, match="--restart"):
        journal.replay((3, 20, 31), 0)
    journal.close()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"):
        Journal(tmp_path / "log", KEY)
    assert (tmp_path / "precious").read_bytes() == b"precious"
