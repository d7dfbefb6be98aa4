"""Measures a virtual slide against the real one, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.errors import UsageError
from mupd_wsi.evaluation.agreement import PATCHES, moment_sums, pearson_of
from mupd_wsi.evaluation.bootstrap import Figure, figures
from mupd_wsi.evaluation.cells import CellHistograms, area_under_curve, f1_by_threshold
from mupd_wsi.evaluation.pairing import SlidePair, open_pair
from mupd_wsi.evaluation.statistics import H_SCORE_DENSITIES, TileStatistics, find_scales, mid_ranks
from mupd_wsi.geometry import Region
from mupd_wsi.markers import canonical
from mupd_wsi.request import Progress, ProgressCallback

#: Tiles of the real slide that ranges and thresholds are taken from.
SCALE_TILES: Final = 32
NORMAL_90: Final = 1.6449
MEAN_ROW: Final = "mean"
LEFT_OUT_OF_MEAN: Final = canonical("Autofluorescence")

Table = dict[str, dict[str, Figure]]


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """How to measure.

    Attributes:
        roi: level-0 pixels of the real slide; None takes all that both slides cover.
        positive: by marker, the real intensity from which on a pixel or cell is positive; others are found.
        thresholds: by marker, the virtual intensity from which on a cell is called positive, as an earlier evaluation
            (of a development set) found them; without, the best on these slides are taken, which flatters F1.
        seed: of samples and bootstrap.
    """

    roi: Region | None = None
    positive: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        style: "mif" or "ihc".
        real: name of the real slide.
        virtual: name of the virtual slide.
        mpp: um per px of the raster that both were read at.
        region: the part that was measured, px of that raster.
        tiles: measured.
        skipped: tiles without any real signal: nothing was imaged there.
        cells: found in the real slide; None without a nuclear channel.
        table: by marker, by metric; last the row "mean", over the markers but autofluorescence.
        positive: by marker, the real intensity from which on a pixel or cell counts as positive.
        f1_thresholds: by marker, the virtual intensity from which on a cell is called positive.
        f1_is_tuned_here: whether these were chosen on the very cells that F1 is told for.
        only_real: channels that the virtual slide has not.
        only_virtual: channels that the real slide has not.
        high: by marker, the real intensity that pictures show as full brightness.
        patches: float32 (2, C, N), means over squares of 64 px, real and virtual, for scatter plots.
        by_tile: each tile's place and its mean correlation over squares of 8 px.
    """

    style: str
    real: str
    virtual: str
    mpp: float
    region: Region
    tiles: int
    skipped: int
    cells: int | None
    table: Table
    positive: Mapping[str, float]
    f1_thresholds: Mapping[str, float]
    f1_is_tuned_here: bool
    only_real: tuple[str, ...]
    only_virtual: tuple[str, ...]
    high: Mapping[str, float]
    patches: NDArray[np.float32]
    by_tile: tuple[tuple[Region, float], ...]

    @property
    def markers(self) -> tuple[str, ...]:
        """Names of the rows, but "mean"."""
        return tuple(name for name in self.table if name != MEAN_ROW)

    def as_json(self) -> dict[str, Any]:
        """Everything but the pictures' data, as JSON values."""
        region = {name: getattr(self.region, name) for name in ("x", "y", "width", "height")}
        rows = {name: {key: figure.as_json() for key, figure in row.items()} for name, row in self.table.items()}
        return {
            "real": self.real,
            "virtual": self.virtual,
            "style": self.style,
            "mpp": self.mpp,
            "region": region,
            "tiles": self.tiles,
            "tiles_without_real_signal": self.skipped,
            "cells": self.cells,
            "interval": "95 %, bootstrap by tile",
            "markers": rows,
            "positive_from": dict(self.positive),
            "f1_thresholds": dict(self.f1_thresholds),
            "f1_thresholds_chosen_here": self.f1_is_tuned_here,
            "only_in_real": list(self.only_real),
            "only_in_virtual": list(self.only_virtual),
        }


