"""Whether a draw looks like a stain: as much of it, as bright, as grainy, and in as many cells as the real one.

Agreement of single pixels is no measure of that: the conditional mean has the best correlation there is, and no cell
can be recognised in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from mupd_wsi.evaluation.cells import cell_means

LEVELS: Final = 256
QUANTILES: Final = (0.90, 0.99, 0.999)
#: Wavelengths, px, that part the bands of the power spectrum.
WAVELENGTHS: Final = (64, 32, 16, 8, 4, 2)
WINDOW: Final = 256  # px; side of the squares that spectra are taken of
PATCH: Final = 64  # px; side of the squares in which positive cells are counted
#: What a draw has to keep: area and quantiles within a quarter, spectrum within a factor.
TOLERANCE: Final = 0.25
SPECTRUM_FACTOR: Final = 2.0
#: Grey levels; quantiles of 8-bit images that differ by no more are equal.
QUANTILE_SLACK: Final = 1.0


@dataclass
class Realism:
    """Running counts over tiles, one row a channel; memory does not grow but by what is kept of each cell.

    Attributes:
        thresholds: (C,), intensity from which on a pixel, or the mean of a cell, is positive.
    """

    thresholds: NDArray[np.float64]
    _levels: NDArray[np.int64] = field(init=False)  # (2, C, LEVELS): real, draw
    _power: NDArray[np.float64] = field(init=False)  # (2, C, bands)
    _area: NDArray[np.float64] = field(init=False)  # (2, C): positive pixels
    _pixels: int = field(init=False, default=0)
    _positive: list[NDArray[np.bool_]] = field(init=False, default_factory=list)  # (3, cells, C): real, draw, read-out
    _expected: list[NDArray[np.float32]] = field(init=False, default_factory=list)  # (cells, C): means of the read-out
    _patches: list[NDArray[np.intp]] = field(init=False, default_factory=list)  # (cells,): numbers, tile after tile

    def __post_init__(self) -> None:
        channels = len(self.thresholds)
        self._levels = np.zeros((2, channels, LEVELS), np.int64)
        self._power = np.zeros((2, channels, len(WAVELENGTHS) - 1))
        self._area = np.zeros((2, channels))

    def add(
        self,
        real: NDArray[np.uint8],
        draw: NDArray[np.float32],
        readout: NDArray[np.float32],
        cells: NDArray[np.int32],
    ) -> None:
        """Count a tile.

        Args:
            real: (C, H, W), H and W multiples of WINDOW.
            draw: likewise, 0-255.
            readout: likewise; the expected intensity, that a draw's cells have to beat.
            cells: (H, W), 0 is no cell.
        """
        images: tuple[NDArray[Any], ...] = (real, draw)
        for side, planes in enumerate(images):
            for channel, plane in enumerate(planes):
                grey = np.rint(plane).astype(np.uint8)
                self._levels[side, channel] += np.bincount(grey.ravel(), minlength=LEVELS)
                self._area[side, channel] += np.count_nonzero(plane >= self.thresholds[channel])
                self._power[side, channel] += band_power(plane)
        self._pixels += cells.size
        shown = (real.astype(np.float32), draw, readout)
        means = np.stack([cell_means(image, cells) for image in shown])
        self._positive.append(means >= self.thresholds)
        self._expected.append(means[2])
        before = self._patches[-1].max(initial=-1) + 1 if self._patches else 0
        self._patches.append(before + _patch_of_cells(cells))

    def summary(self, draw_pearson: NDArray[Any], readout_pearson: NDArray[Any]) -> list[dict[str, Any]]:
        """One row a channel: the ratios of draw to real, the errors of positive fractions, and what is kept.

        Args:
            draw_pearson: correlation with the real stain over squares of 64 px, one a channel.
            readout_pearson: the read-out's.
        """
        real, draw, readout = np.concatenate(self._positive, axis=1)
        ideal = ideal_draw(np.concatenate(self._expected), real)
        patches = np.unique(np.concatenate(self._patches), return_inverse=True)[1]
        shares = np.stack([_shares(positive, patches) for positive in (real, draw, readout, ideal)])
        errors = np.abs(shares[1:] - shares[0]).mean(axis=1)  # (3, C): draw, read-out, ideal draw
        return [
            self._row(channel, errors[:, channel], float(draw_pearson[channel] / readout_pearson[channel]))
            for channel in range(len(self.thresholds))
        ]

    def _row(self, channel: int, errors: NDArray[np.float64], pearson_ratio: float) -> dict[str, Any]:
        real, drawn = (quantiles(self._levels[side, channel]) for side in (0, 1))
        area = float(self._area[1, channel] / max(self._area[0, channel], 1))
        spectrum = self._power[1, channel] / np.maximum(self._power[0, channel], 1e-12)
        near = np.abs(drawn - real) <= np.maximum(TOLERANCE * real, QUANTILE_SLACK)
        kept = {
            "area": abs(area - 1) <= TOLERANCE,
            "quantiles": bool(near.all()),
            "spectrum": bool(((spectrum <= SPECTRUM_FACTOR) & (spectrum >= 1 / SPECTRUM_FACTOR)).all()),
            "cells": bool(errors[0] < errors[1]),
            "patches": pearson_ratio >= 0.85,
        }
        return {
            "real_area": round(float(self._area[0, channel] / self._pixels), 6),
            "area_ratio": round(area, 3),
            "real_quantiles": real.tolist(),
            "draw_quantiles": drawn.tolist(),
            "spectrum_ratio": np.round(spectrum, 3).tolist(),
            "cell_error": round(float(errors[0]), 4),
            "readout_cell_error": round(float(errors[1]), 4),
            "ideal_cell_error": round(float(errors[2]), 4),
            "pearson_64px_ratio": round(pearson_ratio, 3),
            "kept": kept,
        }


def ideal_draw(expected: NDArray[np.float32], real: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells called positive at random by their true odds, given what the read-out tells of them.

    The odds are the best rising function of the read-out (isotonic regression) on the very cells that are then drawn,
    so no draw of a model that knows no more than the read-out can have better ones.

    Args:
        expected: (cells, C), means of the read-out over each cell.
        real: (cells, C), which cells are positive.
    """
    chance = np.random.default_rng(0).random(real.shape)
    order = np.argsort(expected, axis=0)
    drawn = np.zeros_like(real)
    for channel, cells in enumerate(order.T):
        odds = isotonic_regression(real[cells, channel].astype(np.float64)).x if len(cells) else np.zeros(0)
        drawn[cells, channel] = chance[cells, channel] < odds
    return drawn


