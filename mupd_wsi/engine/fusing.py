"""Joins the overlaps of tiles: blended in the end, or merged at every step of the flow.

Both hand out the cores of tiles, row after row, as cropping does. Which tiles have to run is the job's business
(:meth:`StainJob.tiles`): all whose squares touch what is asked for, for each ring of tiles that it depends on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.engine.draws import mean_and_spread
from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.overlap import Stopwatch
from mupd_wsi.model.protocol import as_stepwise
from mupd_wsi.rendering import Intensities
from mupd_wsi.request import SampleOptions
from mupd_wsi.stitching.mosaic import Mosaic, WeightedSum, fading_weights
from mupd_wsi.tiling import Tile

#: Tiles and what the network made of them, (tiles, channels, n, n).
Stained = tuple[Sequence[Tile], Intensities]
#: A tile and its H&E, uint8 (side, side, 3).
ReadTile = tuple[Tile, NDArray[np.uint8]]
#: What comes with a tile.
Found = TypeVar("Found")

_NO_ROWS: Final[list[ReadTile]] = []


def blended(job: StainJob, stained: Iterable[Stained]) -> Iterator[Stained]:
    """Blend tiles with raised-cosine weights over the inner half of their halos: the outer half knows too little.

    Memory bound: two rows of cells, ``2 x (channels + 1) x core x width x 4`` bytes, less where there is glass.

    Args:
        job: the run.
        stained: the tiles of ``job.tiles()`` in raster order, less the job's margin.

    Yields:
        The tiles of ``job.cores()`` in raster order, one at a time, without halo.
    """
    grid, margin = job.run_grid, job.margin
    layout = _Layout(job, grid.halo - margin)
    weights = fading_weights(grid.side - 2 * margin, grid.halo - margin)
    sums = WeightedSum(len(job.windows), grid.core, layout.corner, weights)
    merged = Mosaic(len(job.windows), grid.core, layout.corner)
    pairs = ((tile, values) for tiles, planes in stained for tile, values in zip(tiles, planes, strict=True))
    rows = _Rows(layout, pairs)
    for row in range(grid.rows.start, grid.rows.stop + layout.reach):
        for tile, values in rows.take(row):
            sums.add(tile.origin[0] + margin, tile.origin[1] + margin, values)
        for place, means in sums.take_row(row):
            merged.put(place, means)
        for tile in layout.cores(row - layout.reach):
            yield [tile], merged.read(*layout.core_corner(tile), grid.core)[None]
        merged.drop_above(layout.first_needed(row - layout.reach + 1))


def joint(job: StainJob, read: Iterator[ReadTile], watch: Stopwatch) -> Iterator[Stained]:
    """Merge what overlapping tiles predict at every step of the flow, over a band of rows that moves down the slide.

    Several samples run side by side. Memory bound: that of :class:`JointFlow` for each sample, and the H&E of as many
    rows of tiles as a draw has steps.

    Args:
        job: the run.
        read: the tiles of ``job.tiles()`` in raster order, with their H&E.
        watch: counts the stage "network".

    Yields:
        The tiles of ``job.cores()`` in raster order, one at a time, without halo.
    """
    layout = _Layout(job, job.grid.halo)
    flows = [JointFlow(job, sampling) for sampling in job.draws]
    rows, delay = _Rows(layout, read), flows[0].delay + layout.reach
    for row in range(job.run_grid.rows.start, job.run_grid.rows.stop + delay):
        tiles = rows.take(row)
        with watch.stage("network"):
            for flow in flows:
                flow.advance(row, tiles)
        for tile in layout.cores(row - delay):
            draws = (flow.intensities(*layout.core_corner(tile)) for flow in flows)
            yield [tile], (next(draws) if job.samples == 1 else mean_and_spread(draws))
        for flow in flows:
            flow.forget(layout.first_needed(row - delay + 1))


class JointFlow:
    """One draw of the flow on the whole slide at once (after MultiDiffusion, Bar-Tal et al., arXiv 2302.08113).

    Each step is taken with the mean of what all tiles that see a place predict for it, weighted by raised cosines, so
    that there is one stain on its way and not one a tile. A row of tiles can take a step when the rows below it that it
    overlaps have taken the one before: step s runs ``s`` rows (more where halos are wide) behind the first.

    Memory bound: for each step two rows of cells of the stain and two of the sums,
    ``steps x 4 x (panel + 1) x core x width x 4`` bytes, whatever the slide's height; less where there is glass.

    Args:
        job: the run.
        sampling: of this draw.
    """

    def __init__(self, job: StainJob, sampling: SampleOptions) -> None:
        grid, panel = job.run_grid, len(job.stainer.info.panel)
        stainer = as_stepwise(job.stainer)
        assert stainer is not None  # runs that join step by step are refused otherwise
        self._job, self._stainer, self._sampling = job, stainer, sampling
        self._times = stainer.times(sampling)
        steps, corner = len(self._times) - 1, _Layout(job, grid.halo).corner
        weights = fading_weights(grid.side, grid.halo)
        self._states = [Mosaic(panel, grid.core, corner) for _ in range(steps + 1)]
        self._sums = [WeightedSum(panel, grid.core, corner, weights) for _ in range(steps)]
        self._lag = -(-2 * grid.halo // grid.core)
        self._rows: dict[int, list[ReadTile]] = {}

    @property
    def delay(self) -> int:
        """Rows by which the last step is behind the first."""
        return (len(self._sums) - 1) * self._lag

    @property
    def cells_held(self) -> int:
        """Cells in memory now, of the stain and of the sums."""
        return sum(map(len, self._states)) + sum(map(len, self._sums))

    def advance(self, row: int, tiles: list[ReadTile]) -> None:
        """Take the next row of tiles, and every step that it makes possible.

        Args:
            row: of the grid; all of them have to come, empty ones too, and ``delay`` empty ones in the end.
            tiles: in it.
        """
        self._rows[row] = tiles
        if self._sampling.readout == "sample":
            self._begin(tiles)
        for step in range(len(self._sums)):
            behind = row - step * self._lag
            self._predict(step, self._rows.get(behind, _NO_ROWS))
            self._settle(step, behind)
        self._rows.pop(row - self.delay, None)

    def intensities(self, x: int, y: int) -> NDArray[np.float32]:
        """What a finished core shows, (1, channels, core, core)."""
        x0 = self._states[-1].read(x, y, self._job.grid.core)
        return self._stainer.intensities(x0[None], self._sampling.readout, self._job.channels)

    def forget(self, row: int) -> None:
        """Drop the finished cells above a row."""
        self._states[-1].drop_above(row)

    def _begin(self, tiles: list[ReadTile]) -> None:
        """Put noise into the cells that are seen for the first time."""
        first, core = self._states[0], self._job.grid.core
        for tile, _ in tiles:
            for place in first.touched(*tile.origin, tile.side):
                if place not in first:
                    noise = self._stainer.noise(self._sampling.seed, *first.corner_of(place), core, core)
                    first.put(place, noise)

    def _predict(self, step: int, tiles: list[ReadTile]) -> None:
        stainer, state = self._stainer, self._states[step]
        for start in range(0, len(tiles), stainer.batch_size):
            batch = tiles[start : start + stainer.batch_size]
            noisy = None
            if self._sampling.readout == "sample":
                noisy = np.stack([state.read(*tile.origin, tile.side) for tile, _ in batch])
            x0 = stainer.predict(np.stack([rgb for _, rgb in batch]), noisy, self._times[step])
            for (tile, _), values in zip(batch, x0, strict=True):
                self._sums[step].add(*tile.origin, values)

    def _settle(self, step: int, row: int) -> None:
        """Move a row of cells by one step, now that all tiles that see it have had their say."""
        from mupd_wsi.model.flow import euler_step

        t, t_next = self._times[step : step + 2]
        for place, x0 in self._sums[step].take_row(row):
            settled = euler_step(self._states[step].take(place), x0, t, t_next) if t_next > 0 else x0
            self._states[step + 1].put(place, settled)
        self._states[step].drop_above(row + 1)


class _Layout:
    """How the cells of a run lie to the cores of its tiles, which overlap by so many px on each side."""

    def __init__(self, job: StainJob, overlap: int) -> None:
        grid = job.grid
        self.corner = grid.shift[0] - overlap, grid.shift[1] - overlap
        #: Rows of cells below its own that a row of cores reaches into.
        self.reach = -(-overlap // grid.core)
        self._grid, self._overlap = grid, overlap
        self._cores = {row: list(tiles) for row, tiles in groupby(job.cores(), self.row)}

    def cores(self, row: int) -> list[Tile]:
        """The cores of a row that are wanted."""
        return self._cores.get(row, [])

    def core_corner(self, tile: Tile) -> tuple[int, int]:
        """Where the whole core of a tile begins, (x, y), though only a part may be wanted."""
        return tile.origin[0] + self._grid.halo, tile.origin[1] + self._grid.halo

    def first_needed(self, row: int) -> int:
        """The first row of cells that this row of cores, and all below it, reach into."""
        return row + self._overlap // self._grid.core

    def row(self, tile: Tile) -> int:
        """Of the grid, in which a tile lies."""
        return (self.core_corner(tile)[1] - self._grid.shift[1]) // self._grid.core


class _Rows(Generic[Found]):
    """Tiles in raster order, asked for row by row."""

    def __init__(self, layout: _Layout, pairs: Iterable[tuple[Tile, Found]]) -> None:
        self._layout, self._pairs = layout, iter(pairs)
        self._next = next(self._pairs, None)

    def take(self, row: int) -> list[tuple[Tile, Found]]:
        """The tiles of the next row."""
        found = []
        while self._next is not None and self._layout.row(self._next[0]) == row:
            found.append(self._next)
            self._next = next(self._pairs, None)
        return found
