"""Stains training tiles as they are stained on the slide: with their neighbours as the halo."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from mupd_wsi.errors import SlideError
from mupd_wsi.model.protocol import TileStainer, tile_and_halo
from mupd_wsi.request import SampleOptions
from mupd_wsi.training.tiles import TilePlace

GLASS = 245


class SquareReader(Protocol):
    """H&E at any place, slides and tiles joined on one raster of tiles."""

    @property
    def tile(self) -> int:
        """Side of a tile, px."""

    def read(self, x: int, y: int, side: int) -> NDArray[np.uint8]:
        """A square of H&E: uint8 (side, side, 3); x and y in pixels of the raster, may be negative."""


class SlideOfTiles:
    """The H&E of a folder of square tiles as one slide; tiles that are not there are glass.

    Memory: the last 24 decoded tiles (3 MB each at 1024 px).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._decoded = lru_cache(24)(self._decode)
        names = [path.stem.split("_") for path in sorted((folder / "HE").glob("*_*.jpg"))]
        first = self._decoded(int(names[0][0]), int(names[0][1])) if names else None
        if first is None:
            raise SlideError(f"{folder / 'HE'} holds no tile named <x>_<y>.jpg")
        self.tile = len(first)

    def read(self, x: int, y: int, side: int) -> NDArray[np.uint8]:
        """A square of H&E: uint8 (side, side, 3); x and y in pixels of the whole slide, may be negative."""
        out = np.full((side, side, 3), GLASS, np.uint8)
        for row in range(y // self.tile, (y + side - 1) // self.tile + 1):
            for column in range(x // self.tile, (x + side - 1) // self.tile + 1):
                pixels = self._decoded(column, row)
                if pixels is None:
                    continue
                left, top = column * self.tile, row * self.tile
                x0, y0 = max(x, left), max(y, top)
                x1, y1 = min(x + side, left + self.tile), min(y + side, top + self.tile)
                out[y0 - y : y1 - y, x0 - x : x1 - x] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def _decode(self, column: int, row: int) -> NDArray[np.uint8] | None:
        path = self.folder / "HE" / f"{column}_{row}.jpg"
        return np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.uint8) if path.is_file() else None


def stain_tiles(
    stainer: TileStainer, slide: SquareReader, places: tuple[TilePlace, ...], options: SampleOptions
) -> Iterator[NDArray[np.float32]]:
    """Intensities of whole tiles, (C, tile, tile), one a place, in the order of ``places``."""
    side, halo = tile_and_halo(stainer.info, options)
    core = side - 2 * halo
    for place in places:
        left, top = place.x * slide.tile, place.y * slide.tile
        corners = [(left + x, top + y) for y in range(0, slide.tile, core) for x in range(0, slide.tile, core)]
        origins = [(x - halo, y - halo) for x, y in corners]
        tiles = np.stack([slide.read(x, y, side) for x, y in origins])
        stained = stainer.stain(tiles, origins, options, margin=halo)
        out = np.empty((stained.shape[1], slide.tile, slide.tile), np.float32)
        for (x, y), pixels in zip(corners, stained, strict=True):
            out[:, y - top : y - top + core, x - left : x - left + core] = pixels
        yield out
