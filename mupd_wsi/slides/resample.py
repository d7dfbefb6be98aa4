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

#: Values of a strip that is filtered at once (a quarter of a megabyte of float32).
_STRIP_VALUES: Final = 2**16

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
        return source[: len(rows.index), : len(columns.index)]
    # Filtering along rows of memory is several times faster, hence the two transpositions.
    tall = np.empty((len(rows.index), source.shape[1], 3), np.float32)
    _filter_rows(source, rows, tall)
    turned = cast("NDArray[np.float32]", cv2.transpose(tall))
    wide = np.empty((len(columns.index), len(rows.index), 3), np.uint8)
    _filter_rows(turned, columns, wide)
    return cast("NDArray[np.uint8]", cv2.transpose(wide))


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
    found = np.empty((len(planes), len(rows.index), len(columns.index)), np.float32)
    tall = np.empty((len(rows.index), planes.shape[2], 1), np.float32)
    wide = np.empty((len(columns.index), len(rows.index), 1), np.float32)
    for plane, out in zip(planes, found, strict=True):
        _filter_rows(plane[..., None].astype(np.float32), rows, tall)
        _filter_rows(np.ascontiguousarray(tall[..., 0].T)[..., None], columns, wide)
        out[:] = wide[..., 0].T
    return found


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


def _filter_rows(
    source: NDArray[np.uint8] | NDArray[np.float32], taps: Taps, out: NDArray[np.uint8] | NDArray[np.float32]
) -> None:
    """Weighted sums of whole rows: (h, w, samples) into (n, w, samples), rounded half up where that is uint8.

    A few rows at a time, so that what is summed up stays in the processor's cache.
    """
    flat, answer = source.reshape(len(source), -1), out.reshape(len(out), -1)
    local, weight = (taps.index - taps.start).T, taps.weight.T[..., None]
    count = max(1, _STRIP_VALUES // flat.shape[1])
    total, part = (np.empty((count, flat.shape[1]), np.float32) for _ in range(2))
    for start in range(0, len(answer), count):
        rows = slice(start, min(start + count, len(answer)))
        total, part = total[: rows.stop - start], part[: rows.stop - start]
        np.multiply(flat[local[0, rows]], weight[0, rows], out=total)
        for index, share in zip(local[1:, rows], weight[1:, rows], strict=True):
            np.multiply(flat[index], share, out=part)
            total += part
        if out.dtype == np.uint8:
            total += np.float32(0.5)
        answer[rows] = total  # cut to whole numbers where they are wanted: none is below 0
