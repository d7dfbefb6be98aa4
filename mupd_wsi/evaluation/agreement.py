"""Agreement of a virtual with a real marker image, accumulated tile by tile."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PATCHES = (1, 8, 64)


@dataclass
class Moments:
    """Running sums for Pearson's correlation of paired values, one row a channel. Memory does not grow."""

    sums: NDArray[np.float64]  # (C, 6): n, x, y, xx, yy, xy

    def add(self, real: NDArray[np.float32], virtual: NDArray[np.float32]) -> None:
        """Count pairs; both (C, N)."""
        x, y = real.astype(np.float64), virtual.astype(np.float64)
        columns = (np.ones_like(x), x, y, x * x, y * y, x * y)
        self.sums += np.stack([column.sum(axis=1) for column in columns], axis=1)

    def pearson(self) -> NDArray[np.float64]:
        """Correlation, one a channel; NaN where either side does not vary."""
        n, x, y, xx, yy, xy = self.sums.T
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y)))

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
            moments.add(_patch_means(real, patch), _patch_means(virtual, patch))

    def summary(self) -> list[dict[str, float]]:
        """One row a channel: ``pearson_1px``, ``pearson_8px``, ``pearson_64px`` and ``mean_ratio`` (virtual / real)."""
        correlations = {f"pearson_{p}px": m.pearson() for p, m in self._moments.items()}
        real, virtual = self._moments[1].means()
        columns = correlations | {"mean_ratio": virtual / np.maximum(real, 1e-9)}
        return [{name: round(float(v[c]), 4) for name, v in columns.items()} for c in range(self.channels)]


def _patch_means(planes: NDArray[np.uint8] | NDArray[np.float32], patch: int) -> NDArray[np.float32]:
    """(C, H, W) to (C, N) means over squares."""
    c, h, w = planes.shape
    squares = planes.reshape(c, h // patch, patch, w // patch, patch)
    return np.asarray(squares.mean(axis=(2, 4), dtype=np.float32).reshape(c, -1))
