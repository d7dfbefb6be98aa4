"""Agreement of a virtual with a real marker image, accumulated tile by tile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

PATCHES = (1, 8, 64)


def moment_sums(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Sums of 1, x, y, xx, yy and xy of paired values, both (C, N): (C, 6). Those of several tiles may be added."""
    a, b = x.astype(np.float64), y.astype(np.float64)
    columns = (np.ones_like(a), a, b, a * a, b * b, a * b)
    return np.stack([column.sum(axis=1) for column in columns], axis=1)


def pearson_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's correlation from sums (..., 6) as :func:`moment_sums` makes them; NaN where a side does not vary."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = (n * xx - x * x) * (n * yy - y * y)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(spread > 0, (n * xy - x * y) / np.sqrt(np.maximum(spread, 0)), np.nan))


@dataclass
class Moments:
    """Running sums for Pearson's correlation of paired values, one row a channel. Memory does not grow."""

    sums: NDArray[np.float64]  # (C, 6): n, x, y, xx, yy, xy

    def add(self, real: NDArray[np.float32], virtual: NDArray[np.float32]) -> None:
        """Count pairs; both (C, N)."""
        self.sums += moment_sums(real, virtual)

    def pearson(self) -> NDArray[np.float64]:
        """Correlation, one a channel; NaN where either side does not vary."""
        return pearson_of(self.sums)

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean of the real and of the virtual values, one a channel."""
        return self.sums[:, 1] / self.sums[:, 0], self.sums[:, 2] / self.sums[:, 0]


@dataclass
class Agreement:
    """Pearson's correlation at the pixel and over patches of 8 and 64 px, over all tiles added.

    Attributes:
        channels: markers of both images.
    """

    channels: int
    _moments: dict[int, Moments] = field(init=False)

    def __post_init__(self) -> None:
        self._moments = {p: Moments(np.zeros((self.channels, 6))) for p in PATCHES}

    def add(self, real: NDArray[np.uint8], virtual: NDArray[np.float32]) -> None:
        """Count a tile; both (C, H, W), H and W multiples of 64."""
        for patch, moments in self._moments.items():
            moments.add(patch_means(real, patch), patch_means(virtual, patch))

    def summary(self) -> list[dict[str, float]]:
        """One row a channel: ``pearson_1px``, ``pearson_8px``, ``pearson_64px`` and ``mean_ratio`` (virtual / real)."""
        correlations = {f"pearson_{p}px": m.pearson() for p, m in self._moments.items()}
        real, virtual = self._moments[1].means()
        columns = correlations | {"mean_ratio": virtual / np.maximum(real, 1e-9)}
        return [{name: round(float(v[c]), 4) for name, v in columns.items()} for c in range(self.channels)]


def patch_means(planes: NDArray[np.uint8] | NDArray[np.float32], patch: int) -> NDArray[np.float32]:
    """(C, H, W) to (C, N) means over squares."""
    c, h, w = planes.shape
    squares = planes.reshape(c, h // patch, patch, w // patch, patch)
    return np.asarray(squares.mean(axis=(2, 4), dtype=np.float32).reshape(c, -1))
