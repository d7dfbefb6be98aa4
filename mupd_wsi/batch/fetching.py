"""Slides copied ahead from slow or remote storage, within a bound, and deleted when they are stained."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

from mupd_wsi.batch import remote
from mupd_wsi.batch.feeding import Books, TodoFeed
from mupd_wsi.batch.tasks import Outcome, SlideTask
from mupd_wsi.batch.work import one_line
from mupd_wsi.errors import MupdError, OutputError, SlideError

#: Copies that may wait for a worker.
AHEAD: Final = 2
#: Seconds that :meth:`FetchingFeed.take` waits for a copy.
WAIT_S: Final = 0.05
PREFIX: Final = ".mupd-cache"


class FetchingFeed:
    """Hands out a feed's tasks with a local copy of each slide; see :class:`~mupd_wsi.batch.tasks.Feed`.

    Without a cache, slides on this machine's own paths are read where they are, and only those given by URL are copied,
    into the system's folder for temporary files.

    Disk bound: ``bound`` bytes of copies. A slide that is larger by itself is read where it is, or refused if that is a
    URL.

    Args:
        todo: the tasks.
        books: where slides are told that cannot be fetched.
        cache: folder for the copies, or None.
        bound: bytes.

    Raises:
        OutputError: the cache cannot be made.
    """

    def __init__(self, todo: TodoFeed, books: Books, cache: Path | None, bound: int) -> None:
        self._todo, self._books, self._bound = todo, books, bound
        self._all = cache is not None
        self._cache = cache or Path(tempfile.gettempdir())
        self._folder: Path | None = None
        self._pool = ThreadPoolExecutor(1, "mupd-fetch")
        self._next: tuple[SlideTask, int] | None = None
        self._coming: deque[tuple[SlideTask, int, Future[Path]]] = deque()
        self._held: dict[str, tuple[int, Path]] = {}

    @property
    def exhausted(self) -> bool:
        """Whether no task will come any more."""
        return self._todo.exhausted and self._next is None and not self._coming

    def take(self) -> SlideTask | None:
        """The next task whose slide is here."""
        while len(self._coming) < AHEAD:
            if self._next is None and (task := self._todo.take()) is not None:
                self._next = self._sized(task)
            if self._next is None:
                break
            task, size = self._next
            if size == 0 and not self._coming:
                self._next = None
                return task
            if size == 0 or not self._fits(size):
                break
            self._next = None
            self._coming.append((task, size, self._pool.submit(self._fetch, task, size)))
        return self._arrived()

    def release(self, task: SlideTask) -> None:
        """Delete the copy of a task's slide, if there is one."""
        if task.key in self._held:
            shutil.rmtree(self._held.pop(task.key)[1], ignore_errors=True)

    def close(self) -> None:
        """Stop copying, and delete all copies."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _sized(self, task: SlideTask) -> tuple[SlideTask, int] | None:
        """A task, and how many bytes of its slide are to be copied; None if it was refused."""
        is_url = remote.is_url(task.slide)
        if not is_url and not self._all:
            return task, 0
        try:
            size = remote.size_of(task.slide) if is_url else sum(p.stat().st_size for p in _files(Path(task.slide)))
            if size > self._bound and is_url:
                raise SlideError(f"{task.slide} has {size} bytes, the cache {self._bound}; give a larger --cache-size")
        except (MupdError, OSError) as error:
            if is_url:
                self._books.end(task, Outcome(False, one_line(error)))
                return None
            return task, 0  # whoever reads it says what is wrong
        return task, 0 if size > self._bound else size

    def _fits(self, size: int) -> bool:
        """Whether a copy may be begun; the bytes held include those that are on their way."""
        used = sum(held for held, _ in self._held.values()) + sum(coming for _, coming, _ in self._coming)
        return used + size <= self._bound

    def _arrived(self) -> SlideTask | None:
        if not self._coming:
            return None
        task, size, copy = self._coming[0]
        with contextlib.suppress(TimeoutError):
            try:
                local = copy.result(WAIT_S)
            except (MupdError, OSError) as error:
                if isinstance(error, TimeoutError) and not copy.done():
                    raise
                self._coming.popleft()
                self._books.end(task, Outcome(False, one_line(error)))
                return None
            self._coming.popleft()
            self._held[task.key] = (size, local.parent)
            return replace(task, local=local)
        return None

    def _fetch(self, task: SlideTask, size: int) -> Path:
        """Copy a slide into a folder of its own, under its own name, and check that all of it came."""
        folder = Path(tempfile.mkdtemp(dir=self._place()))
        if remote.is_url(task.slide):
            return remote.download(task.slide, folder)
        slide = Path(task.slide)
        for file in _files(slide):
            copy = folder / file.relative_to(slide.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        copied = sum(p.stat().st_size for p in _files(folder / slide.name))
        if copied != size:
            raise SlideError(f"{slide} has {size} bytes, {copied} were copied; it was changed meanwhile, try again")
        return folder / slide.name

    def _place(self) -> Path:
        if self._folder is None:
            try:
                self._cache.mkdir(parents=True, exist_ok=True)
                _clear_dead(self._cache)
                self._folder = self._cache / f"{PREFIX}-{socket.gethostname()}-{os.getpid()}"
                self._folder.mkdir(exist_ok=True)
            except OSError as error:
                raise OutputError(f"cache {self._cache} cannot be written: {error.strerror}; choose another") from error
        return self._folder


def _files(slide: Path) -> Iterator[Path]:
    """All files that a slide is made of, where that can be told by its name; of others the slide itself."""
    if slide.is_dir():
        yield from sorted(p for p in slide.rglob("*") if p.is_file())
        return
    yield slide
    if slide.suffix.lower() == ".mrxs":
        yield from _files(slide.with_suffix(""))


def _clear_dead(cache: Path) -> None:
    """Delete the copies of processes of this machine that are no more."""
    for left in cache.glob(f"{PREFIX}-{socket.gethostname()}-*"):
        number = left.name.rpartition("-")[2]
        if number.isdigit() and not _alive(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
