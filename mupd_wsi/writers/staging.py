"""Nothing under the final name before it is complete: hidden temporary names, fsync, and atomic replacement."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from mupd_wsi.errors import MupdError, OutputError

_ENDING = re.compile(r"(?:\.ome)?\.(?:tiff?|zarr)$", re.IGNORECASE)
#: What an output folder is called that was moved aside for a new one.
REPLACED = "replaced"


def work_folder(output: Path) -> Path:
    """Where the unfinished work for an output lies, beside it: ``.slide.CD8.mupd-part`` for ``slide.CD8.ome.tiff``.

    Outputs whose names differ by their ending alone share one, as they share a preview.
    """
    return output.with_name(f".{_ENDING.sub('', output.name)}.mupd-part")


def hidden_sibling(path: Path, purpose: str) -> Path:
    """A new hidden name beside ``path``, on the same disk: ``.<name>.<purpose>-<process>-<random>``."""
    return path.with_name(f".{path.name}.{purpose}-{os.getpid()}-{secrets.token_hex(3)}")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the system says about writing into an error that names the output and says what to do.

    Raises:
        OutputError: the block has raised an OSError.
    """
    try:
        yield
    except MupdError:
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise OutputError(
            f"cannot write {path}: {reason}; free some space there or choose another place with -o"
        ) from error


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk itself (where the system lets a folder be synced)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Have the content of a closed file on the disk itself."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def sync_all_below(folder: Path) -> None:
    """Have the content of all files in a folder, however deep, on the disk itself; all are closed."""
    for part in folder.rglob("*"):
        if part.is_file():
            sync_file(part)


def sync_together(files: Sequence[Path], folder: Path) -> None:
    """Have closed files and the names in a folder on the disk itself, all at once: it takes hardly longer than one."""
    with ThreadPoolExecutor(len(files), "mupd-sync") as pool:
        syncing = [pool.submit(sync_file, path) for path in files]
        sync_folder(folder)
        for one in syncing:
            one.result()


def move_file(temporary: Path, final: Path, *, sync: bool = True) -> None:
    """Give a finished file its final name, replacing what is there in one step: a crash leaves the old or the new.

    Args:
        temporary: closed.
        final: on the same disk.
        sync: have the content on the disk itself first; False where it is.
    """
    if sync:
        sync_file(temporary)
    temporary.replace(final)


def move_folder(temporary: Path, final: Path, *, sync: bool = True) -> None:
    """Give a finished folder its final name; what is there is moved aside, beside ``temporary``, and deleted last.

    Args:
        temporary: all files in it closed.
        final: on the same disk.
        sync: have the files on the disk itself first; False where they are.
    """
    if sync:
        sync_all_below(temporary)
    aside = None
    if final.exists() or final.is_symlink():
        aside = temporary.with_name(hidden_sibling(final, REPLACED).name)
    if aside is not None:
        final.rename(aside)
    try:
        temporary.rename(final)
    except OSError:
        if aside is not None:
            aside.rename(final)
        raise
    if aside is not None:
        sync_folder(final.parent)
        remove(aside)


def remove(path: Path) -> None:
    """Delete a file, link or folder; that there is none is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
