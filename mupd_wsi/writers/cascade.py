"""Cuts a stream of rows into strips of tiles, at every level of the pyramid as it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from mupd_wsi.errors import OutputError
from mupd_wsi.geometry import Region, Size

TILE: Final = 512

#: Takes (level, y, strip): strip is uint8 (samples, h, level width), h = TILE but for a level's last strip, and only
#: valid during the call.
StripSink = Callable[[int, int, NDArray[np.uint8]], None]


def level_sizes(size: Size) -> tuple[Size, ...]:
    """Sizes of a pyramid: each level half of the one before, rounded up, until one tile holds it."""
    sizes = [size]
    while max(sizes[-1].width, sizes[-1].height) > TILE:
        sizes.append(Size((sizes[-1].width + 1) // 2, (sizes[-1].height + 1) // 2))
    return tuple(sizes)


class PyramidCascade:
    """Takes bands of level-0 rows, and hands on strips of every level, each row of each level exactly once.

    Memory bound: below ``2 * samples * width * TILE`` bytes (a strip a level, each level half as wide), plus a quarter
    of that while a strip is halved. It does not depend on the height.
    """

    def __init__(self, size: Size, samples: int, sink: StripSink) -> None:
        self._sizes = level_sizes(size)
        self._samples = samples
        self._sink = sink
        self._strips = [np.empty((samples, min(TILE, s.height), s.width), np.uint8) for s in self._sizes]
        self._done = [0] * len(self._sizes)

    @property
    def rows_written(self) -> int:
        """Level-0 rows taken so far."""
        return self._done[0]

    def add(self, rows: Region, pixels: NDArray[np.uint8]) -> None:
        """Append a band, see :meth:`mupd_wsi.writers.spec.SlideWriter.write`.

        Raises:
            ValueError: the band is not the next one, not of full width, or not of the shape that its region says.
        """
        size = self._sizes[0]
        if (rows.x, rows.y, rows.width) != (0, self._done[0], size.width) or rows.bottom > size.height:
            raise ValueError(f"expected full-width rows from {self._done[0]} of an image of {size}, got {rows}")
        if pixels.shape != (self._samples, rows.height, rows.width) or pixels.dtype != np.uint8:
            expected = (self._samples, rows.height, rows.width)
            raise ValueError(f"expected uint8 pixels of shape {expected}, got {pixels.dtype} {pixels.shape}")
        self._append(0, pixels)

    def require_complete(self) -> None:
        """Check that all rows have come.

        Raises:
            OutputError: some are missing.
        """
        if self._done[0] != self._sizes[0].height:
            raise OutputError(f"only {self._done[0]} of {self._sizes[0].height} rows were written; run it again")

    def _append(self, level: int, pixels: NDArray[np.uint8]) -> None:
        strip, height = self._strips[level], self._sizes[level].height
        taken = 0
        while taken < pixels.shape[1]:
            filled = self._done[level] % TILE
            step = min(strip.shape[1] - filled, pixels.shape[1] - taken)
            strip[:, filled : filled + step] = pixels[:, taken : taken + step]
            taken += step
            self._done[level] += step
            if self._done[level] % TILE == 0 or self._done[level] == height:
                self._hand_on(level, strip[:, : filled + step])

    def _hand_on(self, level: int, strip: NDArray[np.uint8]) -> None:
        self._sink(level, self._done[level] - strip.shape[1], strip)
        if level + 1 < len(self._sizes):
            self._append(level + 1, halved(strip))


def halved(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means over 2 x 2 pixels, rounded: (C, h, w) to (C, h/2, w/2), up. An odd last row or column counts twice."""
    c, h, w = planes.shape
    out = np.empty((c, (h + 1) // 2, (w + 1) // 2), np.uint8)
    for source, target in zip(planes, out, strict=True):
        if not (source != source[0, 0]).any():
            target[:] = source[0, 0]
            continue
        even = np.pad(source, ((0, h % 2), (0, w % 2)), mode="edge") if h % 2 or w % 2 else source
        cv2.resize(even, (target.shape[1], target.shape[0]), dst=target, interpolation=cv2.INTER_AREA)
    return out
