"""Which backend opens a file, and the one way to open it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from mupd_wsi.errors import SlideError, UsageError
from mupd_wsi.geometry import Mpp
from mupd_wsi.slides.slide import Slide
from mupd_wsi.slides.source import PixelSource

_TIFF_MAGIC: Final = {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}

#: OpenSlide vendors whose tiles the fast path decodes to the same bytes.
_FAST_VENDORS: Final = {"aperio", "generic-tiff"}

BACKENDS: Final = ("tifffile", "openslide", "zarr", "flat")


def open_slide(path: str | Path, *, mpp: float | None = None, backend: str | None = None) -> Slide:
    """Open a slide: any OpenSlide format, OME-TIFF, OME-Zarr, or a flat picture.

    Args:
        path: the slide's file, or the folder of an OME-Zarr image.
        mpp: um per level-0 pixel, instead of what the file states. Opening works without either;
            :attr:`Slide.mpp` does not.
        backend: one of :data:`BACKENDS`; None picks the fastest one that gives the right pixels.

    Raises:
        SlideError: missing, empty, truncated, not an image, a folder that is no slide.
        PixelSizeError: ``mpp`` is not plausible.
        UsageError: no such backend.
    """
    place = Path(path)
    given = None if mpp is None else Mpp(mpp, mpp, "the user (--mpp)")
    if backend is not None and backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}; there are: {', '.join(BACKENDS)}")
    _require_content(place)
    try:
        source = _OPENERS[backend](place) if backend else _pick(place)
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise SlideError(f"{place} cannot be read ({error.strerror}); check its permissions") from error
    return Slide(place, source, mpp=given)


def _require_content(path: Path) -> None:
    try:
        empty = path.is_file() and path.stat().st_size == 0
        missing = not path.exists()
    except OSError as error:
        raise SlideError(f"{path} cannot be read ({error.strerror}); check its path and permissions") from error
    if missing:
        raise SlideError(f"{path} does not exist; check the path")
    if empty:
        raise SlideError(f"{path} is empty (0 bytes); fetch it again")


def _pick(path: Path) -> PixelSource:
    """The fast path where it fits, else OpenSlide, else a flat picture."""
    if path.is_dir():
        return _open_folder(path)
    from mupd_wsi.slides.openslide_source import OpenSlideSource, detect_vendor
    from mupd_wsi.slides.tiff_layout import LayoutError, require_whole_index

    with path.open("rb") as stream:
        is_tiff = stream.read(4) in _TIFF_MAGIC
    vendor = detect_vendor(path)
    if vendor is None and is_tiff:
        require_whole_index(path)
    if is_tiff and (vendor is None or vendor in _FAST_VENDORS):
        try:
            return _open_tiff(path)
        except LayoutError:
            pass  # tiles of another kind, or none: the backends below say what is wrong if they cannot either
    return OpenSlideSource(path) if vendor else _open_flat(path)


def _open_folder(path: Path) -> PixelSource:
    if any((path / name).is_file() for name in ("zarr.json", ".zattrs", ".zgroup")):
        return _open_zarr(path)
    raise SlideError(
        f"{path} is a folder but not an OME-Zarr image; give a slide file (for DICOM or MRXS, a file of the set)"
    )


def _open_tiff(path: Path) -> PixelSource:
    from mupd_wsi.slides.tiff_source import TiffSource

    return TiffSource(path)


def _open_openslide(path: Path) -> PixelSource:
    from mupd_wsi.slides.openslide_source import OpenSlideSource

    return OpenSlideSource(path)


def _open_zarr(path: Path) -> PixelSource:
    from mupd_wsi.slides.zarr_source import ZarrSource

    return ZarrSource(path)


def _open_flat(path: Path) -> PixelSource:
    from mupd_wsi.slides.flat_source import FlatSource

    return FlatSource(path)


_OPENERS: Final[dict[str, Callable[[Path], PixelSource]]] = {
    "tifffile": _open_tiff,
    "openslide": _open_openslide,
    "zarr": _open_zarr,
    "flat": _open_flat,
}
