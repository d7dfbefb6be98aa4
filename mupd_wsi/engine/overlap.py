"""Threads around the network: read ahead, write behind, and time each stage. Knows nothing of slides."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from mupd_wsi.errors import WorkerError
from mupd_wsi.lookahead import in_order

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Seconds between two looks at whether the other side has failed or stopped.
POLL_S: Final = 0.05
#: Seconds that an aborted run waits for its background thread: Ctrl-C has to be over within two.
STOP_GRACE_S: Final = 1.0


def prefetch(
    work: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int, thread_name: str = "mupd-read"
) -> Generator[tuple[Item, Result]]:
    """Work on items in threads of its own, ahead of the taker, and give them in their own order.

    Memory bound: ``ahead + 1`` results. Close the generator to stop early (``contextlib.closing``).

    Args:
        work: called in a worker thread; what it raises is raised here when its item's turn comes.
        items: taken lazily, in the caller's thread.
        workers: number of threads, at least 1.
        ahead: how many items may be done or being worked on before the taker asks for them.
        thread_name: how the threads are called.
    """
    with threads(workers, thread_name) as pool:
        yield from in_order(pool, _answering(work), items, ahead)


@contextmanager
def threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that leave out what has not begun when an error passes, or a generator is closed."""
    with ThreadPoolExecutor(count, name) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _answering(work: Callable[[Item], Result]) -> Callable[[Item], Result]:
    """Work of which an exit of its thread is told as an error: it must not end the whole process as if all was done."""

    def answer(item: Item) -> Result:
        try:
            return work(item)
        except SystemExit as error:
            raise WorkerError(f"a worker thread ended by itself ({error!r}); run again") from error

    return answer


class _StoppedError(Exception):
    """Raised inside the background thread to unwind it."""


class Background(Generic[Item]):
    """One thread that works through items in order, while the caller makes the next ones.

    As a context manager it finishes all items on a normal exit, and drops what is left when an exception passes.
    Memory bound: ``depth`` items waiting and one at work, besides those that were put without waiting.

    Args:
        work: runs in the thread with an iterator over the items; must take them all.
        depth: items that may wait before :meth:`put` blocks.
    """

    def __init__(self, work: Callable[[Iterator[Item]], None], depth: int) -> None:
        self._queue: queue.SimpleQueue[tuple[Item | None, bool]] = queue.SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="mupd-write", daemon=True)
        self._thread.start()

    def put(self, item: Item, *, wait: bool = True) -> None:
        """Hand over an item; raises what the thread has raised, as soon as it has.

        Args:
            item: any.
            wait: for room among the items that wait; False is for items that take no memory to speak of.
        """
        self._offer(item, wait=wait)

    def finish(self) -> None:
        """Wait until all items are worked through; raises what the thread has raised."""
        try:
            self._offer(None, wait=False)
            while self._thread.is_alive():
                self._thread.join(POLL_S)
            self._check()
        except BaseException:  # Ctrl-C while waiting, too
            self.stop()
            raise

    def stop(self) -> None:
        """Drop what is waiting and wait a moment for the item at work."""
        self._stopping.set()
        self._thread.join(STOP_GRACE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.stop()

    def _offer(self, item: Item | None, *, wait: bool) -> None:
        self._check()
        while wait and not self._room.acquire(timeout=POLL_S):
            self._check()
        self._queue.put((item, wait))

    def _check(self) -> None:
        if isinstance(self._error, SystemExit):
            raise WorkerError(f"the writing thread ended by itself ({self._error!r}); run again") from self._error
        if self._error is not None:
            raise self._error

    def _run(self, work: Callable[[Iterator[Item]], None]) -> None:
        try:
            work(self._items())
        except _StoppedError:
            return
        except BaseException as error:  # handed to the caller's thread, which raises it
            self._error = error

    def _items(self) -> Iterator[Item]:
        while not self._stopping.is_set():
            try:
                item, takes_room = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if takes_room:
                self._room.release()
            if item is None:
                return
            yield item
        raise _StoppedError


class Stopwatch:
    """Adds up the seconds that each stage took, over all threads: stages that overlap add up to more than the total."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside towards a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def total(self) -> float:
        """Seconds since this was made."""
        return time.perf_counter() - self._start

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, rounded to milliseconds, and the total of wall time so far."""
        with self._lock:
            stages = {name: round(value, 3) for name, value in self._seconds.items()}
        return stages | {"total": round(self.total(), 3)}
