"""Separable resampling in which a pixel depends on its absolute position alone.

Overlapping tiles and regions of interest must see identical bytes, so the weights come from absolute coordinates in
float64 and every output pixel is summed in the same order in float32, whatever region was asked for. (OpenCV's and
Pillow's resizers anchor their grids at the region, which is why they are not used here.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray

#: A source pixel that is covered by less than this is rounding noise, not coverage.
_EPSILON: Final = 1e-6

#: Below this many source pixels per output pixel there is too little to average, and one interpolates.
_UPSAMPLING_BELOW: Final = 0.999


@dataclass(frozen=True, slots=True)
class Taps:
    """Which source pixels make up each output pixel along one axis.

    Attributes:
        index: intp (n, k), absolute source positions, all inside the source.
        weight: float32 (n, k), each row sums to 1.
    """

    index: NDArray[np.intp]
    weight: NDArray[np.float32]

    @property
    def start(self) -> int:
        """First source position used."""
        return int(self.index.min())

    @property
    def stop(self) -> int:
        """One past the last source position used."""
        return int(self.index.max()) + 1

    @property
    def is_copy(self) -> bool:
        """Whether each output pixel is one source pixel and its neighbours are neighbours."""
        return bool((self.weight[:, 0] == 1).all() and (np.diff(self.index[:, 0]) == 1).all())


def make_taps(first: int, count: int, scale: float, extent: int) -> Taps:
    """Weights of the output pixels ``first .. first + count - 1`` along one axis.

    Args:
        first: absolute output position.
        count: output pixels, at least 1.
        scale: source pixels per output pixel. From 1 up each output pixel is the mean of the source interval
            ``[x * scale, (x + 1) * scale)`` with exact fractional coverage; below 1 it is interpolated linearly
            between pixel centres.
        extent: source pixels along the axis. Past the end the last one is repeated.
    """
    x = np.arange(first, first + count, dtype=np.float64)
    index, weight = _area(x, scale, extent) if scale >= _UPSAMPLING_BELOW else _linear(x, scale)
    return Taps(np.clip(index, 0, extent - 1), weight.astype(np.float32))


def resample(source: NDArray[np.uint8], rows: Taps, columns: Taps) -> NDArray[np.uint8]:
    """Resample an image patch.

    Args:
        source: uint8 (rows.stop - rows.start, columns.stop - columns.start, 3): exactly the pixels that the taps use.
        rows: vertical taps.
        columns: horizontal taps.

    Returns:
        uint8 (len(rows), len(columns), 3), rounded half up.
    """
    expected = (rows.stop - rows.start, columns.stop - columns.start, 3)
    if source.shape != expected:
        raise ValueError(f"resample() needs a source of shape {expected}, got {source.shape}")
    if rows.is_copy and columns.is_copy:
        return source[rows.index[:, 0] - rows.start][:, : len(columns.index)]
    # Filtering along rows of memory is several times faster, hence the two transpositions.
    tall = _filter_rows(source, rows)
    wide = _filter_rows(cast("NDArray[np.float32]", cv2.transpose(tall)), columns)
    wide += np.float32(0.5)
    np.floor(wide, out=wide)
    return cast("NDArray[np.uint8]", cv2.transpose(wide.astype(np.uint8)))


def resample_planes(planes: NDArray[Any], rows: Taps, columns: Taps) -> NDArray[np.float32]:
    """Resample channels of any number and depth, without rounding.

    Args:
        planes: numeric (C, rows.stop - rows.start, columns.stop - columns.start).
        rows: vertical taps.
        columns: horizontal taps.

    Returns:
        float32 (C, len(rows), len(columns)).
    """
    if rows.is_copy and columns.is_copy:
        kept = planes[:, rows.index[:, 0] - rows.start][:, :, : len(columns.index)]
        return np.ascontiguousarray(kept, np.float32)
    tall = np.stack([_filter_rows(plane[..., None].astype(np.float32), rows)[..., 0].T for plane in planes])
    return np.stack([_filter_rows(np.ascontiguousarray(plane)[..., None], columns)[..., 0].T for plane in tall])


def _area(x: NDArray[np.float64], scale: float, extent: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Exact coverage of the intervals ``[x * scale, (x + 1) * scale)``, cut off at the extent."""
    low = np.minimum(x * scale, extent)
    high = np.minimum((x + 1) * scale, extent)
    start = np.minimum(np.floor(low + _EPSILON), extent - 1)
    stop = np.maximum(np.ceil(high - _EPSILON), start + 1)
    index = start[:, None] + np.arange(int((stop - start).max()))
    covered = np.minimum(high[:, None], index + 1) - np.maximum(low[:, None], index)
    covered = np.where(index < stop[:, None], np.maximum(covered, 0), 0)
    covered[covered.sum(axis=1) < _EPSILON, 0] = 1  # wholly past the end
    return index.astype(np.intp), covered / covered.sum(axis=1, keepdims=True)


def _linear(x: NDArray[np.float64], scale: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Linear interpolation at the centres of the output pixels."""
    centre = (x + 0.5) * scale - 0.5
    start = np.floor(centre)
    fraction = centre - start
    index = start[:, None] + np.arange(2)
    return index.astype(np.intp), np.stack([1 - fraction, fraction], axis=1)


def _filter_rows(source: NDArray[np.uint8] | NDArray[np.float32], taps: Taps) -> NDArray[np.float32]:
    """Weighted sums of whole rows: (h, w, 3) -> float32 (n, w, 3)."""
    height, width, samples = source.shape
    flat = source.reshape(height, width * samples)
    local = taps.index - taps.start
    total = np.zeros((len(local), width * samples), np.float32)
    for tap in range(local.shape[1]):
        total += flat[local[:, tap]] * taps.weight[:, tap, None]
    return total.reshape(len(local), width, samples)
