"""From bands of rows to encoded tiles of every pyramid level, streamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from mupd_wsi.geometry import Size
from mupd_wsi.layout import as_planes, lies_by_pixel
from mupd_wsi.lookahead import in_order

Pixels = NDArray[np.uint8]

#: Side of a tile in every output, px. Even, so that the 2 x 2 px blocks of a coarser level never straddle tiles.
TILE: Final = 512
#: More threads than this gain nothing beside a network that wants the cores.
MAX_THREADS: Final = 4
#: Tiles per thread that may be encoded before the first of them is taken.
AHEAD_PER_THREAD: Final = 4


def level_sizes(size: Size, largest: int = TILE) -> tuple[Size, ...]:
    """Sizes of all levels, the image itself first.

    Each level has half the pixels of the one above, rounded up, so pixel (x, y) of level n covers exactly the image's
    ``[x * 2**n, (x + 1) * 2**n)``, cut off at the image's edge.

    Args:
        size: of the image.
        largest: the last level's longer side is at most this.
    """
    sizes = [size]
    while max(sizes[-1].width, sizes[-1].height) > largest:
        sizes.append(Size(-(-sizes[-1].width // 2), -(-sizes[-1].height // 2)))
    return tuple(sizes)


def halved(pixels: Pixels) -> Pixels:
    """The next level: means of 2 x 2 px, halves rounded up; an odd last row or column counts twice.

    Args:
        pixels: uint8 (planes, h, w).

    Returns:
        uint8 (planes, ceil(h / 2), ceil(w / 2)), in memory as the pixels are (:mod:`mupd_wsi.layout`).
    """
    if lies_by_pixel(pixels):
        return as_planes(_halved_picture(pixels.transpose(1, 2, 0)))
    return np.stack([_halved_picture(plane) for plane in pixels])


def _halved_picture(picture: Pixels) -> Pixels:
    """uint8 (h, w) or (h, w, planes)."""
    height, width = picture.shape[:2]
    if height % 2 or width % 2:
        picture = np.asarray(
            cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE), np.uint8
        ).reshape(height + height % 2, width + width % 2, *picture.shape[2:])
    size = (picture.shape[1] // 2, picture.shape[0] // 2)
    # For exactly half the size, INTER_AREA is the rounded mean, and 100 times as fast as numpy's.
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8).reshape(size[1], size[0], *picture.shape[2:])


def filled_up(pixels: Pixels, side: int) -> Pixels:
    """A tile at the right or bottom edge, filled up with its last pixels.

    Args:
        pixels: uint8 (planes, h, w), at most ``side`` each way.
        side: of a tile.

    Returns:
        uint8 (planes, side, side).
    """
    if pixels.shape[1:] == (side, side):
        return pixels
    return np.pad(pixels, ((0, 0), (0, side - pixels.shape[1]), (0, side - pixels.shape[2])), mode="edge")


@dataclass(frozen=True, slots=True)
class TilePlace:
    """Where a tile belongs.

    Attributes:
        level: 0 is the image itself.
        row: of tiles, from the top.
        group: planes that share a tile are one group: all three of an interleaved RGB image, else one each.
        column: of tiles, from the left.
    """

    level: int
    row: int
    group: int
    column: int


@dataclass(frozen=True, slots=True)
class TileFormat:
    """How pixels become tiles.

    Attributes:
        encode: uint8 (planes of a group, side, side) -> bytes; runs in threads, and should let go of Python's lock.
        planes: of one group.
        background: grey level of tiles that are not encoded at all.
        side: of a tile, px, even; tiles at the right and bottom edges are filled up with their last pixels.
    """

    encode: Callable[[Pixels], bytes]
    planes: int
    background: int
    side: int = TILE


#: Takes every tile of every level once, None for one that is all background. Within a level tiles come by row, in it by
#: group, in it by column, so a tile row of a level is complete with its last group's last column.
TakeTile = Callable[[TilePlace, bytes | None], None]


class PyramidCutter:
    """Cuts an image that comes in rows into encoded tiles of all levels, and hands each on as soon as it is complete.

    Memory bound: ``2 * planes * side * width`` bytes of pixels (one row of tiles of every level; level 0's, which is
    half of it, only if bands do not begin and end on tile rows), plus ``(4 + 1) * threads`` tiles being encoded.
    Nothing grows with the image's height. A ``take`` that keeps the tiles in memory breaks the bound.

    Args:
        size: of the image.
        planes: of the image; a multiple of the format's.
        tiles: how pixels become tiles.
        take: where the tiles go; called in the caller's thread.
        threads: that encode; None: by the number of cores.
    """

    def __init__(self, size: Size, planes: int, tiles: TileFormat, take: TakeTile, threads: int | None = None) -> None:
        if planes % tiles.planes or tiles.side % 2:
            raise ValueError(f"{planes} planes in groups of {tiles.planes}, tiles of {tiles.side} px do not fit")
        self.sizes: Final = level_sizes(size, tiles.side)
        self._planes = planes
        self._tiles = tiles
        self._take = take
        self._threads = threads or min(MAX_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._threads, "mupd-encode")
        self._buffers: dict[int, Pixels] = {}
        self._rows = 0

    @property
    def rows(self) -> int:
        """Rows of the image that have come so far."""
        return self._rows

    def add(self, band: Pixels) -> None:
        """Take the next rows of the image.

        Args:
            band: uint8 (planes, h, width of the image), not beyond the image's last row.
        """
        side, height = self._tiles.side, self.sizes[0].height
        taken = 0
        while taken < band.shape[1]:
            row, filled = divmod(self._rows, side)
            room = min(side, height - row * side)
            count = min(room - filled, band.shape[1] - taken)
            part = band[:, taken : taken + count]
            self._rows += count
            taken += count
            if count == room:
                self._cut(0, row, part)
                continue
            buffer = self._buffer(0, band)
            buffer[:, filled : filled + count] = part
            if filled + count == room:
                self._cut(0, row, buffer[:, :room])

    def close(self) -> None:
        """Stop the threads and let go of the buffers, whether the image is complete or not."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._buffers.clear()

    def _buffer(self, level: int, like: Pixels) -> Pixels:
        """One row of tiles of a level, in memory as what comes first for it."""
        if level not in self._buffers:
            shape = (self._planes, self._tiles.side, self.sizes[level].width)
            self._buffers[level] = np.empty_like(like, shape=shape)
        return self._buffers[level]

    def _cut(self, level: int, row: int, pixels: Pixels) -> None:
        """One complete row of tiles, uint8 (planes, h, level's width): encode it, and add it to the coarser level."""
        tiles = self._tiles
        below = None
        start = row % 2 * tiles.side // 2
        if level + 1 < len(self.sizes):
            below = self._buffer(level + 1, pixels)[:, start : start + -(-pixels.shape[1] // 2)]

        def work(place: TilePlace) -> bytes | None:
            planes = slice(place.group * tiles.planes, (place.group + 1) * tiles.planes)
            columns = slice(place.column * tiles.side, (place.column + 1) * tiles.side)
            half = slice(columns.start // 2, columns.stop // 2)
            return self._tile(pixels[planes, :, columns], None if below is None else below[planes, :, half])

        groups, columns = self._planes // tiles.planes, -(-pixels.shape[2] // tiles.side)
        places = (TilePlace(level, row, group, column) for group in range(groups) for column in range(columns))
        for place, encoded in in_order(self._pool, work, places, self._threads * AHEAD_PER_THREAD):
            self._take(place, encoded)
        if below is not None and (start or (row + 1) * tiles.side >= self.sizes[level].height):
            self._cut(level + 1, row // 2, self._buffer(level + 1, pixels)[:, : start + below.shape[1]])

    def _tile(self, pixels: Pixels, below: Pixels | None) -> bytes | None:
        """Encode one tile, uint8 (planes of a group, h, w), and write its half size into the coarser level's place."""
        background = self._tiles.background
        if pixels[0, 0, 0] == background and (pixels == background).all():
            if below is not None:
                below[...] = background
            return None
        if below is not None:
            below[...] = halved(pixels)
        return self._tiles.encode(filled_up(pixels, self._tiles.side))