def _shares(positive: NDArray[np.bool_], patches: NDArray[np.intp]) -> NDArray[np.float64]:
    """Share of positive cells in each patch: (patches, C). Patches are numbered without gaps."""
    counts = np.bincount(patches)
    sums = [np.bincount(patches, weights=column, minlength=len(counts)) for column in positive.T]
    return np.asarray(np.stack(sums, axis=1) / np.maximum(counts, 1)[:, None])


def quantiles(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Grey levels at QUANTILES of a histogram (LEVELS,)."""
    shares = np.cumsum(counts) / counts.sum()
    return np.searchsorted(shares, QUANTILES).astype(np.float64)


def band_power(plane: NDArray[Any]) -> NDArray[np.float64]:
    """Radial power spectrum of a plane (H, W) in bands between WAVELENGTHS, summed over Hann-windowed squares.

    Returns:
        (bands,), coarsest first; the mean of each square is taken away first.
    """
    height, width = (side // WINDOW * WINDOW for side in plane.shape)
    cut = plane[:height, :width].astype(np.float32).reshape(height // WINDOW, WINDOW, width // WINDOW, WINDOW)
    squares = cut.transpose(0, 2, 1, 3).reshape(-1, WINDOW, WINDOW)
    hann = np.hanning(WINDOW).astype(np.float32)
    squares = (squares - squares.mean(axis=(1, 2), keepdims=True)) * hann[:, None] * hann
    power = (np.abs(np.fft.rfft2(squares)) ** 2).sum(axis=0)
    frequency = np.hypot(np.fft.fftfreq(WINDOW)[:, None], np.fft.rfftfreq(WINDOW))
    band = np.digitize(frequency.ravel(), [1 / w for w in WAVELENGTHS])
    return np.asarray(
        np.bincount(band, power.ravel(), minlength=len(WAVELENGTHS) + 1)[1 : len(WAVELENGTHS)], np.float64
    )


def _patch_of_cells(cells: NDArray[np.int32]) -> NDArray[np.intp]:
    """Number of the patch that holds the centre of each cell, in the order of :func:`cell_means`: (N,)."""
    labels = cells.ravel()
    rows, columns = np.indices(cells.shape, np.float32)
    counts = np.bincount(labels)
    held = np.flatnonzero(counts[1:]) + 1
    y, x = (np.bincount(labels, places.ravel())[held] / counts[held] for places in (rows, columns))
    across = -(-cells.shape[1] // PATCH)
    return np.asarray(y.astype(np.intp) // PATCH * across + x.astype(np.intp) // PATCH)
