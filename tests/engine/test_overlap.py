from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from mupd_wsi.engine.overlap import Background, Stopwatch, prefetch


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("ahead", [0, 1, 9])
def test_prefetch_gives_every_item_once_in_order(workers: int, ahead: int) -> None:
    read = prefetch(lambda n: n * n, range(20), workers=workers, ahead=ahead)
    assert list(read) == [(n, n * n) for n in range(20)]


def test_prefetch_reads_no_further_ahead_than_told() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for n in range(100):
            asked.append(n)
            yield n

    with closing(prefetch(lambda n: n, items(), workers=2, ahead=3)) as read:
        next(read)
        assert asked == [0, 1, 2, 3]


def test_prefetch_raises_what_a_reader_raised() -> None:
    def read(n: int) -> int:
        if n == 3:
            raise OSError("tile 3")
        return n

    results = prefetch(read, range(9), workers=3, ahead=2)
    assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="tile 3"):
        next(results)


def test_background_works_through_all_items_in_order() -> None:
    seen: list[int] = []
    with Background[int](lambda items: seen.extend(items), depth=2) as behind:
        for n in range(50):
            behind.put(n)
    assert seen == list(range(50))


def test_items_put_without_waiting_take_no_room() -> None:
    gate, seen = threading.Event(), list[int]()

    def work(items: Iterator[int]) -> None:
        gate.wait(5)
        seen.extend(items)

    with Background[int](work, depth=1) as behind:
        for n in range(9):
            behind.put(n, wait=False)
        behind.put(9)
        gate.set()
        behind.put(10)
    assert seen == list(range(11))


def test_an_error_in_the_background_reaches_the_caller_while_it_still_makes_items() -> None:
    def work(items: Iterator[int]) -> None:
        for n in items:
            if n == 2:
                raise OSError("disk full")

    def run() -> None:
        with Background[int](work, depth=1) as behind:
            for n in range(10**9):
                behind.put(n)

    with pytest.raises(OSError, match="disk full"):
        run()


def test_an_error_on_the_last_item_is_raised_at_the_end() -> None:
    def work(items: Iterator[int]) -> None:
        list(items)
        raise OSError("at the end")

    with pytest.raises(OSError, match="at the end"), Background[int](work, depth=1) as behind:
        behind.put(1)


def test_the_callers_own_error_stops_the_background_without_the_waiting_items() -> None:
    seen: list[int] = []
    gate = threading.Event()

    def work(items: Iterator[int]) -> None:
        for n in items:
            seen.append(n)
            gate.wait(5)

    def run() -> None:
        with Background[int](work, depth=5) as behind:
            for n in range(4):
                behind.put(n)
            while not seen:
                pass
            behind._stopping.set()
            gate.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert seen == [0]
    assert not any(thread.name == "mupd-write" for thread in threading.enumerate())


def test_stopwatch_adds_up_stages() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("read"):
            pass
    with pytest.raises(ValueError, match="inside"), watch.stage("write"):
        raise ValueError("inside")
    assert list(watch.seconds()) == ["read", "write", "total"]
