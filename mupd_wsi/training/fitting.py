"""What is fitted to the training data besides the weights: the target transform and the calibration curves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from mupd_wsi.model.calibration import Calibration
from mupd_wsi.model.transform import TargetTransform

KNOTS = 64
BINS = 1024

HIGH_QUANTILE = 0.998  # of all pixels, that is shown at full strength
MIN_HIGH = 1.0  # grey levels; keeps the noise of a blank channel from being blown up
POSITIVE_SHARE = 0.25  # of the real stain's high end: from there on a real pixel counts as positive
SHOWN_AREA = 2.5  # the read-out shows this many times the real positive area, for its edges are soft


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

    def add(self, channel: int, roots: NDArray[np.float32], intensities: NDArray[np.uint8]) -> None:
        """Count pixels; ``roots`` and ``intensities`` of one shape."""
        bins = np.clip(roots.ravel() * (BINS / 16), 0, BINS - 1).astype(np.int64)
        self.pixels[channel] += np.bincount(bins, minlength=BINS)
        self.intensity[channel] += np.bincount(bins, intensities.ravel(), minlength=BINS)

    def fit(self) -> Calibration:
        """Isotonic regression of real intensity on predicted root, resampled at KNOTS even knots a channel.

        It is the best rising function of the prediction in the sense of least squares (Barlow and Brunk, JASA 67 (1972)
        140-147), and its mean over the counted pixels equals the real mean. The top 1e-5 of the pixels share one knot.
        """
        low, high, curves = [], [], []
        for pixels, intensity in zip(self.pixels, self.intensity, strict=True):
            held = np.flatnonzero(pixels)
            centres, weights = (held + 0.5) * (16 / BINS), pixels[held].astype(np.float64)
            values = isotonic_regression(intensity[held] / weights, weights=weights).x
            top = centres[np.searchsorted(np.cumsum(weights), (1 - 1e-5) * weights.sum())]
            low.append(float(centres[0]))
            high.append(float(max(top, centres[0] + 16 / BINS)))
            curves.append(
                tuple(np.round(np.interp(np.linspace(low[-1], high[-1], KNOTS), centres, values), 4).tolist())
            )
        return Calibration(tuple(low), tuple(high), tuple(curves))


def display_windows(
    counts: CurveCounts, calibration: Calibration, real: NDArray[np.uint8]
) -> dict[str, tuple[tuple[float, float], ...]]:
    """Display windows by read-out, as :class:`mupd_wsi.model.bundle.ModelInfo` has them.

    A draw looks like the real stain and is shown from 0 to the real stain's upper quantile. The conditional mean of a
    sparse marker is a haze with crests where the cells are: it is shown from the level that as much area exceeds as
    is really positive (times SHOWN_AREA) up to its own upper quantile.

    Args:
        counts: predicted roots on training tiles.
        calibration: the curves fitted to them.
        real: uint8 (N, C, H, W), all training tiles.
    """
    mean, sample = [], []
    for channel, pixels in enumerate(counts.pixels):
        levels = np.cumsum(np.bincount(real[:, channel].ravel(), minlength=256)) / real[:, channel].size
        high = max(MIN_HIGH, float(np.searchsorted(levels, HIGH_QUANTILE)))
        sample.append((0.0, high))
        positive = 1 - levels[int(POSITIVE_SHARE * high)]
        shares = (1 - min(0.9, SHOWN_AREA * float(positive)), HIGH_QUANTILE)
        bins = np.searchsorted(np.cumsum(pixels), np.multiply(shares, pixels.sum()))
        roots = torch.as_tensor((bins + 0.5) * (16 / BINS), dtype=torch.float32)
        low, top = calibration.apply(roots, channel).tolist()
        top = max(MIN_HIGH, round(top, 3))
        mean.append((round(min(low, top / 2), 3), top))
    return {"mean": tuple(mean), "sample": tuple(sample)}
