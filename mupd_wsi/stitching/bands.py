"""Crop-and-keep: every output pixel belongs to the core of exactly one tile, and is taken from there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.geometry import Region, Size

#: Rows of the output: where (``x == 0``, full width, output pixels counted from the image's own top left corner),
#: and uint8 (samples, height, width).
Band = tuple[Region, NDArray[np.uint8]]

_PLANE_BY_PLANE: Final = np.empty((1, 1, 1), np.uint8)


class BandStitcher:
    """Puts the cores of tiles side by side and hands out finished bands of rows from top to bottom.

    Memory bound: one band, ``samples x band height x width`` bytes. It grows with the image's width and not with its
    height. A taker that still holds a band when it asks for the next one adds that band to the bound.

    Args:
        size: of the image to be made, output pixels.
        samples: planes of the image.
        background: grey level where no tile comes.
        rows: the bands in order, output pixels counted from the image's top left corner: full width, without gaps.
    """

    def __init__(self, size: Size, samples: int, background: int, rows: Iterable[Region]) -> None:
        self._size = size
        self._samples = samples
        self._background = background
        self._rows = tuple(rows)
        _check_cover(self._rows, size)

    def bands(self, cores: Iterable[tuple[Region, NDArray[np.uint8]]]) -> Iterator[Band]:
        """Take cores in raster order, give every band once, in order, as soon as no later core can touch it.

        A band lies in memory as the first of its cores does (:mod:`mupd_wsi.layout`).

        Args:
            cores: where (inside one band; output pixels counted from the image's top left corner), and
                uint8 (samples, height, width).

        Raises:
            ValueError: a core lies outside the band whose turn it is, or its pixels have another shape than it.
        """
        waiting = iter(self._rows)
        rows, pixels = next(waiting), None
        for where, part in cores:
            while where.y >= rows.bottom:
                yield rows, self._blank(rows) if pixels is None else pixels
                pixels = None  # before the next one is made
                rows = _following(waiting, where)
            if pixels is None:
                pixels = self._blank(rows, part)
            self._paste(rows, pixels, where, part)
        yield rows, self._blank(rows) if pixels is None else pixels
        pixels = None
        for rows in waiting:
            yield rows, self._blank(rows)

    def _blank(self, rows: Region, like: NDArray[np.uint8] = _PLANE_BY_PLANE) -> NDArray[np.uint8]:
        shape = (self._samples, rows.height, rows.width)
        return np.full_like(like, self._background, shape=shape)

    def _paste(self, rows: Region, pixels: NDArray[np.uint8], where: Region, part: NDArray[np.uint8]) -> None:
        if not rows.contains(where):
            raise ValueError(f"core {where} is not inside the band {rows}: tiles must come in raster order")
        expected = (self._samples, where.height, where.width)
        if part.shape != expected:
            raise ValueError(f"core {where} needs pixels of shape {expected}, got {part.shape}")
        y = where.y - rows.y
        pixels[:, y : y + where.height, where.x : where.right] = part


def _following(waiting: Iterator[Region], where: Region) -> Region:
    try:
        return next(waiting)
    except StopIteration:
        raise ValueError(f"core {where} lies below the image") from None


def _check_cover(rows: tuple[Region, ...], size: Size) -> None:
    y = 0
    for band in rows:
        if band.x != 0 or band.width != size.width or band.y != y:
            raise ValueError(f"bands must be full width and follow each other, got {band} at row {y} of {size}")
        y = band.bottom
    if y != size.height:
        raise ValueError(f"bands end at row {y} of {size}")
