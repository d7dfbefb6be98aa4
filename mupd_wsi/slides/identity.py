"""What tells one slide's data from another's, without reading all of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

_FINGERPRINT_BYTES: Final = 2**20


def fingerprint(path: Path) -> str:
    """A quick identity of a slide's data: SHA-256 over the size, the first and the last MiB of the file.

    A folder (OME-Zarr) counts as the list of its files with their sizes, and the text of its metadata. It tells
    slides apart; it does not prove that no byte was changed. Of formats of several files (MRXS, DICOM) it covers
    the file that was opened.

    Args:
        path: the slide's file or folder.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}\0{size}\0".encode())
        if file == path or file.name in {"zarr.json", ".zattrs", ".zarray", ".zgroup"}:
            with file.open("rb") as stream:
                digest.update(stream.read(_FINGERPRINT_BYTES))
                stream.seek(max(0, size - _FINGERPRINT_BYTES))
                digest.update(stream.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()
