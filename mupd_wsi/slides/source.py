"""What every backend offers: the tiles of a pyramid, and the facts its file states about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.geometry import Size


@dataclass(frozen=True, slots=True)
class RawMpp:
    """A pixel size as the file states it, plausible or not (:class:`mupd_wsi.geometry.Mpp` is the checked one).

    Attributes:
        x: um per level-0 pixel, horizontally.
        y: um per level-0 pixel, vertically.
        source: where it was found, such as ``"aperio.MPP"``.
    """

    x: float
    y: float
    source: str


@dataclass(frozen=True, slots=True)
class TileLevel:
    """One pyramid level cut into tiles on a grid anchored at the level's origin.

    Attributes:
        size: level pixels.
        tile: level pixels of a whole tile; those at the right and bottom edge are clipped.
    """

    size: Size
    tile: Size

    def tile_size(self, column: int, row: int) -> Size:
        """Size of one tile after clipping at the level's edge."""
        return Size(
            min(self.tile.width, self.size.width - column * self.tile.width),
            min(self.tile.height, self.size.height - row * self.tile.height),
        )


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What a file says of itself.

    Attributes:
        format: for people, such as ``"Aperio SVS"``.
        levels: largest first; level 0 is the slide as scanned.
        raw_mpp: the stated pixel size, or None.
        magnification: the stated objective power, or None.
    """

    format: str
    levels: tuple[TileLevel, ...]
    raw_mpp: RawMpp | None = None
    magnification: float | None = None


class PixelSource(Protocol):
    """A backend: decodes one tile at a time and remembers none (the slide caches them). Many threads may use it."""

    @property
    def backend(self) -> str:
        """Name of the backend: ``"tifffile"``, ``"openslide"``, ``"zarr"`` or ``"flat"``."""

    @property
    def facts(self) -> SourceFacts:
        """What the file says of itself."""

    def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """Decode one tile.

        Returns:
            uint8 (height, width, 3), RGB on white, clipped at the level's edge.

        Raises:
            SlideError: the data are corrupt or cannot be read; the message says where.
        """

    def close(self) -> None:
        """Release the file. Safe to call twice."""


def on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite straight-alpha RGBA, uint8 (h, w, 4), on white: empty places of a slide are glass, not black."""
    alpha = rgba[..., 3:]
    rgb = rgba[..., :3]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    weight = alpha.astype(np.uint16)
    mixed = (rgb * weight + 255 * (255 - weight) + 127) // 255
    return mixed.astype(np.uint8)
