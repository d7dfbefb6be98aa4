from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from mupd_wsi.slides.cache import TileCache


def tile(value: int = 0, nbytes: int = 100) -> NDArray[np.uint8]:
    return np.full(nbytes, value, np.uint8)


def test_two_threads_decode_a_tile_once() -> None:
    cache, calls, started = TileCache(), [], threading.Barrier(4)

    def decode() -> NDArray[np.uint8]:
        calls.append(1)
        return tile(7)

    def ask() -> int:
        started.wait(10)
        return int(cache.get("a", decode)[0])

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask) for _ in range(4)]
        assert [answer.result() for answer in answers] == [7, 7, 7, 7]
    assert len(calls) == 1


def test_the_tiles_used_last_are_kept_within_the_bound() -> None:
    cache = TileCache(max_bytes=250)
    for key in ("a", "b", "a", "c"):
        cache.get(key, tile)
    assert cache.nbytes == 200
    cache.get("a", lambda: pytest.fail("a was used last and must be kept"))
    cache.get("b", lambda: tile(9))
    assert cache.nbytes == 200


def test_a_failure_reaches_the_reader_and_the_next_one_tries_again() -> None:
    cache = TileCache()

    def fail() -> NDArray[np.uint8]:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        cache.get("a", fail)
    assert cache.get("a", lambda: tile(3))[0] == 3
    cache.clear()
    assert cache.nbytes == 0


def test_tiles_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        TileCache().get("a", tile)[0] = 1
