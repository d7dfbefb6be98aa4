"""Slides and outputs by URL (``s3://``, ``https://``, whatever fsspec knows): whole files, checked by their sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import unquote

from mupd_wsi.errors import OutputError, SlideError, UsageError

#: What storages tell of a file that changes with it.
IDENTIFYING: Final = ("size", "ETag", "LastModified", "mtime", "created")


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL rather than a path."""
    return "://" in str(place)


def size_of(url: str) -> int:
    """Bytes of a slide, a folder (OME-Zarr) with all that is in it.

    Raises:
        UsageError: nothing here can read such URLs.
        SlideError: there is nothing, or it cannot be reached.
    """
    with _slide_errors(url):
        files, path = _open(url)
        facts = files.info(path)
        parts = files.find(path, detail=True).values() if facts.get("type") == "directory" else [facts]
        sizes = [part.get("size") for part in parts]
        if any(size is None for size in sizes):
            raise SlideError(f"{url}: the server does not tell its size; fetch it by other means")
        return sum(sizes)


def download(url: str, folder: Path) -> Path:
    """Fetch a slide into a folder, under its own name.

    Raises:
        SlideError: it cannot be reached, or not all of it came.
    """
    expected = size_of(url)
    with _slide_errors(url):
        files, path = _open(url)
        name = PurePosixPath(unquote(path.rstrip("/").rpartition("/")[2].partition("?")[0])).name
        target = folder / ("slide" if name in ("", "..") else name)
        is_folder = files.info(path).get("type") == "directory"
        files.get(path.rstrip("/") + "/" if is_folder else path, str(target), recursive=is_folder)
    parts = [target] if target.is_file() else [p for p in target.rglob("*") if p.is_file()]
    came = sum(p.stat().st_size for p in parts)
    if came != expected:
        raise SlideError(f"{url} has {expected} bytes, {came} came; try again")
    return target


def upload(local: Path, url: str) -> None:
    """Put a file, or a folder with all that is in it, at a URL in place of what is there, and check that all arrived.

    Of a folder, the files on top come last: a reader that finds an image's metadata finds the image.

    Raises:
        OutputError: it cannot be written, or not all of it arrived.
    """
    with _output_errors(url):
        files, path = _open(url)
        places = {local: path}
        if local.is_dir():
            parts = sorted((p for p in local.rglob("*") if p.is_file()), key=lambda p: (p.parent == local, p))
            places = {part: f"{path.rstrip('/')}/{part.relative_to(local).as_posix()}" for part in parts}
            if files.exists(path):
                files.rm(path, recursive=True)
        for part, place in places.items():
            if is_local(files):
                files.makedirs(place.rpartition("/")[0], exist_ok=True)
            files.put_file(str(part), place)
        files.invalidate_cache()
        for part, place in places.items():
            size = files.info(place)["size"]
            if size != part.stat().st_size:
                raise OutputError(f"{url}: {part.name} has {part.stat().st_size} bytes, {size} arrived; try again")


def read(url: str) -> bytes | None:
    """A small file's content; None where there is none.

    Raises:
        OutputError: that cannot be told.
    """
    with _output_errors(url):
        files, path = _open(url)
        files.invalidate_cache()
        content: bytes | None = files.cat_file(path) if files.exists(path) else None
        return content


def fetch_matching(url: str, pattern: str, folder: Path) -> None:
    """Fetch the files right below a URL whose names match a pattern.

    Raises:
        OutputError: they cannot be read.
    """
    with _output_errors(url):
        files, path = _open(url)
        files.invalidate_cache()
        for found in files.glob(f"{path.rstrip('/')}/{pattern}"):
            files.get_file(found, str(folder / found.rpartition("/")[2]))


def expand(url: str) -> list[str]:
    """The URLs that a URL means: itself, those that match a pattern, or for one that ends in a slash all below it.

    Raises:
        SlideError: it cannot be read.
    """
    if not (has_magic(url) or url.endswith("/")):
        return [url]
    with _slide_errors(url):
        files, path = _open(url)
        found = files.find(path) if url.endswith("/") else files.glob(path)
        return [files.unstrip_protocol(name) for name in sorted(found)]


def exists(url: str) -> bool:
    """Whether there is anything at a URL.

    Raises:
        OutputError: that cannot be told.
    """
    with _output_errors(url):
        files, path = _open(url)
        return bool(files.exists(path))


def identity(url: str) -> dict[str, str]:
    """What tells a slide at a URL from another that takes its place: its size, and what the storage says besides.

    Raises:
        SlideError: it cannot be reached.
    """
    with _slide_errors(url):
        files, path = _open(url)
        facts = files.info(path)
        return {"url": url} | {name: str(facts[name]) for name in IDENTIFYING if facts.get(name) is not None}


def is_local(files: Any) -> bool:
    """Whether a file system has real folders, which have to be made: ``file://`` and network drives."""
    return "file" in (files.protocol if isinstance(files.protocol, tuple) else (files.protocol,))


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path on it."""
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{url} cannot be read here: {error}; install mupd-wsi[cloud]") from error
    return files, path


@contextmanager
def _slide_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (SlideError, UsageError):
        raise
    except Exception as error:  # each storage has errors of its own, few of them OSErrors
        raise SlideError(f"{url} cannot be read: {_said(error)}; check the address and your credentials") from error


@contextmanager
def _output_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (OutputError, UsageError):
        raise
    except Exception as error:  # as above
        raise OutputError(f"{url} cannot be written: {_said(error)}; check the address and your credentials") from error


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
