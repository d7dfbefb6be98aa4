"""How well the tiles of a stained slide join: two measurements of what is written.

*Grid shift*: a place is stained again by a tile that lies half a tile further, and compared with what was written
there. One slide, whatever the grid, gives 0.

*Edge step*: mean second difference over the edges of tiles, over the same at columns and rows beside them. Where
nothing happens at an edge it is about 1. The controls lie a multiple of 16 px away, because networks that work in
patches leave a lattice of their own in the picture, on which the edges lie too: only what edges add to it is a seam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.geometry import Region

#: Distances of the controls from an edge, px.
CONTROLS: Final = (-64, -48, -32, -16, 16, 32, 48, 64)
#: Mean second difference of the controls below which rounding to 8 bits decides it, grey levels.
LEAST_CONTROL: Final = 0.1
#: Rows above an edge, or columns beside it, that its measurement needs.
REACH: Final = max(CONTROLS) + 2

#: Which pixels of a region (output pixels of the slide) count: bool (height, width).
Counts = Callable[[Region], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class GridShift:
    """How far the stain depends on where the grid lies.

    Attributes:
        mean: absolute difference, grey levels.
        max: the largest one.
        places: that were stained twice.
        pixels: compared at all places together, each with all its samples.
    """

    mean: float
    max: int
    places: int
    pixels: int


@dataclass(frozen=True, slots=True)
class EdgeStep:
    """How much rougher a stain is over the edges of tiles than beside them.

    Attributes:
        ratio: of mean second differences; about 1 without seams.
        pixels: of edges that were measured.
    """

    ratio: float
    pixels: int


@dataclass(frozen=True, slots=True)
class SeamReport:
    """Both measurements; None where there is nothing to measure: no edge inside the output, or no tissue at any."""

    grid_shift: GridShift | None
    edge_step: EdgeStep | None

    def as_json(self) -> dict[str, Any]:
        """JSON values, rounded."""
        return {
            "grid_shift": asdict(self.grid_shift) | {"mean": round(self.grid_shift.mean, 5)}
            if self.grid_shift
            else None,
            "edge_step": asdict(self.edge_step) | {"ratio": round(self.edge_step.ratio, 4)} if self.edge_step else None,
        }


@dataclass
class ShiftProbe:
    """Keeps what was written of one place.

    Memory bound: ``samples x place`` bytes, twice.

    Args:
        place: output pixels of the slide.
        samples: planes of the image.
    """

    place: Region
    samples: int
    _pixels: NDArray[np.uint8] = field(init=False)
    _seen: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self._pixels = np.zeros((self.samples, self.place.height, self.place.width), np.uint8)
        self._seen = np.zeros(self._pixels.shape[1:], np.bool_)

    def keep(self, core: Region, pixels: NDArray[np.uint8]) -> None:
        """Take the part of a finished core (output pixels of the slide) that lies in the place."""
        shared = core.intersection(self.place)
        if shared is None:
            return
        rows, columns = _slices(shared, self.place)
        self._pixels[:, rows, columns] = pixels[:, *_slices(shared, core)]
        self._seen[rows, columns] = True

    def differences(self, other: NDArray[np.uint8], counts: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
        """Absolute differences at the pixels that were kept.

        Args:
            other: the place stained another time, uint8 (samples, height, width).
            counts: bool (height, width), the pixels that count; None: all.
        """
        chosen = self._seen if counts is None else self._seen & counts
        differences = np.maximum(self._pixels, other) - np.minimum(self._pixels, other)
        return differences.reshape(len(differences), -1) if chosen.all() else differences[:, chosen]


def grid_shift(differences: Sequence[NDArray[np.uint8]]) -> GridShift | None:
    """Sum up the differences of several places; None where no pixel counts."""
    pixels = sum(part.shape[1] for part in differences)
    if not pixels:
        return None
    values = [part for part in differences if part.size]
    mean = sum(int(part.sum(dtype=np.int64)) for part in values) / sum(part.size for part in values)
    return GridShift(mean, max(int(part.max()) for part in values), len(values), pixels)


class EdgeStepMeter:
    """Measures the edges between tiles while finished bands of rows pass by.

    Memory bound: the last :data:`REACH` rows of a band. An edge pixel counts where it and all of its controls do.

    Args:
        region: the part of the slide that is written, output pixels.
        core: pitch of the grid of tiles; its lines are at multiples of it, output pixels of the slide.
        counts: which pixels count, for instance those that are tissue; None: all.
    """

    def __init__(self, region: Region, core: int, counts: Counts | None) -> None:
        self._region, self._core, self._counts = region, core, counts
        self._offsets = tuple(offset for offset in CONTROLS if abs(offset) <= core // 2)
        self._above: tuple[Region, NDArray[np.uint8]] | None = None
        self._edge = self._control = 0.0
        self._samples = self._pixels = 0

    def add(self, rows: Region, pixels: NDArray[np.uint8]) -> None:
        """Take the next band.

        Args:
            rows: full width, output pixels counted from the region's top left corner.
            pixels: uint8 (samples, height, width).
        """
        band = Region(self._region.x, self._region.y + rows.y, rows.width, rows.height)
        first = band.x // self._core + 1
        for line in range(first * self._core, band.right, self._core):
            self._measure(pixels, band, line, across=True)
        strip = band
        if self._above is not None:
            above, tail = self._above
            strip = Region(band.x, above.y, band.width, above.height + min(band.height, REACH))
            both = np.concatenate([tail, pixels[:, :REACH]], axis=1)
            if band.y % self._core == 0:
                self._measure(both, strip, band.y, across=False)
        kept = min(band.height, REACH)
        self._above = Region(band.x, band.bottom - kept, band.width, kept), pixels[:, -kept:].copy()

    def result(self) -> EdgeStep | None:
        """The ratio over all edges so far; None where there was none."""
        if not self._pixels:
            return None
        least = LEAST_CONTROL * self._pixels * self._samples
        return EdgeStep(float(self._edge / max(self._control, least)), self._pixels)

    def _measure(self, pixels: NDArray[np.uint8], where: Region, line: int, *, across: bool) -> None:
        """Add one edge: the column (``across``) or row ``line`` begins a tile; ``pixels`` lie at ``where``."""
        start, stop = (where.x, where.right) if across else (where.y, where.bottom)
        offsets = [o for o in self._offsets if line + o - 2 >= start and line + o + 2 <= stop]
        if not offsets or line - 2 < start or line + 2 > stop:
            return
        taken = np.add.outer([line + o - start for o in (0, *offsets)], (-2, -1, 0, 1))  # (1 + controls, 4)
        quads = np.moveaxis(pixels, 2, 1)[:, taken] if across else pixels[:, taken]  # (samples, 1 + controls, 4, along)
        steps = _second_differences(quads)
        chosen = self._chosen(where, line, offsets, taken + start, across=across)
        sums = steps[:, :, chosen].sum(axis=(0, 2), dtype=np.int64) if chosen is not None else steps.sum(axis=(0, 2))
        self._edge += sums[0] / 2
        self._control += float(sums[1:].mean()) / 2
        self._samples = len(pixels)
        self._pixels += int(chosen.sum()) if chosen is not None else steps.shape[2]

    def _chosen(
        self, where: Region, line: int, offsets: Sequence[int], taken: NDArray[np.intp], *, across: bool
    ) -> NDArray[np.bool_] | None:
        """Along an edge, the pixels that count, bool (length,); None: all."""
        if self._counts is None:
            return None
        low = min(line, line + min(offsets)) - 2
        length = max(line, line + max(offsets)) + 2 - low
        strip = Region(low, where.y, length, where.height) if across else Region(where.x, low, where.width, length)
        found = self._counts(strip)
        lines = (found if across else found.T)[:, (taken - low).ravel()]
        return np.asarray(lines.all(axis=1))


def _second_differences(quads: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Twice the mean absolute second difference over the middle of four pixels: (samples, n, 4, along) to
    (samples, n, along)."""
    a, b, c, d = (quads[:, :, i].astype(np.int16) for i in range(4))
    twice: NDArray[np.int32] = (np.abs(a - 2 * b + c) + np.abs(b - 2 * c + d)).astype(np.int32)
    return twice


def _slices(part: Region, whole: Region) -> tuple[slice, slice]:
    """Rows and columns of a part inside an array that holds the whole."""
    y, x = part.y - whole.y, part.x - whole.x
    return slice(y, y + part.height), slice(x, x + part.width)
