"""Which tiles a slide is cut into. No pixel data is touched here.

The grid is anchored at the slide's origin, whatever part of the slide is asked for: tile (column, row) owns the output
pixels ``[column * core, (column + 1) * core) x [row * core, (row + 1) * core)``. A region of interest takes the same
tiles, so that its stain equals the crop of the whole slide's, and so that models with windows anchored at the tile's
corner see the same windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.errors import RegionError
from mupd_wsi.geometry import Region, Size

#: What pixels are made of.
Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Tile:
    """One place for the network to look at.

    Attributes:
        index: place in the raster order of all tiles of the grid, glass included.
        core: output pixels that the tile owns, cut to the grid's region.
        origin: output pixel (x, y) of the tile's top left corner, halo included; negative at the slide's top and left.
        side: side of the square that the network sees, halo included, output pixels.
    """

    index: int
    core: Region
    origin: tuple[int, int]
    side: int

    def crop(self, pixels: NDArray[Kind]) -> NDArray[Kind]:
        """The core's part of what the network made of the tile.

        Args:
            pixels: (channels, n, n), the inner n px of the tile's square.

        Returns:
            A view, (channels, core height, core width).
        """
        margin = (self.side - pixels.shape[-1]) // 2
        x, y = self.core.x - self.origin[0] - margin, self.core.y - self.origin[1] - margin
        return pixels[:, y : y + self.core.height, x : x + self.core.width]


@dataclass(frozen=True, slots=True)
class TileGrid:
    """The tiles that cover a region of a slide's output image, each output pixel in exactly one core.

    Attributes:
        image: size of the whole slide, output pixels.
        region: the part to cover, output pixels; inside the image.
        side: side of the square that the network sees, halo included, output pixels.
        halo: margin of that square that only gives context, output pixels.
        shift: of the grid's lines against the slide's origin, (x, y) output pixels; not (0, 0) only to see whether a
            stain depends on it.

    Raises:
        RegionError: the region is not inside the image.
    """

    image: Size
    region: Region
    side: int
    halo: int
    shift: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.halo < 0 or self.core <= 0:
            raise ValueError(f"a tile of {self.side} px leaves no core within a halo of {self.halo} px")
        if not Region(0, 0, self.image.width, self.image.height).contains(self.region):
            raise RegionError(f"region {self.region} is not inside the image of {self.image}")

    @property
    def core(self) -> int:
        """Pitch of the grid, output pixels."""
        return self.side - 2 * self.halo

    @property
    def columns(self) -> range:
        """Grid columns that the region touches."""
        return self._touched(self.region.x - self.shift[0], self.region.right - self.shift[0])

    @property
    def rows(self) -> range:
        """Grid rows that the region touches."""
        return self._touched(self.region.y - self.shift[1], self.region.bottom - self.shift[1])

    def _touched(self, start: int, stop: int) -> range:
        return range(start // self.core, -(-stop // self.core))

    def __len__(self) -> int:
        return len(self.columns) * len(self.rows)

    def row_region(self, row: int) -> Region:
        """The part of the region that a grid row's cores cover: full width, at most ``core`` rows."""
        cell = Region(self.region.x, row * self.core + self.shift[1], self.region.width, self.core)
        return _inside(cell, self.region)

    def widened(self, rings: int) -> TileGrid:
        """The grid with the tiles whose squares touch this one's region, and so on for each further ring.

        Each ring adds what the squares of the tiles so far lie on; what lies outside the image is left out.
        """
        whole, region = Region(0, 0, self.image.width, self.image.height), self.region
        for ring in range(rings):
            seen = replace(self, region=region).cells.grown(self.halo) if ring else region
            region = _inside(seen.grown(self.halo), whole)
        return replace(self, region=region)

    @property
    def cells(self) -> Region:
        """The whole cells that the region touches, output pixels; they may reach past the image."""
        columns, rows, core = self.columns, self.rows, self.core
        x, y = columns.start * core + self.shift[0], rows.start * core + self.shift[1]
        return Region(x, y, len(columns) * core, len(rows) * core)

    def tiles(self, holds_tissue: Callable[[Region], bool] | None = None) -> Iterator[Tile]:
        """The tiles in raster order.

        Args:
            holds_tissue: whether a core (output pixels) is to be stained; None: all are.
        """
        for tile in map(self.tile, range(len(self))):
            if holds_tissue is None or holds_tissue(tile.core):
                yield tile

    def tile(self, index: int) -> Tile:
        """One tile, by its place in the raster order of all tiles.

        Raises:
            IndexError: there is none.
        """
        row, column = divmod(index, len(self.columns))
        x, y = self.columns[column] * self.core + self.shift[0], self.rows[row] * self.core + self.shift[1]
        core = _inside(Region(x, y, self.core, self.core), self.region)
        return Tile(index, core, (x - self.halo, y - self.halo), self.side)


def reflected(start: int, length: int, size: int) -> NDArray[np.intp]:
    """Which pixels of an axis stand at the positions ``start .. start + length - 1``, mirrored beyond its ends.

    The mirror keeps the edge pixel single (``c b a b c``), repeats for as long as needed, and depends on the absolute
    position alone, so overlapping tiles see the same continuation. An axis of one pixel repeats that pixel.

    Args:
        start: first position; may be negative.
        length: number of positions.
        size: pixels of the axis.

    Returns:
        (length,) indices in ``[0, size)``.
    """
    period = max(1, 2 * (size - 1))
    folded = np.arange(start, start + length, dtype=np.intp) % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros(length, np.intp)


def _inside(cell: Region, region: Region) -> Region:
    cut = cell.intersection(region)
    if cut is None:
        raise RegionError(f"grid cell {cell} does not touch the region {region}")
    return cut
