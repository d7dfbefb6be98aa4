"""Value objects for places and sizes. Each validates itself, so that its users need not.

Two frames occur, and every variable of these types says in its name or docstring which one it is in:

* *level-0 pixels* of the slide, as the scanner wrote them;
* *output pixels*: squares of ``mpp`` um whose (0, 0) has its top left corner at the slide's level-0 origin.
  Output pixel (x, y) covers level-0 ``[x * s, (x + 1) * s)`` with ``s = output mpp / slide mpp``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from mupd_wsi.errors import PixelSizeError, RegionError

MIN_MPP: Final = 0.05
MAX_MPP: Final = 5.0
MAX_MPP_ANISOTROPY: Final = 0.02


@dataclass(frozen=True, slots=True)
class Size:
    """A size in pixels, both at least 1."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a size needs at least 1 x 1 px, got {self.width} x {self.height}")

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width} x {self.height} px"


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of whole pixels, ``[x, x + width) x [y, y + height)``, in the frame its owner states."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise RegionError(f"a region needs at least 1 x 1 px, got {self.width} x {self.height}")

    @property
    def right(self) -> int:
        """First column past the region."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """First row past the region."""
        return self.y + self.height

    @property
    def size(self) -> Size:
        """Width and height."""
        return Size(self.width, self.height)

    def intersection(self, other: Region) -> Region | None:
        """The pixels in both, or None where there are none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Region(x, y, right - x, bottom - y) if right > x and bottom > y else None

    def contains(self, other: Region) -> bool:
        """Whether all pixels of the other lie in this one."""
        return self.intersection(other) == other

    def grown(self, margin: int) -> Region:
        """The region with ``margin`` px more on every side; it may reach below 0."""
        return Region(self.x - margin, self.y - margin, self.width + 2 * margin, self.height + 2 * margin)

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.width},{self.height}"


def parse_region(text: str) -> Region:
    """A region from ``X,Y,W,H``.

    Raises:
        RegionError: not four whole numbers, or W or H below 1.
    """
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise RegionError(
            f"{text!r} is not four whole numbers X,Y,W,H (level-0 pixels), such as 1000,2000,512,512"
        ) from None
    if width < 1 or height < 1:
        raise RegionError(f"{text!r} is empty: W and H must be at least 1")
    return Region(x, y, width, height)


@dataclass(frozen=True, slots=True)
class Mpp:
    """A slide's pixel size in um/px (level 0) and where it was found.

    Raises:
        PixelSizeError: outside 0.05-5 um/px, or x and y differ by more than 2 %.
    """

    x: float
    y: float
    source: str

    def __post_init__(self) -> None:
        shown = f"{self.x:g} x {self.y:g} um/px (from {self.source})"
        if not all(math.isfinite(v) and MIN_MPP <= v <= MAX_MPP for v in (self.x, self.y)):
            raise PixelSizeError(
                f"pixel size {shown} is not plausible (expected {MIN_MPP}-{MAX_MPP}); give the true one with --mpp UM"
            )
        if abs(self.x - self.y) > MAX_MPP_ANISOTROPY * max(self.x, self.y):
            raise PixelSizeError(f"pixel size {shown} differs by more than 2 % between x and y; give it with --mpp UM")

    @property
    def mean(self) -> float:
        """um/px where one number has to do: equal within 2 % on both axes by construction."""
        return (self.x + self.y) / 2


def output_size(slide_size: Size, slide_mpp: Mpp, out_mpp: float) -> Size:
    """Size of the output grid that covers a whole slide: every level-0 pixel lies in some output pixel.

    Args:
        slide_size: level-0 pixels.
        slide_mpp: um per level-0 pixel.
        out_mpp: um per output pixel.
    """
    return Size(
        max(1, _cells(slide_size.width * slide_mpp.x / out_mpp)),
        max(1, _cells(slide_size.height * slide_mpp.y / out_mpp)),
    )


def _cells(extent: float) -> int:
    """Ceiling that forgives rounding: 100.0000001 cells are 100."""
    return math.ceil(extent - 1e-6)
