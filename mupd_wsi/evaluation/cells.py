"""Cells of a real slide, and how well a virtual one tells the positive ones from the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label
from skimage.segmentation import expand_labels, watershed

#: um: what smooths a nucleus, how far two centres lie apart at least, and how far a cell reaches beyond its nucleus.
SMOOTHING_UM: Final = 1.0
MIN_DISTANCE_UM: Final = 3.5
CELL_MARGIN_UM: Final = 2.0
MIN_AREA_UM2: Final = 12.0
BINS: Final = 1024


def nuclear_threshold(pixels: NDArray[np.float32]) -> float:
    """The intensity that parts nuclei from the rest (Otsu, on logarithms: nuclei differ by factors)."""
    logs = np.log1p(pixels.ravel())
    return float(np.expm1(threshold_otsu(logs))) if logs.min() < logs.max() else float("inf")


def find_cells(nuclear: NDArray[np.float32], threshold: float, mpp: float) -> NDArray[np.int32]:
    """Segment cells: nuclei by threshold and watershed of the distance to their edge, grown by a rim of cytoplasm.

    Args:
        nuclear: (h, w).
        threshold: see :func:`nuclear_threshold`.
        mpp: um per px.

    Returns:
        int32 (h, w): 0 is no cell. Cells that touch the edge are left out: their other half is not here.
    """
    mask = gaussian(nuclear, SMOOTHING_UM / mpp, preserve_range=True) > threshold
    distance = gaussian(ndimage.distance_transform_edt(mask), 1.0, preserve_range=True)
    centres = peak_local_max(distance, min_distance=max(1, round(MIN_DISTANCE_UM / mpp)), labels=label(mask))
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(centres.T)] = np.arange(1, len(centres) + 1)
    nuclei = watershed(-distance, seeds, mask=mask)
    areas = np.bincount(nuclei.ravel(), minlength=len(centres) + 1)
    dropped = areas < MIN_AREA_UM2 / mpp**2
    cells = expand_labels(np.where(dropped[nuclei], 0, nuclei), CELL_MARGIN_UM / mpp)
    edge = np.concatenate([cells[0], cells[-1], cells[:, 0], cells[:, -1]])
    return cast("NDArray[np.int32]", np.where(np.isin(cells, edge[edge > 0]), 0, cells).astype(np.int32))


def cell_means(planes: NDArray[np.float32], cells: NDArray[np.int32]) -> NDArray[np.float32]:
    """Mean of each plane (C, h, w) over each cell: (N, C)."""
    counts = np.bincount(cells.ravel())
    held = np.flatnonzero(counts[1:]) + 1
    sums = [np.bincount(cells.ravel(), plane.ravel(), minlength=len(counts))[held] for plane in planes]
    return (
        (np.stack(sums, axis=1) / counts[held, None]).astype(np.float32)
        if len(held)
        else np.empty((0, len(planes)), np.float32)
    )


@dataclass
class CellHistograms:
    """Cells of each tile by the virtual intensity, positive and negative ones apart.

    Attributes:
        edges: (C, BINS - 1): the virtual intensities that part the bins, at quantiles of all cells.
        counts: (T, C, 2, BINS): negative, positive.
    """

    edges: NDArray[np.float32]
    counts: NDArray[np.int64]

    @classmethod
    def of(
        cls, real: list[NDArray[np.float32]], virtual: list[NDArray[np.float32]], positive: NDArray[np.float32]
    ) -> CellHistograms:
        """Count the cells.

        Args:
            real: by tile, (N, C).
            virtual: likewise.
            positive: (C,), the real intensity from which on a cell is positive.
        """
        everything = np.concatenate(virtual)
        edges = np.quantile(everything, np.linspace(0, 1, BINS + 1)[1:-1], axis=0).T.astype(np.float32)
        counts = np.zeros((len(real), len(positive), 2, BINS), np.int64)
        for tile, (r, v) in enumerate(zip(real, virtual, strict=True)):
            for c in range(len(positive)):
                bins = np.searchsorted(edges[c], v[:, c], side="right")
                for sign in (0, 1):
                    chosen = (r[:, c] >= positive[c]) == bool(sign)
                    counts[tile, c, sign] = np.bincount(bins[chosen], minlength=BINS)
        return cls(edges, counts)


def area_under_curve(counts: NDArray[Any]) -> NDArray[np.float64]:
    """AUC from histograms (..., 2, BINS): how often a positive cell lies above a negative one, ties counting half."""
    negative, positive = counts[..., 0, :], counts[..., 1, :]
    below = np.cumsum(negative, axis=-1) - negative / 2
    pairs = negative.sum(axis=-1) * positive.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(pairs > 0, (positive * below).sum(axis=-1) / np.maximum(pairs, 1), np.nan))


def f1_by_threshold(counts: NDArray[Any]) -> NDArray[np.float64]:
    """F1 for a threshold below each bin: (..., 2, BINS) to (..., BINS); NaN without positive cells."""
    above = np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]
    false, true = above[..., 0, :], above[..., 1, :]
    total = counts[..., 1, :].sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(total > 0, 2 * true / np.maximum(total + true + false, 1), np.nan))
