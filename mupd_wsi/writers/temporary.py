"""Names for what is not complete yet, and the step that makes it final."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mupd_wsi.errors import OutputError


def partial_name(final: Path, kind: str) -> Path:
    """A hidden name beside the final one, this process's own."""
    return final.with_name(f".{final.name}.{kind}-{os.getpid()}")


def publish(partial: Path, final: Path) -> None:
    """Give a complete file or folder its final name, replacing what lies there."""
    if not final.is_dir() or final.is_symlink():
        partial.replace(final)
        return
    aside = partial_name(final, "old")
    final.replace(aside)
    partial.replace(final)
    shutil.rmtree(aside)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors of writing into :class:`OutputError` with the path and what to do."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"the disk of {path.parent} is full; free some space, or choose another with -o"
            ) from error
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); choose another place with -o"
        ) from error
