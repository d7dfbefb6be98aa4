"""Which pages of a TIFF make up its pyramid, and where the bytes of every tile lie."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import tifffile
from numpy.typing import NDArray

from mupd_wsi.errors import SlideError
from mupd_wsi.geometry import Size
from mupd_wsi.slides.claims import jpegxl_size, webp_size
from mupd_wsi.slides.guards import has_entities, jpeg2000_size, jpeg_size, require_sane
from mupd_wsi.slides.source import TileLevel

_RGB: Final = 2
_YCBCR: Final = 6
_GREY: Final = 1
_JPEG: Final = 7
_JPEG2000: Final = {33003, 33005, 34712}
_WEBP: Final = 50001
_JPEGXL: Final = 50002
#: None, LZW, JPEG, Adobe deflate, PackBits, deflate, Aperio JPEG 2000 (YCbCr, RGB), JPEG 2000, zstd, WebP, JPEG XL.
_COMPRESSIONS: Final = {1, 5, 7, 8, 32773, 32946, 33003, 33005, 34712, 50000, 50001, 50002}

#: Compression -> reads the size that a stream of it claims; the others unpack no further than a tile goes.
_CLAIMS: Final[dict[int, Callable[[bytes], tuple[int, int] | None]]] = {
    _JPEG: jpeg_size,
    **dict.fromkeys(_JPEG2000, jpeg2000_size),
    _WEBP: webp_size,
    _JPEGXL: jpegxl_size,
}

_MAX_IFDS: Final = 10_000
_MAX_TABLE_BYTES: Final = 2**32


class LayoutError(SlideError):
    """A TIFF that the fast path does not read; another backend may."""


@dataclass(frozen=True, slots=True)
class Plane:
    """The tiles of one page that hold one sample (planar, grey) or all three (interleaved).

    Attributes:
        decode: tifffile's decoder of a tile: (bytes, index, jpegtables=...) -> (pixels, place, shape).
        jpegtables: shared JPEG tables, or None.
        offsets: int64 (tiles,), where each tile starts in the file.
        counts: int64 (tiles,), its bytes; 0 is a tile that was never written.
        first_index: index of the plane's first tile among the tiles of its page.
        is_jpeg: whether the tiles are JPEG streams.
        claimed: reads the size that a tile's own header claims, where it has one.
    """

    decode: Callable[..., Any]
    jpegtables: bytes | None
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    first_index: int
    is_jpeg: bool
    claimed: Callable[[bytes], tuple[int, int] | None] | None


@dataclass(frozen=True, slots=True)
class TiffLevel:
    """One level: its grid, and one plane (interleaved RGB) or three (red, green, blue)."""

    grid: TileLevel
    planes: tuple[Plane, ...]


def read_levels(tiff: tifffile.TiffFile) -> tuple[TiffLevel, ...]:
    """The RGB pyramid of an open TIFF, largest level first.

    Raises:
        LayoutError: tiled 8-bit RGB is not what the file holds; the message says what it does hold.
        SlideError: many fluorescence channels, which cannot be shown as H&E.
    """
    if tiff.is_ome and has_entities(tiff.ome_metadata or ""):
        raise SlideError(f"{tiff.filename} has OME-XML that defines entities, which none needs: it is a trap")
    groups = _ome_pages(tiff) if tiff.is_ome else _plain_pages(tiff)
    levels = [_level(pages) for pages in groups]
    levels.sort(key=lambda level: -level.grid.size.area)
    return tuple(levels)


def require_complete(levels: Iterable[TiffLevel], path: Path) -> None:
    """Check that no tile lies past the end of the file.

    Raises:
        SlideError: the file is cut short.
    """
    length = path.stat().st_size
    for level in levels:
        tiles = -(-level.grid.size.width // level.grid.tile.width) * -(
            -level.grid.size.height // level.grid.tile.height
        )
        for plane in level.planes:
            if not len(plane.offsets) == len(plane.counts) == tiles:
                listed = min(len(plane.offsets), len(plane.counts))
                raise SlideError(f"{path.name} is truncated: its index lists {listed} of {tiles} tiles; copy it again")
            if min(plane.offsets.min(), plane.counts.min()) < 0:
                raise SlideError(f"{path.name} is damaged: its index lists tiles before its beginning; copy it again")
            end = int((plane.offsets + plane.counts).max())
            if end > length:
                raise SlideError(f"{path.name} is truncated: its pixels reach to byte {end} of {length}; copy it again")


def require_whole_index(path: Path) -> None:
    """Follow the chain of a TIFF's page tables, where OpenSlide and tifffile only say "no slide".

    Raises:
        SlideError: a table lies past the end of the file.
    """
    with path.open("rb") as stream:
        head = stream.read(16)
        if len(head) < 16:
            raise SlideError(f"{path.name} is truncated: only {len(head)} bytes are left; copy it again")
        order = "<" if head[:2] == b"II" else ">"
        is_big = struct.unpack(order + "H", head[2:4])[0] == 43
        (offset,) = struct.unpack(order + "Q", head[8:16]) if is_big else struct.unpack(order + "I", head[4:8])
        for _ in range(_MAX_IFDS):
            if offset == 0:
                return
            following = _next_ifd(stream, offset, order, is_big)
            if following is None:
                end = path.stat().st_size
                raise SlideError(
                    f"{path.name} is truncated: its index goes on at byte {offset} of {end}; copy it again"
                )
            offset = following


def _next_ifd(stream: BinaryIO, offset: int, order: str, is_big: bool) -> int | None:
    """The pointer at the end of one page table, or None if the file ends before it."""
    count_format, pointer_format, entry = (order + "Q", order + "Q", 20) if is_big else (order + "H", order + "I", 12)
    if offset > os.fstat(stream.fileno()).st_size:  # systems refuse to look as far as a damaged file may say
        return None
    stream.seek(offset)
    raw = stream.read(struct.calcsize(count_format))
    if len(raw) < struct.calcsize(count_format):
        return None
    stream.seek(min(struct.unpack(count_format, raw)[0] * entry, _MAX_TABLE_BYTES), os.SEEK_CUR)
    tail = stream.read(struct.calcsize(pointer_format))
    return struct.unpack(pointer_format, tail)[0] if len(tail) == struct.calcsize(pointer_format) else None


def _plain_pages(tiff: tifffile.TiffFile) -> list[tuple[Any, ...]]:
    """Page 0 and its reductions: its SubIFDs if it has any, else the other tiled pages of the same shape."""
    first = tiff.pages[0].aspage()
    others = first.pages if first.subifds else tiff.pages[1:]
    pages = [page.aspage() for page in others or ()]
    return [(first,), *((page,) for page in pages if page.is_tiled and _is_reduction(first, page))]


def _ome_pages(tiff: tifffile.TiffFile) -> list[tuple[Any, ...]]:
    """The pages of each level of an OME-TIFF's first image: one RGB page, or three grey ones."""
    series = tiff.series[0]
    first = series.pages[0].aspage()
    if first.samplesperpixel == 1 and len(series.pages) != 3:
        raise SlideError(
            f"{tiff.filename} holds {len(series.pages)} grey channels ({series.axes} = {series.shape}), "
            "not an RGB picture; give the H&E slide"
        )
    return [tuple(page.aspage() for page in level.pages) for level in series.levels]


