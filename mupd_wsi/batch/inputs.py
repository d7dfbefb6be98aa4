"""Which slides are meant by folders, patterns, lists and names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Final

from mupd_wsi.batch.manifest import Entry, read_manifest
from mupd_wsi.batch.remote import expand, is_url
from mupd_wsi.errors import UsageError

#: What is looked for in folders.
SLIDE_ENDINGS: Final = frozenset(
    f".{name}"
    for name in "svs tif tiff btf ndpi scn mrxs bif vms vmu svslide czi dcm zarr".split()  # noqa: SIM905
)
#: Pictures state no pixel size: in folders they count as slides only where one was given.
PICTURE_ENDINGS: Final = frozenset([".png", ".jpg", ".jpeg", ".bmp"])
PREVIEW_ENDING: Final = ".preview.png"
ZARR_FILES: Final = ("zarr.json", ".zattrs", ".zgroup")


def find_slides(inputs: Sequence[str], manifests: Sequence[Path], *, pictures: bool, outside: Path) -> list[Entry]:
    """The slides that are meant, each once, in a fixed order.

    Args:
        inputs: slides, folders (searched through and through), patterns (``**`` allowed), CSV lists, URLs.
        manifests: CSV lists.
        pictures: whether PNG, JPEG and BMP files in folders are slides.
        outside: folder of the outputs, which is not searched.

    Raises:
        UsageError: a pattern or folder without slides, a bad list, or no slide at all.
    """
    found: dict[Entry, None] = {}
    for given in inputs:
        found |= dict.fromkeys(_meant(given, pictures, outside.resolve()))
    for manifest in manifests:
        found |= dict.fromkeys(read_manifest(manifest))
    if not found:
        raise UsageError("no slides to stain: give slides, folders, patterns or a --manifest")
    return list(found)


def is_zarr(folder: Path) -> bool:
    """Whether a folder is an OME-Zarr image, and so one slide."""
    return any((folder / name).is_file() for name in ZARR_FILES)


def _meant(given: str, pictures: bool, outside: Path) -> Iterable[Entry]:
    if is_url(given):
        urls = expand(given)
        return [Entry(url) for url in urls if len(urls) == 1 or _is_slide_name(url.rpartition("/")[2], pictures)]
    path = Path(given)
    if path.is_dir() and not is_zarr(path):
        entries = list(_in_folder(path, pictures, outside))
        if not entries:
            raise UsageError(f"folder {path} holds no slides ({_known(pictures)}); check the path")
        return entries
    if path.suffix.lower() == ".csv" and path.is_file():
        return read_manifest(path)
    if has_magic(given) and not path.exists():
        found = glob(given, recursive=True)  # noqa: PTH207  (Path.glob takes no absolute patterns)
        matches = sorted(match for match in found if not match.endswith(PREVIEW_ENDING))
        if not matches:
            raise UsageError(f"no file matches {given!r}; check the pattern")
        return [entry for match in matches for entry in _meant(match, pictures, outside)]
    return [Entry(given)]


def _in_folder(top: Path, pictures: bool, outside: Path) -> Iterator[Entry]:
    seen = {outside}
    for name, folders, files in os.walk(top, followlinks=True):
        here = Path(name)
        if here.resolve() in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(here.resolve())
        zarrs = [f for f in folders if is_zarr(here / f)]
        folders[:] = sorted(f for f in folders if f not in zarrs and f[0] != ".")
        names = [f for f in files if _is_slide_name(f, pictures)]
        place = here.relative_to(top).as_posix()
        for slide in sorted([*zarrs, *_one_dicom(here, names)]):
            yield Entry(str(here / slide), "" if place == "." else place)


def _is_slide_name(name: str, pictures: bool) -> bool:
    """Whether a file in a folder is a slide."""
    ending = Path(name).suffix.lower()
    known = ending in SLIDE_ENDINGS or (pictures and ending in PICTURE_ENDINGS)
    return known and name[0] != "." and not name.endswith(PREVIEW_ENDING)


def _one_dicom(folder: Path, names: list[str]) -> list[str]:
    """A folder's DICOM files are the levels of one slide: its largest file stands for it."""
    parts = [name for name in names if name.lower().endswith(".dcm")]
    if len(parts) < 2:
        return names
    largest = max(parts, key=lambda name: ((folder / name).stat().st_size, name))
    return [name for name in names if name not in parts or name == largest]


def _known(pictures: bool) -> str:
    shown = ", ".join(sorted(ending[1:] for ending in SLIDE_ENDINGS))
    return f"{shown}, or pictures" if pictures else f"{shown}; pictures count with --mpp"
