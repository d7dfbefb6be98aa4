"""A checked request: what a run reads, asks of the network, and writes, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.engine.destination import Destination
from mupd_wsi.engine.draws import draw_seeds, mean_and_spread
from mupd_wsi.geometry import Region, output_size
from mupd_wsi.markers import Marker
from mupd_wsi.normalising import StainTransfer
from mupd_wsi.rendering import Intensities, to_brightfield, to_planes
from mupd_wsi.request import Fuse, SampleOptions, Style
from mupd_wsi.slides import Slide
from mupd_wsi.slides.cache import DEFAULT_CACHE_BYTES
from mupd_wsi.tiling import Tile, TileGrid, reflected
from mupd_wsi.tissue import TissueMask
from mupd_wsi.writers.pyramid import TILE
from mupd_wsi.writers.spec import ImageSpec

if TYPE_CHECKING:
    from mupd_wsi.model import TileStainer

#: How strongly a tile is stained is judged from every n-th pixel of every n-th row.
SCORE_STEP: Final = 4
#: What :attr:`StainJob.expected_peak_bytes` is made of, from measured runs (docs/decisions/0004): Python with torch and
#: the weights, and the activations of a tile in the network for each of its pixels.
PROGRAM_BYTES: Final = round(0.45 * 2**30)
ACTIVATION_BYTES: Final = 380
#: Batches of stained tiles between the network and the file.
BATCHES_HELD: Final = 4
#: Networks give margins away in whole patches: in multiples of this, px.
BLEND_STEP: Final = 8


@dataclass(frozen=True, slots=True)
class StainJob:
    """All that a run needs to know, checked.

    Attributes:
        slide: the open slide.
        stainer: the model on its device.
        sampling: how to read the model out.
        samples: draws; of more than one the mean and the standard deviation are written.
        style: brightfield or fluorescence.
        markers: what is stained for, in the output's order.
        channels: of the model's panel, that the network is asked for; brightfield takes the nuclei first.
        scored: places in ``channels`` of what is stained for; the preview's detail is chosen by them.
        windows: (len(channels), 2), the intensities of each that become grey levels 0 and 255; with several samples
            twice that, means and then standard deviations.
        grid: the tiles, output pixels.
        recolor: brings the slide's H&E to the model's; None leaves it as it is.
        tissue: where the slide holds tissue.
        tissue_fraction: of the stained region's area, 0-1.
        looks_like_he: whether the slide's colours are those of H&E.
        masked: whether glass is left as background.
        fuse: how overlapping tiles become one picture.
        rings: of tiles around the region that run besides its own, because its own depend on them.
        place: where the output goes.
        spec: the output image's facts.
        workers: threads that read.
        warnings: one sentence each.
        facts: of the request, for the record.
    """

    slide: Slide
    stainer: TileStainer
    sampling: SampleOptions
    samples: int
    style: Style
    markers: tuple[Marker, ...]
    channels: tuple[int, ...]
    scored: tuple[int, ...]
    windows: NDArray[np.float32]
    grid: TileGrid
    recolor: StainTransfer | None
    tissue: TissueMask
    tissue_fraction: float
    looks_like_he: bool
    masked: bool
    fuse: Fuse
    rings: int
    place: Destination
    spec: ImageSpec
    workers: int
    warnings: tuple[str, ...]
    facts: Mapping[str, Any]

    @property
    def mpp(self) -> float:
        """um per output pixel."""
        return self.spec.mpp

    @property
    def draws(self) -> tuple[SampleOptions, ...]:
        """How each sample is drawn."""
        return tuple(replace(self.sampling, seed=seed) for seed in draw_seeds(self.sampling.seed, self.samples))

    @property
    def pictured(self) -> int:
        """Planes of the image that its preview shows: all but the standard deviations."""
        return self.spec.samples // (1 if self.samples == 1 else 2)

    def tiles(self) -> Iterator[Tile]:
        """The tiles that the network has to see, in raster order.

        Where overlaps are joined, those are all whose squares, halo included, hold tissue: which tiles a place is made
        from then does not depend on the region.
        """
        if not self.rings:
            return self.cores()
        squares = ((tile, Region(*tile.origin, tile.side, tile.side)) for tile in self.run_grid.tiles())
        return (tile for tile, square in squares if not self.masked or self.tissue.covers(square, self.mpp))

    def cores(self) -> Iterator[Tile]:
        """The tiles whose cores are written, in raster order."""
        return self.grid.tiles((lambda core: self.tissue.covers(core, self.mpp)) if self.masked else None)

    @property
    def margin(self) -> int:
        """px on each side of a tile that are not used: its halo, or the outer half of it where tiles are blended."""
        halo = self.grid.halo
        return halo // 2 // BLEND_STEP * BLEND_STEP if self.fuse == "blend" else halo

    @property
    def expected_peak_bytes(self) -> int:
        """Largest resident memory of a run of one pass with mupd-mini on a CPU, overlaps cropped::

            program + cache of H&E + batch * (380 B * side**2 + 4 * channels * core**2 * 4 B)
                    + samples * width * (core + 2 * 512) B

        Nothing in it grows with the slide's height: bands of the output and rows of its pyramid's tiles are as wide as
        the slide. ``python -m benchmarks biopsy orion`` compares it with what is measured.
        """
        grid, batch = self.grid, self.stainer.batch_size
        tiles = ACTIVATION_BYTES * grid.side**2 + BATCHES_HELD * len(self.channels) * grid.core**2 * 4
        rows = self.spec.samples * self.spec.size.width * (grid.core + 2 * TILE)
        return PROGRAM_BYTES + DEFAULT_CACHE_BYTES + batch * tiles + rows

    @property
    def run_grid(self) -> TileGrid:
        """The grid over all tiles that run."""
        return self.grid.widened(self.rings)

    def read(self, tile: Tile) -> NDArray[np.uint8]:
        """A tile's H&E, halo included, recoloured: uint8 (side, side, 3); mirrored at the slide's true edges alone."""
        columns = reflected(tile.origin[0], tile.side, self.grid.image.width)
        rows = reflected(tile.origin[1], tile.side, self.grid.image.height)
        x, y = int(columns.min()), int(rows.min())
        rgb = self.slide.read(Region(x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y), self.mpp)
        if self.recolor is not None:
            rgb = self.recolor.apply(rgb)
        whole = rgb.shape[:2] == (tile.side, tile.side)
        if whole and (int(columns[0]), int(rows[0])) == (x, y):  # not a tile of as many pixels, all but one mirrored
            return rgb
        return rgb.take(columns - x, axis=1).take(rows - y, axis=0)

    def stain(self, tiles: Sequence[Tile], rgb: Sequence[NDArray[np.uint8]]) -> Intensities:
        """Run the network: (tiles, len(windows), n, n), intensities without :attr:`margin`.

        Where glass is left as background, what lies outside the rectangle of a tile's tissue may come as 0, unless
        tiles are blended.
        """
        origins, pixels = [tile.origin for tile in tiles], rgb[0][None] if len(rgb) == 1 else np.stack(rgb)
        parts = [self._tissue_part(tile) for tile in tiles] if self.masked and self.fuse == "crop" else None
        draws = (
            self.stainer.stain(pixels, origins, sampling, self.channels, self.margin, parts) for sampling in self.draws
        )
        return next(draws) if self.samples == 1 else mean_and_spread(draws)

    def _tissue_part(self, tile: Tile) -> Region | None:
        """The smallest rectangle that holds the tissue of a tile's core, from the core square's own corner."""
        tissue = self.tissue.pixels(tile.core, self.mpp)
        rows, columns = np.flatnonzero(tissue.any(axis=1)), np.flatnonzero(tissue.any(axis=0))
        if not len(rows):
            return None
        x, y = tile.core.x - tile.origin[0] - self.grid.halo, tile.core.y - tile.origin[1] - self.grid.halo
        size = int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1
        return Region(x + int(columns[0]), y + int(rows[0]), *size)

    def render(self, core: Region, intensities: Intensities) -> tuple[NDArray[np.uint8], float]:
        """What is written of a core, and how strongly it is stained.

        Args:
            core: output pixels.
            intensities: (len(windows), h, w).

        Returns:
            uint8 (samples, h, w) with glass set to background, and the mean brightness (0-255) of what was stained for.
        """
        planes = to_planes(intensities, self.windows)
        positivity = float(planes[list(self.scored), ::SCORE_STEP, ::SCORE_STEP].mean())
        if self.stainer.info.painted:
            positivity = 255 - positivity  # the darker, the more stained
        elif self.style == "ihc":
            planes = to_brightfield(planes[0], planes[1] if len(planes) > 1 else None)
        if self.masked:
            tissue = self.tissue.pixels(core, self.mpp)
            if not tissue.all():
                planes[:, ~tissue] = self.spec.background
        for lost in self.lost():
            part = core.intersection(lost)
            if part is not None:
                y, x = part.y - core.y, part.x - core.x
                planes[:, y : y + part.height, x : x + part.width] = self.spec.background
        return planes, positivity

    def lost(self) -> tuple[Region, ...]:
        """Where the slide could not be read, output pixels: so far found, so all that lies in tiles that were read."""
        scale_x, scale_y = (self.mpp / own for own in (self.slide.mpp.x, self.slide.mpp.y))
        return tuple(_touched(tile.place, scale_x, scale_y) for tile in self.slide.damaged if tile.is_lost)

    def on_damage(self, tile: Tile) -> bool:
        """Whether the network saw a place that could not be read."""
        seen = Region(*tile.origin, tile.side, tile.side)
        return any(seen.intersection(lost) is not None for lost in self.lost())

    def read_he(self, region: Region, mpp: float) -> NDArray[np.uint8]:
        """The slide's H&E at any pitch, for pictures: uint8 (height, width, 3)."""
        size = output_size(self.slide.size, self.slide.mpp, mpp)
        inside = region.intersection(Region(0, 0, size.width, size.height)) or Region(0, 0, 1, 1)
        rgb = self.slide.read(inside, mpp)
        missing = ((0, region.height - inside.height), (0, region.width - inside.width), (0, 0))
        return np.pad(rgb, missing, mode="edge")


def _touched(part: Region, scale_x: float, scale_y: float) -> Region:
    """The output pixels that level-0 pixels touch, a scale being level-0 pixels per output pixel."""
    x, y = math.floor(part.x / scale_x), math.floor(part.y / scale_y)
    return Region(x, y, max(1, math.ceil(part.right / scale_x) - x), max(1, math.ceil(part.bottom / scale_y) - y))
