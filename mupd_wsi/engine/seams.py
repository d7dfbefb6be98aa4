"""Measures the seams of a run while it goes on: what is kept, and which places are stained a second time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.overlap import Stopwatch
from mupd_wsi.engine.staining import stained_tiles
from mupd_wsi.geometry import Region
from mupd_wsi.stitching.seams import EdgeStepMeter, SeamReport, ShiftProbe, grid_shift
from mupd_wsi.tiling import TileGrid

#: One place is stained twice for this many tiles of tissue, up to so many places.
TILES_A_PLACE: Final = 32
MAX_PLACES: Final = 4
#: Places are chosen among this many at most, and hold this share of the tissue that the fullest holds.
MAX_CANDIDATES: Final = 4096
FULL: Final = 0.8


class SeamCheck:
    """Both measurements of :mod:`mupd_wsi.stitching.seams` on one run.

    The work is bounded: at most :data:`MAX_PLACES` places are stained again, whatever the slide's size, by a tile each.
    Where overlaps are joined it is one place, with the tiles around it and not what they depend on in turn. Memory
    bound: twice those places, and the last rows of one band.

    Args:
        job: the run.
    """

    def __init__(self, job: StainJob) -> None:
        self._job = job
        samples = job.spec.samples
        self._shift, places = places_to_check(job)
        self._probes = tuple(ShiftProbe(place, samples) for place in places)
        self._again: tuple[NDArray[np.uint8], ...] = ()
        self._edges = EdgeStepMeter(job.grid.region, job.grid.core, partial(_counts, job) if job.masked else None)

    def keep(self, core: Region, pixels: NDArray[np.uint8]) -> None:
        """Take a finished core, output pixels of the slide, uint8 (samples, h, w)."""
        for probe in self._probes:
            probe.keep(core, pixels)

    def band(self, rows: Region, pixels: NDArray[np.uint8]) -> None:
        """Take a band as it is written, counted from the output's top left corner."""
        self._edges.add(rows, pixels)

    def stain_again(self) -> None:
        """Stain the places on the grid that is half a tile further. May run while the last bands are still written."""
        self._again = tuple(self._stained(probe.place) for probe in self._probes)

    def report(self) -> SeamReport:
        """What was found; to be asked for when all cores and bands have come."""
        counts = [_counts(self._job, probe.place) if self._job.masked else None for probe in self._probes]
        found = [p.differences(other, c) for p, other, c in zip(self._probes, self._again, counts, strict=True)]
        return SeamReport(grid_shift(found), self._edges.result())

    def _stained(self, place: Region) -> NDArray[np.uint8]:
        """One place, rendered from tiles of the shifted grid: uint8 (samples, height, width)."""
        grid = replace(self._job.grid, region=place, shift=self._shift)
        job = replace(self._job, grid=grid, rings=min(self._job.rings, 1))
        pixels = np.full((job.spec.samples, place.height, place.width), job.spec.background, np.uint8)
        read = ((tile, job.read(tile)) for tile in job.tiles())
        for tiles, intensities in stained_tiles(job, read, Stopwatch()):
            for tile, planes in zip(tiles, intensities, strict=True):
                y, x = tile.core.y - place.y, tile.core.x - place.x
                rendered, _ = job.render(tile.core, tile.crop(planes))
                pixels[:, y : y + tile.core.height, x : x + tile.core.width] = rendered
        return pixels


def _counts(job: StainJob, region: Region) -> NDArray[np.bool_]:
    """Where there is tissue. No method: what a check holds is then let go of as soon as the check is."""
    return job.tissue.pixels(region, job.mpp)


def places_to_check(job: StainJob) -> tuple[tuple[int, int], tuple[Region, ...]]:
    """How far the grid is shifted, and the cells of the shifted grid to stain, those with most tissue, spread out.

    The shift is about half a tile, and whole attention windows, which belong to the slide and not to the tile. Along an
    axis with one row or column of tiles there is no edge and no shift.

    Returns:
        (x, y) output pixels, and output pixels of the slide; no places where there is no edge to look at.
    """
    grid, period = job.grid, job.stainer.info.period
    half = grid.core // 2 // period * period
    shift = (half if len(grid.columns) > 1 else 0, half if len(grid.rows) > 1 else 0)
    if shift == (0, 0):
        return shift, ()
    shifted = replace(grid, shift=shift)
    stride = -(-len(shifted) // MAX_CANDIDATES)
    cells = [tile.core for tile in islice(shifted.tiles(), 0, None, stride) if _holds_an_edge(tile.core, grid)]
    tissue = np.array([job.tissue.fraction(cell, job.mpp) * cell.size.area for cell in cells])
    if not cells or (tissue.max() == 0 and job.masked):
        return shift, ()
    wanted = round(len(grid) * job.tissue_fraction) // TILES_A_PLACE
    most = MAX_PLACES if job.fuse == "crop" else 1
    return shift, _spread(cells, tissue, min(max(1, wanted), most))


def _holds_an_edge(cell: Region, grid: TileGrid) -> bool:
    """Whether a line of the grid runs through a cell: each axis that is shifted has one inside."""
    across = (cell.right - 1) // grid.core > cell.x // grid.core
    down = (cell.bottom - 1) // grid.core > cell.y // grid.core
    return across and down if len(grid.columns) > 1 and len(grid.rows) > 1 else across or down


def _spread(cells: Sequence[Region], tissue: NDArray[np.float64], wanted: int) -> tuple[Region, ...]:
    """So many of the cells with most tissue, evenly over their order."""
    full = np.flatnonzero(tissue >= FULL * tissue.max())
    places = np.linspace(0, len(full) - 1, min(wanted, len(full)) + 2)[1:-1].round().astype(int)
    return tuple(cells[i] for i in full[np.unique(places)])
