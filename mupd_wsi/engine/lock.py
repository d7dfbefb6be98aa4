"""One process an output: a lock that dies with its holder, also where hosts share a folder over a network.

Two things together. ``flock`` on a file in the work folder (PyPI filelock): the system lets go of it when the holder
dies, however it dies, and most network file systems carry it from host to host. Where one does not, a sign of life:
the holder's host, process and a random word in a file whose time it renews every few seconds.
docs/decisions/0009-nothing-lost.md says why.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from mupd_wsi.errors import OutputError

LOCK: Final = "lock"
OWNER: Final = "owner.json"
#: Seconds between two signs of life.
BEAT_S: Final = 2.0
#: A holder on another host that gives no sign for so long is dead. Watched, not computed: hosts' clocks differ.
SILENCE_S: Final = 10.0
POLL_S: Final = 0.2


class Ownership:
    """That this process is the one that works in a folder.

    Attributes:
        lost: set when another process has taken the folder over: this one was asleep or cut off for long.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self._path: Final = folder / OWNER
        self._output: Final = output
        self._word: Final = secrets.token_hex(8)
        self.lost: Final = threading.Event()
        content = {"host": socket.gethostname(), "pid": os.getpid(), "word": self._word}
        temporary = folder / f"{OWNER}.{self._word}"
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(self._path)

    def require(self) -> None:
        """Raise where another process has taken over.

        Raises:
            OutputError: it has.
        """
        if self.lost.is_set():
            raise OutputError(
                f"another process has taken over {self._output} while this one gave no sign of life; it goes on there"
            )

    def beat(self) -> None:
        """Give a sign of life, and look whether the folder is still this process's."""
        if _read(self._path).get("word") != self._word:
            self.lost.set()
            return
        with suppress(OSError):
            os.utime(self._path)


@contextmanager
def locked(folder: Path, output: Path, on_beat: Callable[[], None]) -> Iterator[Ownership]:
    """Hold a folder's lock; makes the folder where it is missing, and deletes it at the end where nothing else is left.

    Args:
        folder: the work folder.
        output: what is worked on, for messages.
        on_beat: called every few seconds in a thread of its own.

    Raises:
        OutputError: another process holds it; says which, or the folder is a link or a file.
    """
    lock = _acquire(folder, output)
    try:
        _require_silence(folder, output)
        ownership = Ownership(folder, output)
        stop = threading.Event()
        beats = threading.Thread(target=_beat, args=(ownership, on_beat, stop), name="mupd-beat", daemon=True)
        beats.start()
        try:
            yield ownership
        finally:
            stop.set()
            beats.join(BEAT_S)
            if not ownership.lost.is_set():
                (folder / OWNER).unlink(missing_ok=True)
    finally:
        _release(lock, folder)


def _acquire(folder: Path, output: Path) -> FileLock:
    while True:
        with suppress(FileExistsError):
            folder.mkdir()
        if folder.is_symlink() or not folder.is_dir():
            raise OutputError(f"{folder} is in the way and is not a folder; delete it")
        lock = FileLock(folder / LOCK, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise _taken(output, _read(folder / OWNER)) from None
        except FileNotFoundError:  # its holder has just finished, and deleted the folder
            continue
        return lock


def _release(lock: FileLock, folder: Path) -> None:
    """Delete the folder where only the lock is left in it, while it is held: filelock sees that its file is gone."""
    if [part.name for part in folder.iterdir()] == [LOCK] and os.name == "posix":
        (folder / LOCK).unlink()
        with suppress(OSError):  # another process waits there already
            folder.rmdir()
    lock.release()


def _require_silence(folder: Path, output: Path) -> None:
    """The lock was free. Its last holder is dead, unless it is on a host that this file system's locks do not reach."""
    owner = _read(folder / OWNER)
    if not owner or owner.get("host") == socket.gethostname():
        return
    seen, until = _time_of(folder / OWNER), time.monotonic() + SILENCE_S
    while time.monotonic() < until:
        time.sleep(POLL_S)
        if _time_of(folder / OWNER) != seen:
            raise _taken(output, owner)


def _taken(output: Path, owner: dict[str, object]) -> OutputError:
    where = f" (process {owner['pid']} on {owner['host']})" if {"pid", "host"} <= set(owner) else ""
    return OutputError(f"another process is already working on {output}{where}; let it finish, or choose another -o")


def _beat(ownership: Ownership, on_beat: Callable[[], None], stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        ownership.beat()
        on_beat()


def _read(path: Path) -> dict[str, object]:
    """What the owner's file says; nothing where there is none or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _time_of(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