def _is_reduction(first: Any, page: Any) -> bool:
    """Whether a page shows the same as the first one, smaller (both edges agree to within a pixel of rounding)."""
    shrink = max(first.imagewidth / page.imagewidth, first.imagelength / page.imagelength)
    slack = 2 * shrink
    return bool(
        shrink > 1
        and abs(page.imagewidth * shrink - first.imagewidth) <= slack
        and abs(page.imagelength * shrink - first.imagelength) <= slack
    )


def _level(pages: tuple[Any, ...]) -> TiffLevel:
    """One level out of its pages, which are checked."""
    for page in pages:
        if problem := _problem(page):
            raise LayoutError(f"the fast TIFF path does not read {problem}")
    first = pages[0]
    require_sane(first.parent.filename, first.imagewidth, first.imagelength, first.tilewidth, first.tilelength)
    grid = TileLevel(Size(first.imagewidth, first.imagelength), Size(first.tilewidth, first.tilelength))
    if len(pages) == 1 and first.samplesperpixel == 3 and first.planarconfig == 1:
        return TiffLevel(grid, (_plane(first, 0, None),))
    if len(pages) == 1 and first.samplesperpixel == 3:
        tiles = len(first.dataoffsets) // 3
        return TiffLevel(grid, tuple(_plane(first, sample * tiles, tiles) for sample in range(3)))
    if len(pages) == 3 and all(page.samplesperpixel == 1 for page in pages):
        return TiffLevel(grid, tuple(_plane(page, 0, None) for page in pages))
    raise LayoutError(f"the fast TIFF path does not read {len(pages)} pages of {first.samplesperpixel} samples")


def _plane(page: Any, start: int, tiles: int | None) -> Plane:
    stop = None if tiles is None else start + tiles
    return Plane(
        decode=page.decode,
        jpegtables=page.jpegtables,
        offsets=np.asarray(page.dataoffsets[start:stop], np.int64),
        counts=np.asarray(page.databytecounts[start:stop], np.int64),
        first_index=start,
        is_jpeg=int(page.compression) == _JPEG,
        claimed=_CLAIMS.get(int(page.compression)),
    )


def _problem(page: Any) -> str | None:
    """What keeps a page out of the fast path, in words, or None."""
    if not page.is_tiled:
        return "pages that are not tiled"
    if page.bitspersample != 8 or page.dtype != np.uint8:
        return f"{page.dtype} samples"
    if int(page.photometric) not in {_RGB, _YCBCR, _GREY}:
        return f"photometric interpretation {page.photometric}"
    if int(page.photometric) == _YCBCR and int(page.compression) != _JPEG:
        return "YCbCr without JPEG"
    if int(page.compression) not in _COMPRESSIONS:
        return f"compression {page.compression}"
    return None