def evaluate_slides(
    real: str | Path,
    virtual: str | Path,
    options: EvaluationOptions | None = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Measure a virtual slide against the real one.

    Channels are matched by name, whatever the spelling; both are read at the coarser of their um/px.

    Args:
        real: OME-TIFF or OME-Zarr of channels, or a brightfield IHC slide.
        virtual: likewise; a stained region of interest is put where it lies on the slide.
        options: how.
        progress: called with the tiles done and in all.

    Raises:
        SlideError: a slide cannot be opened or read.
        PixelSizeError: a slide states no um/px.
        UsageError: nothing in common, or a given marker is unknown.
    """
    wanted = options or EvaluationOptions()
    with open_pair(Path(real), Path(virtual), wanted.roi) as pair:
        regions = pair.regions()
        given = _by_plane(wanted.positive, pair)
        some = [regions[i] for i in np.unique(np.linspace(0, len(regions) - 1, SCALE_TILES).astype(int))]
        planes = tuple(range(len(pair.names)))
        shown = (pair.real.read(r, pair.mpp, tuple(pair.real_planes[p] for p in planes)) for r in some)
        scales = find_scales(pair, [tile for tile in shown if tile.any()] or _nothing(pair), given)
        statistics = TileStatistics(pair, scales, len(regions), wanted.seed)
        kept = []
        for done, region in enumerate(regions):
            if progress:
                progress(Progress(done, len(regions)))
            tile = pair.read(region)
            if tile.real.any():
                statistics.add(tile)
                kept.append(region)
        if progress:
            progress(Progress(len(regions), len(regions)))
        if not kept:
            _nothing(pair)
        return _summary(pair, statistics, kept, len(regions) - len(kept), wanted, (Path(real).name, Path(virtual).name))


def _summary(
    pair: SlidePair,
    statistics: TileStatistics,
    kept: list[Region],
    skipped: int,
    options: EvaluationOptions,
    names: tuple[str, str],
) -> Evaluation:
    columns = _pixel_columns(statistics, options.seed)
    columns |= _deviation_columns(statistics)
    thresholds: dict[str, float] = {}
    if statistics.real_cells and sum(map(len, statistics.real_cells)):
        found, thresholds = _cell_columns(pair, statistics, options)
        columns |= found
    rows = {name: {key: values[c] for key, values in columns.items()} for c, name in enumerate(pair.names)}
    averaged = [row for name, row in rows.items() if canonical(name) != LEFT_OUT_OF_MEAN]
    means = {key: Figure(_mean([row[key].value for row in averaged])) for key in columns}
    per_tile = pearson_of(np.stack(statistics.moments[8]))
    return Evaluation(
        style=pair.style,
        real=names[0],
        virtual=names[1],
        mpp=pair.mpp,
        region=pair.region,
        tiles=len(kept),
        skipped=skipped,
        cells=sum(map(len, statistics.real_cells)) if pair.nuclear is not None else None,
        table=rows | {MEAN_ROW: means},
        positive={name: round(float(v), 4) for name, v in zip(pair.names, statistics.scales.positive, strict=True)},
        f1_thresholds=thresholds,
        f1_is_tuned_here=not options.thresholds,
        only_real=pair.only_real,
        only_virtual=pair.only_virtual,
        high={name: float(v) for name, v in zip(pair.names, statistics.scales.high, strict=True)},
        patches=np.concatenate(statistics.patches, axis=2),
        by_tile=tuple((region, _mean(row)) for region, row in zip(kept, per_tile, strict=True)),
    )


def _pixel_columns(statistics: TileStatistics, seed: int) -> dict[str, list[Figure]]:
    """Metrics of pixels and patches, one figure a channel."""
    columns = {f"pearson_{p}px": figures(np.stack(statistics.moments[p]), pearson_of, seed) for p in PATCHES}
    samples = np.concatenate(statistics.samples, axis=2)
    ranks = [np.split(mid_ranks(side), len(statistics.samples), axis=1) for side in samples[:2]]
    rank_sums = np.stack([moment_sums(a, b) for a, b in zip(*ranks, strict=True)])
    columns["spearman"] = figures(rank_sums, pearson_of, seed)
    areas, high = np.stack(statistics.areas), statistics.scales.high.astype(np.float64)

    def ratio(top: int, bottom: int) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        return lambda s: _divided(s[..., top], s[..., bottom])

    columns["ssim"] = figures(areas, ratio(2, 0), seed)
    columns["psnr"] = figures(areas, lambda s: 10 * np.log10(high**2 * s[..., 0] / np.maximum(s[..., 1], 1e-12)), seed)
    first = np.stack(statistics.moments[1])
    columns["mean_ratio"] = figures(first, ratio(2, 1), seed)
    columns["area_real"] = figures(areas, ratio(3, 0), seed)
    columns["area_virtual"] = figures(areas, ratio(4, 0), seed)
    columns["dice"] = figures(areas, lambda s: _divided(2 * s[..., 5], s[..., 3] + s[..., 4]), seed)
    return columns


def _deviation_columns(statistics: TileStatistics) -> dict[str, list[Figure]]:
    """Whether the predicted standard deviation is true, where the virtual slide has one; else nothing.

    ``sd_coverage_90`` is the share of pixels whose error stays below 1.645 SD (0.90 where errors are normal and SD
    true), ``sd_error_ratio`` the root mean square error over the root mean square SD (1 is calibrated), and
    ``sd_error_spearman`` the rank correlation of SD and absolute error.
    """
    samples = np.concatenate(statistics.samples, axis=2).astype(np.float64)
    if np.isnan(samples[2]).all():
        return {}
    real, virtual, deviation = samples
    error = np.abs(real - virtual)
    known = ~np.isnan(deviation).any(axis=1)

    def column(values: NDArray[np.float64]) -> list[Figure]:
        return [Figure(float(v) if k else float("nan")) for v, k in zip(values, known, strict=True)]

    squares = np.square(error).mean(axis=1), np.square(deviation).mean(axis=1)
    ranks = moment_sums(mid_ranks(np.nan_to_num(deviation)), mid_ranks(error))
    return {
        "sd_coverage_90": column((error <= NORMAL_90 * deviation).mean(axis=1)),
        "sd_error_ratio": column(np.sqrt(_divided(*squares))),
        "sd_error_spearman": column(pearson_of(ranks)),
    }


def _cell_columns(
    pair: SlidePair, statistics: TileStatistics, options: EvaluationOptions
) -> tuple[dict[str, list[Figure]], dict[str, float]]:
    """Metrics of cells, one figure a channel, and the thresholds of F1."""
    positive, real, virtual = statistics.scales.positive, statistics.real_cells, statistics.virtual_cells
    histograms = CellHistograms.of(real, virtual, positive)
    given = _by_plane(options.thresholds, pair)
    best = np.nan_to_num(f1_by_threshold(histograms.counts.sum(axis=0))).argmax(axis=1)
    lowest = np.concatenate(virtual).min(axis=0)
    levels = {c: float(histograms.edges[c, b - 1] if b else lowest[c]) for c, b in enumerate(best.tolist())} | given
    at = np.array([levels[c] for c in range(len(positive))])
    counts = np.stack([_cell_counts(r, v, positive, at) for r, v in zip(real, virtual, strict=True)])
    seed = options.seed
    columns = {
        "cell_auc": figures(histograms.counts, area_under_curve, seed),
        "cell_f1": figures(counts, lambda s: _divided(2 * s[..., 4], s[..., 1] + s[..., 3]), seed),
        "positive_cells_real": figures(counts, lambda s: _divided(s[..., 1], s[..., 0]), seed),
        "positive_cells_virtual": figures(counts, lambda s: _divided(s[..., 2], s[..., 0]), seed),
        "positive_fraction_error": figures(counts, lambda s: np.abs(_divided(s[..., 2] - s[..., 1], s[..., 0])), seed),
    }
    if pair.style == "ihc":
        scores = np.stack([_h_scores(r, v) for r, v in zip(real, virtual, strict=True)])
        columns["h_score_real"] = figures(scores, lambda s: _divided(s[..., 1], s[..., 0]), seed)
        columns["h_score_difference"] = figures(scores, lambda s: _divided(s[..., 2] - s[..., 1], s[..., 0]), seed)
    return columns, {pair.names[c]: round(level, 4) for c, level in levels.items()}


def _cell_counts(
    real: NDArray[np.float32], virtual: NDArray[np.float32], positive: NDArray[np.float32], called: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(C, 5): cells; positive by the real and by the virtual mean at one level; called positive; rightly so."""
    truth, same, call = real >= positive, virtual >= positive, virtual >= called
    total = np.full(truth.shape[1], len(truth))
    return np.stack([total, truth.sum(0), same.sum(0), call.sum(0), (truth & call).sum(0)], axis=1).astype(np.float64)


def _h_scores(real: NDArray[np.float32], virtual: NDArray[np.float32]) -> NDArray[np.float64]:
    """(C, 3): cells, and their summed H-score (0-300 each) in the real and in the virtual slide."""
    sums = [100.0 * sum((side >= level).sum(axis=0) for level in H_SCORE_DENSITIES) for side in (real, virtual)]
    return np.stack([np.full(real.shape[1], float(len(real))), *sums], axis=1)


def _by_plane(values: Mapping[str, float], pair: SlidePair) -> dict[int, float]:
    places = {canonical(name): i for i, name in enumerate(pair.names)}
    unknown = [name for name in values if canonical(name) not in places]
    if unknown:
        raise UsageError(f"no channel {', '.join(unknown)} in both slides; there are: {', '.join(pair.names)}")
    return {places[canonical(name)]: float(value) for name, value in values.items()}


def _nothing(pair: SlidePair) -> list[NDArray[np.float32]]:
    raise UsageError(f"the real slide has no signal in {pair.region} of the raster at {pair.mpp:g} um/px")


def _divided(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(b != 0, a / np.where(b == 0, 1, b), np.nan))


def _mean(values: list[float] | NDArray[np.float64]) -> float:
    kept = [v for v in values if np.isfinite(v)]
    return float(np.mean(kept)) if kept else float("nan")
