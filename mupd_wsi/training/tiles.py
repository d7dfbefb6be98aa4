"""Folders of paired tiles, held in memory as bytes, and the crops that training draws from them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mupd_wsi.errors import SlideError, UsageError

PATCH = 64  # px; the raster on which tissue and bright markers are located
TISSUE_SATURATION = 18  # HSV saturation, 0-255: ORION's glass lies below 8, its palest stroma above 25


@dataclass(frozen=True, slots=True)
class TilePlace:
    """Column and row of a tile in the slide's raster."""

    x: int
    y: int


@dataclass(frozen=True)
class PairedTiles:
    """H&E tiles and their markers.

    Attributes:
        places: where each tile lies.
        he: uint8 (N, H, W, 3), RGB.
        markers: uint8 (N, C, H, W).
    """

    places: tuple[TilePlace, ...]
    he: NDArray[np.uint8]
    markers: NDArray[np.uint8]

    @cached_property
    def patch_tissue(self) -> NDArray[np.bool_]:
        """Which patches of PATCH px are mostly tissue: (N, H/PATCH, W/PATCH)."""
        masks = [cv2.cvtColor(tile, cv2.COLOR_RGB2HSV)[..., 1] > TISSUE_SATURATION for tile in self.he]
        return patch_means(np.stack(masks)[:, None].astype(np.uint8))[:, 0] > 0.3

    @cached_property
    def patch_brightness(self) -> NDArray[np.float32]:
        """Mean of each marker over patches of PATCH px: (N, C, H/PATCH, W/PATCH)."""
        return patch_means(self.markers)


def patch_means(planes: NDArray[Any], patch: int = PATCH) -> NDArray[np.float32]:
    """Means over squares of ``patch`` px: (N, C, H, W) to (N, C, H/patch, W/patch)."""
    n, c, h, w = planes.shape
    return np.stack(
        [p.reshape(c, h // patch, patch, w // patch, patch).mean(axis=(2, 4), dtype=np.float32) for p in planes]
    ).reshape(n, c, h // patch, w // patch)


def list_tiles(folder: Path, split: str) -> tuple[TilePlace, ...]:
    """Tiles of a split, from the folder's ``tiles.csv``.

    Raises:
        UsageError: there is no such table, or no tile of that split in it.
    """
    table = folder / "tiles.csv"
    if not table.is_file():
        raise UsageError(f"{table} is missing: it lists the tiles (columns x, y, split)")
    with table.open(newline="", encoding="utf-8") as stream:
        places = tuple(TilePlace(int(r["x"]), int(r["y"])) for r in csv.DictReader(stream) if r["split"] == split)
    if not places:
        raise UsageError(f"{table} has no tile of split {split!r}")
    return places


def load_tiles(folder: Path, split: str, markers: tuple[str, ...], most: int | None = None) -> PairedTiles:
    """Decode the tiles of a split.

    Args:
        folder: with ``tiles.csv``.
        split: which.
        markers: channels, in this order.
        most: tiles to take, spread evenly; None takes all.

    Raises:
        UsageError: as :func:`list_tiles`.
        SlideError: a tile's file is missing or no image.
    """
    places = list_tiles(folder, split)
    if most is not None:
        places = tuple(places[i] for i in np.unique(np.linspace(0, len(places) - 1, most).astype(int)))
    he = np.stack([_decode(folder, "HE", place, cv2.IMREAD_COLOR_RGB) for place in places])
    planes = np.empty((len(places), len(markers), *he.shape[1:3]), np.uint8)
    for i, place in enumerate(places):
        for c, marker in enumerate(markers):
            planes[i, c] = _decode(folder, marker, place, cv2.IMREAD_GRAYSCALE)
    return PairedTiles(places, he, planes)


def _decode(folder: Path, channel: str, place: TilePlace, mode: int) -> NDArray[np.uint8]:
    path = folder / channel / f"{place.x}_{place.y}.jpg"
    pixels = cv2.imread(str(path), mode)
    if pixels is None:
        raise SlideError(f"{path} is missing or not an image")
    return np.asarray(pixels, np.uint8)


class CropSampler:
    """Draws crops: some anywhere on tissue, some where a randomly chosen marker is bright.

    Choosing by the H&E's place and not by single pixels keeps p(marker | H&E) of the training set nearly true, so that
    the conditional mean stays calibrated while rare markers are seen.
    """

    def __init__(self, tiles: PairedTiles, crop: int, positive_share: float, rng: np.random.Generator) -> None:
        self.tiles, self.crop, self.positive_share, self.rng = tiles, crop, positive_share, rng
        self._tissue = np.flatnonzero(tiles.patch_tissue)
        bright = tiles.patch_brightness * tiles.patch_tissue[:, None]
        floor = np.quantile(bright, 0.5, axis=(0, 2, 3), keepdims=True)
        ceiling = np.quantile(bright, 0.998, axis=(0, 2, 3), keepdims=True)  # dust and folds outshine every cell
        weights = np.clip(bright, floor, ceiling) - floor
        weights = weights.transpose(1, 0, 2, 3).reshape(bright.shape[1], -1)
        self._cumulative = np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True)

    def draw(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """One crop: H&E (crop, crop, 3) and markers (C, crop, crop), turned and mirrored at random."""
        tile, row, column = np.unravel_index(self._draw_patch(), self.tiles.patch_tissue.shape)
        y, x = (self._corner(int(p), self.tiles.he.shape[1 + axis]) for axis, p in enumerate((row, column)))
        window = np.s_[y : y + self.crop, x : x + self.crop]
        he, markers = self.tiles.he[tile][window], self.tiles.markers[tile][(slice(None), *window)]
        turns, mirror = int(self.rng.integers(4)), bool(self.rng.integers(2))
        he, markers = np.rot90(he, turns), np.rot90(markers, turns, axes=(1, 2))
        return (he[:, ::-1], markers[:, :, ::-1]) if mirror else (he, markers)

    def _draw_patch(self) -> int:
        if self.rng.random() >= self.positive_share:
            return int(self.rng.choice(self._tissue))
        marker = self.rng.integers(len(self._cumulative))
        return int(np.searchsorted(self._cumulative[marker], self.rng.random()))

    def _corner(self, patch: int, extent: int) -> int:
        """A random corner of a crop that holds the patch, inside the tile."""
        low, high = max(0, (patch + 1) * PATCH - self.crop), min(extent - self.crop, patch * PATCH)
        return int(self.rng.integers(low, high + 1))
