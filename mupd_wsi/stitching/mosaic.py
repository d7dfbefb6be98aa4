"""Overlapping tiles as one picture: weights that fade towards a tile's border, and sums of what was weighted.

Sums are kept in square cells of one tile pitch whose lattice begins where tiles' squares begin, halo included. Row
``r`` of cells is then complete as soon as row ``r`` of tiles has come: the next row of tiles begins below it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

#: Row and column of a cell.
Place = tuple[int, int]


def fading_weights(side: int, halo: int) -> NDArray[np.float32]:
    """Raised-cosine weights of a tile, float32 (side, side), above 0.

    They rise over the strip of ``2 * halo`` px that a tile shares with its neighbour, so that the weights of all tiles
    add up to 1 at every place (where a strip is not wider than half a tile).
    """
    if halo == 0:
        return np.ones((side, side), np.float32)
    along = np.arange(side) + 0.5
    rise = np.minimum(along / (2 * halo), 1) * (np.pi / 2)
    line = np.sin(rise) ** 2 * np.sin(rise[::-1]) ** 2
    return np.outer(line, line).astype(np.float32)


class Mosaic:
    """Values of places on the slide, in cells that exist only where something was put.

    Memory bound: the cells that were put or added to and not taken yet, ``channels x pitch^2 x 4`` bytes each.

    Args:
        channels: of the values.
        pitch: side of a cell, px.
        corner: where cell (0, 0) begins, (x, y).
    """

    def __init__(self, channels: int, pitch: int, corner: tuple[int, int]) -> None:
        self._shape = (channels, pitch, pitch)
        self._pitch, self._corner = pitch, corner
        self._cells: dict[Place, NDArray[np.float32]] = {}

    def __contains__(self, place: Place) -> bool:
        return place in self._cells

    def __len__(self) -> int:
        return len(self._cells)

    def corner_of(self, place: Place) -> tuple[int, int]:
        """Where a cell begins, (x, y)."""
        return place[1] * self._pitch + self._corner[0], place[0] * self._pitch + self._corner[1]

    def touched(self, x: int, y: int, side: int) -> Iterator[Place]:
        """The cells that a square touches."""
        columns, rows = (
            range((start - corner) // self._pitch, -(-(start + side - corner) // self._pitch))
            for start, corner in zip((x, y), self._corner, strict=True)
        )
        return ((row, column) for row in rows for column in columns)

    def put(self, place: Place, values: NDArray[np.float32]) -> None:
        """Set a whole cell, (channels, pitch, pitch)."""
        self._cells[place] = values

    def add(self, x: int, y: int, values: NDArray[np.float32]) -> None:
        """Add a square (channels, side, side) whose corner lies at (x, y)."""
        for place in self.touched(x, y, values.shape[-1]):
            cell = self._cells.get(place)
            if cell is None:
                cell = self._cells[place] = np.zeros(self._shape, np.float32)
            inside, outside = self._shared(place, x, y, values.shape[-1])
            cell[:, *inside] += values[:, *outside]

    def read(self, x: int, y: int, side: int) -> NDArray[np.float32]:
        """A square (channels, side, side) whose corner lies at (x, y); 0 where there is no cell."""
        values = np.zeros((self._shape[0], side, side), np.float32)
        for place in self.touched(x, y, side):
            if place in self._cells:
                inside, outside = self._shared(place, x, y, side)
                values[:, *outside] = self._cells[place][:, *inside]
        return values

    def take(self, place: Place) -> NDArray[np.float32]:
        """Remove a cell and give it."""
        return self._cells.pop(place)

    def row(self, row: int) -> list[Place]:
        """The cells of a row, from left to right."""
        return sorted(place for place in self._cells if place[0] == row)

    def drop_above(self, row: int) -> None:
        """Forget all rows above one."""
        for place in [place for place in self._cells if place[0] < row]:
            del self._cells[place]

    def _shared(self, place: Place, x: int, y: int, side: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns that a cell and a square share: inside the cell, and inside the square."""
        left, top = self.corner_of(place)
        inside, outside = [], []
        for cell, square in ((top, y), (left, x)):
            start, stop = max(cell, square), min(cell + self._pitch, square + side)
            inside.append(slice(start - cell, stop - cell))
            outside.append(slice(start - square, stop - square))
        return (inside[0], inside[1]), (outside[0], outside[1])


class WeightedSum:
    """Merges overlapping squares: at every place the mean of what was added there, weighted.

    Args:
        channels: of the values.
        pitch: side of a cell, px.
        corner: where cell (0, 0) begins, (x, y).
        weights: of a square, (side, side), above 0.
    """

    def __init__(self, channels: int, pitch: int, corner: tuple[int, int], weights: NDArray[np.float32]) -> None:
        self._sums = Mosaic(channels + 1, pitch, corner)
        self._weights = weights

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, x: int, y: int, values: NDArray[np.float32]) -> None:
        """Add a square (channels, side, side) whose corner lies at (x, y)."""
        self._sums.add(x, y, np.concatenate([values * self._weights, self._weights[None]]))

    def take_row(self, row: int) -> Iterator[tuple[Place, NDArray[np.float32]]]:
        """Remove a row of cells, and give each with its means (channels, pitch, pitch); 0 where nothing was added."""
        for place in self._sums.row(row):
            sums = self._sums.take(place)
            weight = sums[-1]
            yield place, np.divide(sums[:-1], weight, out=np.zeros_like(sums[:-1]), where=weight > 0)
