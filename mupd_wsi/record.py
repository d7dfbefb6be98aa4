"""The JSON record that lies beside every output: how it was made, with what, and how it went."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from mupd_wsi.errors import OutputError

#: Packages whose version can change a pixel or a file.
RECORDED_PACKAGES: Final = (
    "mupd-wsi",
    "imagecodecs",
    "numpy",
    "opencv-python-headless",
    "openslide-bin",
    "openslide-python",
    "pillow",
    "scikit-image",
    "tifffile",
    "torch",
    "zarr",
)


def software() -> dict[str, Any]:
    """Versions of Python, the system and the packages that matter; a package that is absent is null."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else [],
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
    }


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as indented UTF-8 JSON, complete or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomically(path, (json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a small file under a temporary name beside its own, then rename it.

    Args:
        path: its own name.
        content: whole, or in parts that are made as they are written.

    Raises:
        OutputError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with temporary.open("wb") as stream:
                stream.writelines([content] if isinstance(content, bytes) else content)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from error


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
