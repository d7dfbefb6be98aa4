"""What is kept of each tile: sums that add up, so that tiles can be drawn anew, and a bounded number of samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from mupd_wsi.evaluation.agreement import PATCHES, moment_sums, patch_means
from mupd_wsi.evaluation.cells import cell_means, find_cells
from mupd_wsi.evaluation.pairing import PairedTile, SlidePair

#: Pixels of all tiles together that ranks and calibration are taken from.
SAMPLED_PIXELS: Final = 2**18
#: Patches of 64 px of all tiles together that a scatter plot shows.
SHOWN_PATCHES: Final = 20_000
#: Share of the real stain's upper quantile from which on a pixel or cell is positive (docs/decisions/0006).
POSITIVE_SHARE: Final = 0.25
HIGH_QUANTILE: Final = 0.998
#: Optical density of DAB from which on a pixel of an IHC slide is positive.
DAB_POSITIVE: Final = 0.15
#: Mean optical densities of DAB that part cells into 0, 1+, 2+ and 3+, those of QuPath's positive cell detection.
H_SCORE_DENSITIES: Final = (0.2, 0.4, 0.6)


@dataclass(frozen=True, slots=True)
class Scales:
    """What was found on some tiles of the real slide before measuring.

    Attributes:
        high: (C,), the upper quantile of each plane: the range for SSIM and PSNR.
        positive: (C,), intensity from which on a pixel or a cell counts as positive.
        nuclear: intensity of the nuclear plane that parts nuclei from the rest; None without such a plane.
    """

    high: NDArray[np.float32]
    positive: NDArray[np.float32]
    nuclear: float | None


@dataclass
class TileStatistics:
    """Collects; see :mod:`mupd_wsi.evaluation.measuring` for what becomes of it.

    Memory bound: some kilobytes a tile and channel, SAMPLED_PIXELS samples a channel, and each cell's means.

    Args:
        pair: the slides.
        scales: found before.
        tiles: that will come; decides how many samples are kept of each.
        seed: of the samples.
    """

    pair: SlidePair
    scales: Scales
    tiles: int
    seed: int = 0
    moments: dict[int, list[NDArray[np.float64]]] = field(default_factory=lambda: {p: [] for p in PATCHES})
    #: (C, 6) a tile: px, squared error, SSIM times px, real, virtual and common positive px.
    areas: list[NDArray[np.float64]] = field(default_factory=list)
    #: float32 (3, C, k) a tile: real, virtual, standard deviation.
    samples: list[NDArray[np.float32]] = field(default_factory=list)
    #: float32 (2, C, k) a tile: means over squares of 64 px, real and virtual.
    patches: list[NDArray[np.float32]] = field(default_factory=list)
    real_cells: list[NDArray[np.float32]] = field(default_factory=list)
    virtual_cells: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, tile: PairedTile) -> None:
        """Take note of a tile."""
        rng = np.random.default_rng([self.seed, len(self.areas)])
        for patch, kept in self.moments.items():
            kept.append(moment_sums(patch_means(tile.real, patch), patch_means(tile.virtual, patch)))
        self.areas.append(self._areas(tile))
        pixels = rng.choice(tile.region.size.area, size=max(16, min(4096, SAMPLED_PIXELS // self.tiles)))
        deviation = np.full_like(tile.real, np.nan) if tile.deviation is None else tile.deviation
        planes = (tile.real, tile.virtual, deviation)
        self.samples.append(np.stack([plane.reshape(len(plane), -1)[:, pixels] for plane in planes]))
        coarse = np.stack([patch_means(plane, PATCHES[-1]) for plane in planes[:2]])
        shown = rng.permutation(coarse.shape[2])[: max(1, SHOWN_PATCHES // self.tiles)]
        self.patches.append(coarse[:, :, shown])
        if self.pair.nuclear is not None and self.scales.nuclear is not None:
            cells = find_cells(tile.real[self.pair.nuclear], self.scales.nuclear, self.pair.mpp)
            self.real_cells.append(cell_means(tile.real, cells))
            self.virtual_cells.append(cell_means(tile.virtual, cells))

    def _areas(self, tile: PairedTile) -> NDArray[np.float64]:
        rows = []
        for real, virtual, high, level in zip(
            tile.real, tile.virtual, self.scales.high, self.scales.positive, strict=True
        ):
            a, b = np.minimum(real, high), np.minimum(virtual, high)
            likeness = structural_similarity(
                a, b, data_range=float(high), gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
            error = float(np.square(a - b, dtype=np.float64).sum())
            positive = real >= level, virtual >= level
            counts = [float(np.count_nonzero(p)) for p in (*positive, positive[0] & positive[1])]
            rows.append([real.size, error, likeness * real.size, *counts])
        return np.array(rows)


def find_scales(pair: SlidePair, tiles: list[NDArray[np.float32]], given: dict[int, float]) -> Scales:
    """Ranges and thresholds from some tiles of the real slide.

    Args:
        pair: the slides.
        tiles: real planes (C, h, w) of some tiles.
        given: positive levels that the user gave, by plane.
    """
    from mupd_wsi.evaluation.cells import nuclear_threshold

    flat = np.concatenate([tile.reshape(len(tile), -1)[:, ::7] for tile in tiles], axis=1)
    high = np.maximum(np.quantile(flat, HIGH_QUANTILE, axis=1), 1e-3 if pair.style == "ihc" else 1.0).astype(np.float32)
    positive = np.full(len(high), DAB_POSITIVE, np.float32) if pair.style == "ihc" else POSITIVE_SHARE * high
    for plane, level in given.items():
        positive[plane] = level
    nuclear = None if pair.nuclear is None else nuclear_threshold(flat[pair.nuclear])
    return Scales(high, positive, nuclear)


def mid_ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Ranks (C, N) along the last axis, ties at their middle."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=-1), np.float64)


def stacked(parts: list[Any]) -> NDArray[Any]:
    """Parts of all tiles as one array, (T, ...)."""
    return np.stack(parts)
