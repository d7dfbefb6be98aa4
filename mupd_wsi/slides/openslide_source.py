"""Everything that OpenSlide reads and the fast path does not: NDPI, MRXS, SCN, BIF, VMS, DICOM, Philips..."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import openslide
from numpy.typing import NDArray

from mupd_wsi.errors import SlideError
from mupd_wsi.geometry import Size
from mupd_wsi.slides import pixelsize
from mupd_wsi.slides.source import SourceFacts, TileLevel, on_white

#: Level pixels that are asked of OpenSlide at once. Fixed blocks make a pixel independent of the region asked for:
#: OpenSlide interpolates where a level's downsample is not a whole number.
_BLOCK: Final = 512

#: For the parts of compressed tiles that the next block needs too.
_OPENSLIDE_CACHE_BYTES: Final = 64 * 2**20

_FORMATS: Final[dict[str, str]] = {
    "aperio": "Aperio SVS",
    "dicom": "DICOM WSI",
    "generic-tiff": "generic tiled TIFF",
    "hamamatsu": "Hamamatsu VMS",
    "leica": "Leica SCN",
    "mirax": "MIRAX MRXS",
    "philips": "Philips TIFF",
    "sakura": "Sakura SVSLIDE",
    "trestle": "Trestle TIFF",
    "ventana": "Ventana BIF",
    "zeiss": "Zeiss CZI",
}


def detect_vendor(path: Path) -> str | None:
    """OpenSlide's name for the format of a file, or None where it knows none."""
    try:
        vendor = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError:
        return None
    return None if vendor is None else str(vendor)


class OpenSlideSource:
    """One slide that OpenSlide reads.

    Attributes:
        backend: ``"openslide"``.
        facts: format, levels, um/px, magnification.
    """

    backend: Final = "openslide"

    def __init__(self, path: Path) -> None:
        """Open the slide.

        Raises:
            SlideError: OpenSlide cannot open it.
        """
        self._path = path
        self._slide = self._opened()
        vendor = self._slide.properties.get("openslide.vendor", "")
        name = "Hamamatsu NDPI" if path.suffix.lower() == ".ndpi" else _FORMATS.get(vendor, f"OpenSlide {vendor}")
        levels = tuple(TileLevel(Size(w, h), Size(_BLOCK, _BLOCK)) for w, h in self._slide.level_dimensions)
        self.facts = SourceFacts(name, levels, *pixelsize.from_openslide(dict(self._slide.properties)))

    def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """Read one block; see :class:`~mupd_wsi.slides.source.PixelSource`."""
        size = self.facts.levels[level].tile_size(column, row)
        downsample = self._slide.level_downsamples[level]
        origin = (round(column * _BLOCK * downsample), round(row * _BLOCK * downsample))
        try:
            block = self._slide.read_region(origin, level, (size.width, size.height))
        except openslide.OpenSlideError:
            # A slide that has met damage, perhaps in another thread, answers nothing any more: ask a fresh one.
            fresh = self._opened()
            try:
                block = fresh.read_region(origin, level, (size.width, size.height))
            except openslide.OpenSlideError as error:
                self._slide = self._opened()
                raise SlideError(
                    f"{self._path.name}: level {level} near {origin[0]},{origin[1]} cannot be decoded ({error}); "
                    "fetch the slide again"
                ) from error
            self._slide = fresh
        return on_white(np.asarray(block))

    def _opened(self) -> openslide.OpenSlide:
        try:
            slide = openslide.OpenSlide(self._path)
        except openslide.OpenSlideError as error:
            raise SlideError(
                f"{self._path.name} cannot be opened as a slide ({error}); check that it is whole, with its companion "
                "files"
            ) from error
        slide.set_cache(openslide.OpenSlideCache(_OPENSLIDE_CACHE_BYTES))
        return slide

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        self._slide.close()
