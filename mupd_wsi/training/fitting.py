"""What is fitted to the training data besides the weights: the target transform and the calibration curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from mupd_wsi.model.calibration import Calibration
from mupd_wsi.model.transform import TargetTransform
from mupd_wsi.normalising import StainProfile, stain_profile
from mupd_wsi.tissue import glass_color

KNOTS = 64
BINS = 1024

HIGH_QUANTILE = 0.998  # of all pixels, that is shown at full strength
MIN_HIGH = 1.0  # grey levels; keeps the noise of a blank channel from being blown up
POSITIVE_SHARE = 0.25  # of the real stain's high end: from there on a real pixel counts as positive
SHOWN_AREA = {"mean": 2.5, "sample": 1.0}  # times the real positive area that is shown: a read-out's edges are soft


def fit_transform(planes: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> TargetTransform:
    """Mean and standard deviation of the roots of intensities on tissue.

    Args:
        planes: uint8 (N, C, H, W).
        tissue: bool (N, H/p, W/p) for some patch side p.
    """
    patch = planes.shape[2] // tissue.shape[1]
    counts = np.zeros((planes.shape[1], 256), np.int64)
    for tile, mask in zip(planes, tissue, strict=True):
        inside = np.kron(mask, np.ones((patch, patch), bool))
        for channel, plane in enumerate(tile):
            counts[channel] += np.bincount(plane[inside], minlength=256)
    roots = np.sqrt(np.arange(256))
    total = counts.sum(axis=1)
    mean = counts @ roots / total
    std = np.sqrt(counts @ roots**2 / total - mean**2)
    return TargetTransform(tuple(np.round(mean, 5).tolist()), tuple(np.round(np.maximum(std, 1e-3), 5).tolist()))


@dataclass
class CurveCounts:
    """Histogram of predicted roots (BINS even bins over 0-16) with the sum of real intensities in each, a channel each.

    Roots of 8-bit intensities end at 15.97, so the bins hold every prediction that can be meant.
    """

    pixels: NDArray[np.int64]
    intensity: NDArray[np.float64]

    @classmethod
    def empty(cls, channels: int) -> CurveCounts:
        """Counts of nothing yet."""
        return cls(np.zeros((channels, BINS), np.int64), np.zeros((channels, BINS)))

    def add(self, roots: NDArray[np.float32], intensities: NDArray[np.uint8]) -> None:
        """Count a tile; ``roots`` and ``intensities`` (C, H, W)."""
        for channel, (predicted, real) in enumerate(zip(roots, intensities, strict=True)):
            bins = np.clip(predicted.ravel() * (BINS / 16), 0, BINS - 1).astype(np.int64)
            self.pixels[channel] += np.bincount(bins, minlength=BINS)
            self.intensity[channel] += np.bincount(bins, real.ravel(), minlength=BINS)

    def match(self, levels: NDArray[np.int64]) -> Calibration:
        """The rising curve that gives predicted roots the distribution of the real intensities (histogram matching).

        Args:
            levels: histogram of the real intensities of the same pixels, (C, 256).
        """
        curves = []
        for pixels, counts in zip(self.pixels, levels, strict=True):
            held = np.flatnonzero(pixels)
            values = np.interp(_mid_ranks(pixels[held]), _mid_ranks(counts), np.arange(256.0))
            curves.append((pixels[held], (held + 0.5) * (16 / BINS), values))
        return _even_knots(curves)

    def fit(self) -> Calibration:
        """Isotonic regression of real intensity on predicted root, resampled at KNOTS even knots a channel.

        It is the best rising function of the prediction in the sense of least squares (Barlow and Brunk, JASA 67 (1972)
        140-147), and its mean over the counted pixels equals the real mean. The top 1e-5 of the pixels share one knot.
        """
        curves = []
        for pixels, intensity in zip(self.pixels, self.intensity, strict=True):
            held = np.flatnonzero(pixels)
            weights = pixels[held].astype(np.float64)
            values = isotonic_regression(intensity[held] / weights, weights=weights).x
            curves.append((pixels[held], (held + 0.5) * (16 / BINS), values))
        return _even_knots(curves)


def _mid_ranks(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the pixels below the middle of each bin."""
    return np.asarray((np.cumsum(counts) - counts / 2) / counts.sum())


def _even_knots(curves: Sequence[tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]]) -> Calibration:
    """KNOTS even knots a channel, from (pixels, root, intensity) of its bins; the top 1e-5 of the pixels share one."""
    low, high, intensities = [], [], []
    for pixels, roots, values in curves:
        top = roots[np.searchsorted(np.cumsum(pixels), (1 - 1e-5) * pixels.sum())]
        low.append(float(roots[0]))
        high.append(float(max(top, roots[0] + 16 / BINS)))
        knots = np.interp(np.linspace(low[-1], high[-1], KNOTS), roots, values)
        intensities.append(tuple(np.round(knots, 4).tolist()))
    return Calibration(tuple(low), tuple(high), tuple(intensities))


def display_windows(
    pixels: NDArray[np.int64], calibration: Calibration, real: NDArray[np.uint8], shown_area: float
) -> tuple[tuple[float, float], ...]:
    """Windows, one a channel, in which a prediction shows as much positive area as the real stain has.

    What a read-out predicts of a sparse marker is a haze with crests where the cells are. It is shown from the level
    that ``shown_area`` times the really positive area exceeds, up to its own upper quantile.

    Args:
        pixels: histogram of predicted roots on some tiles, (C, BINS) as in :class:`CurveCounts`.
        calibration: from those roots to intensities.
        real: uint8 (N, C, H, W), of these tiles.
        shown_area: see :data:`SHOWN_AREA`.
    """
    windows = []
    for channel, counts in enumerate(pixels):
        levels = np.cumsum(np.bincount(real[:, channel].ravel(), minlength=256)) / real[:, channel].size
        real_high = max(MIN_HIGH, float(np.searchsorted(levels, HIGH_QUANTILE)))
        positive = float(1 - levels[int(POSITIVE_SHARE * real_high)])
        shares = (1 - min(0.9, shown_area * positive), HIGH_QUANTILE)
        bins = np.searchsorted(np.cumsum(counts), np.multiply(shares, counts.sum()))
        roots = torch.as_tensor((bins + 0.5) * (16 / BINS), dtype=torch.float32)
        low, high = calibration.apply(roots, channel).tolist()
        high = max(MIN_HIGH, round(high, 3))
        windows.append((round(min(low, high / 2), 3), high))
    return tuple(windows)


def fit_stain_reference(he: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> StainProfile | None:
    """The H&E staining of the training tiles.

    Args:
        he: uint8 (N, H, W, 3).
        tissue: bool (N, H/p, W/p) for some patch side p.
    """
    patch = he.shape[1] // tissue.shape[1]
    thumbnail = np.concatenate(he[:, ::16, ::16])
    squares = [
        tile[y * patch : (y + 1) * patch : 2, x * patch : (x + 1) * patch : 2]
        for tile, mask in zip(he, tissue, strict=True)
        for y, x in np.argwhere(mask)[::5]
    ]
    return stain_profile(np.stack(squares), glass_color(thumbnail))
