"""The slide as the rest of the program sees it: pixels at any um/px, whatever the file behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.errors import PixelSizeError, RegionError, SlideError, SlideLostError
from mupd_wsi.geometry import Mpp, Region, Size, output_size
from mupd_wsi.slides.cache import DEFAULT_CACHE_BYTES, TileCache
from mupd_wsi.slides.damage import DamagedTile, DamageLog
from mupd_wsi.slides.identity import fingerprint
from mupd_wsi.slides.resample import Taps, make_taps, resample
from mupd_wsi.slides.source import PixelSource, RawMpp

#: A level may be this much coarser than what is asked for and still count as fine enough.
_LEVEL_TOLERANCE: Final = 1.001

#: Source pixels that one step of a large read holds at most (72 MB).
_MAX_SOURCE_AREA: Final = 24_000_000


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the pyramid.

    Attributes:
        size: level pixels.
        downsample: level-0 pixels per level pixel.
    """

    size: Size
    downsample: float


class Slide:
    """An open slide. Safe to read from many threads; close it, or use it in a ``with`` statement.

    Memory bound: the cache of decoded tiles (128 MiB unless told) plus, for each reading thread, the region it asked
    for and at most 24 million source pixels.

    Attributes:
        path: the file or folder.
        name: its name without suffixes (``.ome.tiff`` is one suffix).
    """

    def __init__(
        self, path: Path, source: PixelSource, *, mpp: Mpp | None = None, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        self.path = path
        self.name = slide_name(path)
        self._source = source
        self._given_mpp = mpp
        self._cache = TileCache(cache_bytes)
        self._closed = False
        self._damage: DamageLog | None = None
        self._bytes = path.stat().st_size if path.is_file() else None
        facts = source.facts
        full = facts.levels[0].size
        self._scales = tuple(
            (_axis_downsample(full.width, level.size.width), _axis_downsample(full.height, level.size.height))
            for level in facts.levels
        )

    @property
    def format(self) -> str:
        """The file format, for people: ``"Aperio SVS"``, ``"OME-TIFF"``, ``"Hamamatsu NDPI"``..."""
        return self._source.facts.format

    @property
    def backend(self) -> str:
        """What reads the pixels: ``"tifffile"``, ``"openslide"``, ``"zarr"`` or ``"flat"``."""
        return self._source.backend

    @property
    def size(self) -> Size:
        """Size in level-0 pixels."""
        return self._source.facts.levels[0].size

    @property
    def levels(self) -> tuple[Level, ...]:
        """The pyramid, largest level first."""
        levels = zip(self._source.facts.levels, self._scales, strict=True)
        return tuple(Level(level.size, (sx + sy) / 2) for level, (sx, sy) in levels)

    @property
    def file_mpp(self) -> RawMpp | None:
        """The pixel size that the file states, plausible or not; None where it states none."""
        return self._source.facts.raw_mpp

    @property
    def mpp(self) -> Mpp:
        """um per level-0 pixel: the value given to :func:`open_slide`, else the file's.

        Raises:
            PixelSizeError: there is none, or it is absurd.
        """
        if self._given_mpp is not None:
            return self._given_mpp
        raw = self.file_mpp
        if raw is None:
            raise PixelSizeError(
                f"{self.path.name} states no pixel size; give it with --mpp UM "
                "(um per pixel: about 0.25 for a 40x scan, 0.5 for 20x)"
            )
        return Mpp(raw.x, raw.y, raw.source)

    @property
    def magnification(self) -> float | None:
        """The objective power that the file states, or None."""
        return self._source.facts.magnification

    def read(self, region: Region, mpp: float) -> NDArray[np.uint8]:
        """Pixels at any resolution, from the best level, resampled by exact area averaging (bilinear when enlarging).

        A pixel depends on its place on the slide alone, never on the region asked for. The whole slide may be read at
        a coarse ``mpp``: memory stays bounded.

        Args:
            region: output pixels of ``mpp`` um, inside :func:`mupd_wsi.geometry.output_size` of the slide.
            mpp: um per output pixel.

        Returns:
            uint8 (region.height, region.width, 3), RGB.

        Raises:
            PixelSizeError: the slide's own um/px is not known.
            RegionError: the region reaches outside the slide.
            SlideError: the file's pixels cannot be read.
        """
        if mpp <= 0:
            raise PixelSizeError(f"cannot read at {mpp:g} um/px; give a value above 0")
        own = self.mpp
        _require_inside(region, output_size(self.size, own, mpp), f"at {mpp:g} um/px")
        return self._read_scaled(region, mpp / own.x, mpp / own.y)

    def read_level(self, level: int, region: Region) -> NDArray[np.uint8]:
        """Stored pixels of one level.

        Args:
            level: index into :attr:`levels`.
            region: level pixels, inside the level.

        Returns:
            uint8 (region.height, region.width, 3), RGB; transparent places are white.

        Raises:
            RegionError: no such level, or the region reaches outside it.
            SlideError: the file's pixels cannot be read.
        """
        if not 0 <= level < len(self._scales):
            raise RegionError(f"{self.path.name} has levels 0 to {len(self._scales) - 1}, not {level}")
        grid = self._source.facts.levels[level]
        _require_inside(region, grid.size, f"at level {level}")
        out = np.empty((region.height, region.width, 3), np.uint8)
        for row in range(region.y // grid.tile.height, -(-region.bottom // grid.tile.height)):
            for column in range(region.x // grid.tile.width, -(-region.right // grid.tile.width)):
                self._copy_tile(level, column, row, region, out)
        return out

    def thumbnail(self, max_side: int) -> NDArray[np.uint8]:
        """The whole slide as a small picture; needs no um/px and never enlarges.

        Args:
            max_side: longer side of the picture, px.

        Returns:
            uint8 (h, w, 3), RGB; one pixel covers :meth:`thumbnail_scale` level-0 pixels, anchored at the origin.
        """
        scale = self.thumbnail_scale(max_side)
        size = output_size(self.size, Mpp(1, 1, "pixels"), scale)
        return self._read_scaled(Region(0, 0, size.width, size.height), scale, scale)

    def thumbnail_scale(self, max_side: int) -> float:
        """Level-0 pixels per pixel of :meth:`thumbnail`, the same on both axes."""
        return max(1.0, max(self.size.width, self.size.height) / max_side)

    @contextmanager
    def forgiving(self) -> Iterator[DamageLog]:
        """While the block runs, tiles that cannot be decoded are white, and noted; those of coarser levels are computed
        from the finer one. More than 1 % of lost ones is an error, and so is a file that cannot be read any more.
        """
        tiles = self._source.facts.levels[0]
        columns, rows = -(-tiles.size.width // tiles.tile.width), -(-tiles.size.height // tiles.tile.height)
        before, self._damage = self._damage, DamageLog(self.path.name, columns * rows)
        try:
            yield self._damage
        finally:
            self._damage = before
            self._cache.clear()

    @property
    def damaged(self) -> tuple[DamagedTile, ...]:
        """What was found to be damaged inside :meth:`forgiving`."""
        return self._damage.tiles if self._damage is not None else ()

    def fingerprint(self) -> str:
        """A quick identity of the slide's data; see :func:`mupd_wsi.slides.identity.fingerprint`."""
        return fingerprint(self.path)

    def close(self) -> None:
        """Release the file and the cache. Safe to call twice."""
        self._closed = True
        self._cache.clear()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Slide {self.path.name}: {self.format}, {self.size}, {len(self._scales)} levels>"

    def _copy_tile(self, level: int, column: int, row: int, region: Region, out: NDArray[np.uint8]) -> None:
        """Copy what one tile has of a region (level pixels) into the region's array."""
        if self._closed:
            raise SlideError(f"{self.path.name} was closed; open it again before reading")
        tile = self._cache.get((level, column, row), lambda: self._decoded(level, column, row))
        place = self._place(level, column, row)
        part = region.intersection(place)
        if part is None:
            raise RegionError(f"tile {column},{row} of level {level} does not touch the region {region}")
        out[part.y - region.y : part.bottom - region.y, part.x - region.x : part.right - region.x] = tile[
            part.y - place.y : part.bottom - place.y, part.x - place.x : part.right - place.x
        ]

    def _place(self, level: int, column: int, row: int) -> Region:
        """What a tile covers, level pixels."""
        grid = self._source.facts.levels[level]
        clipped = grid.tile_size(column, row)
        return Region(column * grid.tile.width, row * grid.tile.height, clipped.width, clipped.height)

    def _decoded(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """One tile, uint8 (h, w, 3), of the size that the grid promises."""
        place, name = self._place(level, column, row), f"{self.path.name}: tile {column},{row} of level {level}"
        try:
            tile = self._source.tile(level, column, row)
            if tile.shape != (place.height, place.width, 3):
                raise SlideError(
                    f"{name} is {tile.shape[1]} x {tile.shape[0]} px where {place.size} was promised; the file is "
                    "damaged, fetch it again"
                )
        except SlideLostError:
            raise
        except SlideError as error:
            self._require_present()
            if self._damage is None:
                raise
            self._damage.add(self._damaged_tile(level, column, row, str(error.args[0])))
            return self._from_finer(level, place) if level else np.full((place.height, place.width, 3), 255, np.uint8)
        return tile

    def _damaged_tile(self, level: int, column: int, row: int, reason: str) -> DamagedTile:
        place, (sx, sy) = self._place(level, column, row), self._scales[level]
        x, y = int(place.x * sx), int(place.y * sy)
        region = (x, y, round(place.right * sx) - x, round(place.bottom * sy) - y)
        return DamagedTile(level, row, column, region, reason)

    def _from_finer(self, level: int, place: Region) -> NDArray[np.uint8]:
        """What a level should hold at a place (level pixels), computed from the finer level."""
        size, finer = self._source.facts.levels[level - 1].size, self._scales[level - 1]
        scale_x, scale_y = (mine / theirs for mine, theirs in zip(self._scales[level], finer, strict=True))
        columns = make_taps(place.x, place.width, scale_x, size.width)
        rows = make_taps(place.y, place.height, scale_y, size.height)
        return resample(self._read_taps(level - 1, rows, columns), rows, columns)

    def _require_present(self) -> None:
        """Tell damage inside a file from a file that is gone, shrunk, or on a disk that fails."""
        try:
            if self._bytes is None:
                there = self.path.is_dir()
            else:
                there = self.path.stat().st_size == self._bytes
                with self.path.open("rb") as stream:
                    for position in (0, self._bytes // 2, max(0, self._bytes - 1)):
                        stream.seek(position)
                        there = there and stream.read(1) != b""
        except OSError as error:
            raise SlideLostError(
                f"{self.path} cannot be read any more ({error.strerror}); see to its disk or network, and run again"
            ) from error
        if not there:
            raise SlideLostError(f"{self.path} was changed or removed while it was read; put it back, and run again")

    def _read_scaled(self, region: Region, scale_x: float, scale_y: float) -> NDArray[np.uint8]:
        """Read output pixels of ``scale_x`` by ``scale_y`` level-0 pixels, in strips of bounded source area."""
        level = self._best_level(scale_x, scale_y)
        size = self._source.facts.levels[level].size
        down_x, down_y = self._scales[level]
        if (scale_x, scale_y) == (down_x, down_y) and region.right <= size.width and region.bottom <= size.height:
            return self.read_level(level, region)
        columns = make_taps(region.x, region.width, scale_x / down_x, size.width)
        rows_at_once = max(1, int(_MAX_SOURCE_AREA / (columns.stop - columns.start) / max(scale_y / down_y, 1)))
        out = np.empty((region.height, region.width, 3), np.uint8)
        for top, bottom in _strips(region.height, rows_at_once):
            rows = make_taps(region.y + top, bottom - top, scale_y / down_y, size.height)
            out[top:bottom] = resample(self._read_taps(level, rows, columns), rows, columns)
        return out

    def _read_taps(self, level: int, rows: Taps, columns: Taps) -> NDArray[np.uint8]:
        needed = Region(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        return self.read_level(level, needed)

    def _best_level(self, scale_x: float, scale_y: float) -> int:
        """The coarsest level that is still as fine as the output on both axes."""
        fine = [
            index
            for index, (sx, sy) in enumerate(self._scales)
            if sx <= scale_x * _LEVEL_TOLERANCE and sy <= scale_y * _LEVEL_TOLERANCE
        ]
        return max(fine, key=lambda index: self._scales[index], default=0)


def slide_name(path: Path) -> str:
    """The name of a slide without its suffix, where ``.ome.tiff`` and the like are one suffix."""
    stem = path.stem
    return stem[: -len(".ome")] if stem.lower().endswith(".ome") and len(stem) > len(".ome") else stem


def _axis_downsample(full: int, part: int) -> float:
    """Level-0 pixels per level pixel along one axis.

    Scanners shrink by whole factors and round the level's size, so 25209 / 6302 means 4, not 4.0001; taking the
    quotient would shift the far edge by a pixel.
    """
    whole = round(full / part)
    return float(whole) if full // whole <= part <= -(-full // whole) else full / part


def _strips(total: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, step):
        yield start, min(start + step, total)


def _require_inside(region: Region, size: Size, where: str) -> None:
    if not Region(0, 0, size.width, size.height).contains(region):
        raise RegionError(f"region {region} (x,y,width,height) reaches outside the slide's {size} {where}")
