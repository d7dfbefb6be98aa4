"""The fast path for tiled RGB TIFFs (Aperio SVS, OME-TIFF, generic): tifffile's index, imagecodecs' decoders.

The index is parsed once; afterwards every tile is one positioned read and one decode, neither of which holds Python's
global lock. Level-0 pixels equal OpenSlide's byte for byte, and so do whole lower levels (OpenSlide interpolates parts
of a level whose downsample is not a whole number, this does not).
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import tifffile
from numpy.typing import NDArray

from mupd_wsi.errors import SlideError, SlideLostError
from mupd_wsi.slides import pixelsize
from mupd_wsi.slides.guards import DAMAGE, MAX_TILE_AREA
from mupd_wsi.slides.source import RawMpp, SourceFacts
from mupd_wsi.slides.tiff_layout import LayoutError, Plane, read_levels, require_complete

# tifffile logs what it then also raises; without a handler Python would print that on standard error.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_JPEG_END: Final = b"\xff\xd9"
#: What may follow 0xFF inside a JPEG scan: a stuffed zero, restart markers, fill bytes, the end.
_IN_SCAN: Final = frozenset({0x00, *range(0xD0, 0xD8), 0xFF, 0xD9})


class TiffSource:
    """One tiled TIFF.

    Attributes:
        backend: ``"tifffile"``.
        facts: format, levels, um/px, magnification.
    """

    backend: Final = "tifffile"

    def __init__(self, path: Path) -> None:
        """Parse the index.

        Raises:
            LayoutError: a TIFF that this path does not read; OpenSlide may.
            SlideError: truncated, damaged, or not a picture of H&E.
        """
        self._path = path
        try:
            with tifffile.TiffFile(path) as tiff:
                self._levels = read_levels(tiff)
                self.facts = _facts(tiff, self._levels_grids())
        except SlideError:
            raise
        except (tifffile.TiffFileError, *DAMAGE, OSError) as error:  # OSError: a place before the file's beginning
            raise LayoutError(f"{path.name} is not a TIFF that can be read ({_one_line(error)})") from error
        require_complete(self._levels, path)
        if self.facts.format == "Aperio SVS" and any((p.counts == 0).any() for lv in self._levels for p in lv.planes):
            raise LayoutError("Aperio slides with missing tiles are OpenSlide's, which fills them from other levels")
        self._file = _PositionedFile(path)

    def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """Decode one tile; see :class:`~mupd_wsi.slides.source.PixelSource`. A tile never written is white."""
        grid = self._levels[level].grid
        size = grid.tile_size(column, row)
        index = row * -(-grid.size.width // grid.tile.width) + column
        place = f"{self._path.name}: tile {column},{row} of level {level}"
        planes = [self._decode(plane, index, place) for plane in self._levels[level].planes]
        if any(plane is None for plane in planes):
            return np.full((size.height, size.width, 3), 255, np.uint8)
        pixels = [plane[: size.height, : size.width] for plane in planes if plane is not None]
        return np.ascontiguousarray(pixels[0] if len(pixels) == 1 else np.concatenate(pixels, axis=2))

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        self._file.close()

    def _levels_grids(self) -> tuple[Any, ...]:
        return tuple(level.grid for level in self._levels)

    def _decode(self, plane: Plane, index: int, place: str) -> NDArray[np.uint8] | None:
        """One tile of one plane, uint8 (h, w, samples), or None where none was written."""
        offset, count = int(plane.offsets[index]), int(plane.counts[index])
        if count == 0:
            return None
        try:
            data = self._file.read(offset, count)
        except OSError as error:
            raise SlideLostError(f"{place} cannot be read any more ({error.strerror}); see to its disk") from error
        if len(data) < count or (plane.is_jpeg and not _is_whole_jpeg(data)):
            raise SlideError(f"{place} is damaged (bytes {offset} to {offset + count}); fetch the slide again")
        try:
            claimed = plane.claimed(data) if plane.claimed is not None else None
            if claimed is not None and claimed[0] * claimed[1] > MAX_TILE_AREA:
                raise SlideError(f"{place} claims {claimed[0]} x {claimed[1]} px; fetch the slide again")
            pixels, _, _ = plane.decode(data, index + plane.first_index, jpegtables=plane.jpegtables)
        except SlideError:
            raise
        except DAMAGE as error:  # every codec's own error inherits one of these
            raise SlideError(f"{place} cannot be decoded ({_one_line(error)}); fetch the slide again") from error
        return cast("NDArray[np.uint8]", pixels[0])


class _PositionedFile:
    """Reads at a position from many threads, also where the system has no ``pread``."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("rb", buffering=0)
        self._lock = threading.Lock()

    def read(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._stream.fileno(), count, offset)
        with self._lock:
            self._stream.seek(offset)
            return self._stream.read(count) or b""

    def close(self) -> None:
        self._stream.close()


def _is_whole_jpeg(data: bytes) -> bool:
    """Whether a JPEG stream is complete and holds no impossible marker; libjpeg would go on and paint grey.

    Damage that still looks like a stream of codes is not seen.
    """
    end = data.rfind(_JPEG_END)
    scan = data.find(b"\xff\xda")
    if scan < 0 or end < scan:
        return False
    body = np.frombuffer(data, np.uint8)[scan + 2 : end + 2]
    after = body[1:][body[:-1] == 0xFF]
    return set(np.unique(after).tolist()) <= _IN_SCAN


def _facts(tiff: tifffile.TiffFile, grids: tuple[Any, ...]) -> SourceFacts:
    """Format, um/px and magnification of an open TIFF."""
    page = tiff.pages[0].aspage()
    by_tags = pixelsize.from_tiff_resolution(*(page.tags.valueof(code) for code in (282, 283, 296)))
    if tiff.is_ome:
        found = pixelsize.from_ome_xml(tiff.ome_metadata or "")
        return SourceFacts("OME-TIFF", grids, found[0] or by_tags, found[1])
    if page.description.startswith("Aperio"):
        return SourceFacts("Aperio SVS", grids, *pixelsize.from_aperio(page.description))
    return SourceFacts("generic tiled TIFF", grids, by_tags)


def flat_tiff_mpp(page: Any) -> RawMpp | None:
    """um/px of an untiled TIFF, whose resolution tags more often speak of printing."""
    tags = (page.tags.valueof(code) for code in (282, 283, 296))
    return pixelsize.drop_print_resolution(pixelsize.from_tiff_resolution(*tags))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
