from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mupd_wsi.errors import RegionError
from mupd_wsi.geometry import Region, Size
from mupd_wsi.tiling import TileGrid, reflected


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    halo = draw(st.integers(0, 9))
    side = 2 * halo + draw(st.integers(1, 40))
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    region = Region(x, y, draw(st.integers(1, width - x)), draw(st.integers(1, height - y)))
    return TileGrid(Size(width, height), region, side, halo)


@settings(deadline=None)
@given(grids())
def test_cores_cover_every_pixel_of_the_region_exactly_once_and_nothing_else(grid: TileGrid) -> None:
    times = np.zeros((grid.image.height, grid.image.width), int)
    for tile in grid.tiles():
        times[tile.core.y : tile.core.bottom, tile.core.x : tile.core.right] += 1
    expected = np.zeros_like(times)
    expected[grid.region.y : grid.region.bottom, grid.region.x : grid.region.right] = 1
    assert np.array_equal(times, expected)


@settings(deadline=None)
@given(grids())
def test_tiles_come_in_raster_order_on_the_slides_own_grid(grid: TileGrid) -> None:
    tiles = list(grid.tiles())
    assert [tile.index for tile in tiles] == list(range(len(grid)))
    assert [(t.core.y, t.core.x) for t in tiles] == sorted((t.core.y, t.core.x) for t in tiles)
    for tile in tiles:
        assert (tile.origin[0] + grid.halo) % grid.core == 0
        assert (tile.origin[1] + grid.halo) % grid.core == 0
        seen = Region(*tile.origin, grid.side, grid.side)
        assert seen.contains(tile.core.grown(grid.halo) if tile.core.size == Size(grid.core, grid.core) else tile.core)


@settings(deadline=None)
@given(grids())
def test_a_region_sees_the_tiles_of_the_whole_slide(grid: TileGrid) -> None:
    whole = TileGrid(grid.image, Region(0, 0, grid.image.width, grid.image.height), grid.side, grid.halo)
    cells = {tile.origin: tile.core for tile in whole.tiles()}
    for tile in grid.tiles():
        assert cells[tile.origin].intersection(grid.region) == tile.core


@settings(deadline=None)
@given(grids())
def test_rows_cut_the_region_into_the_bands_that_the_cores_lie_in(grid: TileGrid) -> None:
    rows = [grid.row_region(row) for row in grid.rows]
    assert sum(row.height for row in rows) == grid.region.height
    for tile in grid.tiles():
        assert sum(row.contains(tile.core) for row in rows) == 1


@settings(deadline=None)
@given(grids())
def test_skipped_tiles_keep_the_others_numbers(grid: TileGrid) -> None:
    every = list(grid.tiles())
    odd = list(grid.tiles(lambda core: (core.x // grid.core) % 2 == 1))
    assert odd == [tile for tile in every if (tile.core.x // grid.core) % 2 == 1]


def test_crop_takes_the_core_out_of_what_the_network_made() -> None:
    grid = TileGrid(Size(100, 80), Region(30, 10, 70, 70), side=48, halo=8)
    for tile in grid.tiles():
        y, x = np.mgrid[: grid.side, : grid.side]
        places = np.stack([x + tile.origin[0], y + tile.origin[1]]).astype(np.float32)
        cut = tile.crop(places)
        assert cut.shape == (2, tile.core.height, tile.core.width)
        assert (cut[0, 0, 0], cut[1, 0, 0]) == (tile.core.x, tile.core.y)
        assert (cut[0, -1, -1], cut[1, -1, -1]) == (tile.core.right - 1, tile.core.bottom - 1)


def test_a_region_outside_the_image_and_a_tile_without_a_core_are_refused() -> None:
    with pytest.raises(RegionError, match="not inside"):
        TileGrid(Size(10, 10), Region(5, 5, 6, 5), 8, 1)
    with pytest.raises(ValueError, match="leaves no core"):
        TileGrid(Size(10, 10), Region(0, 0, 10, 10), 8, 4)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 100), st.integers(0, 100))
def test_reflection_is_numpys(size: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(size), (before, after), mode="reflect")
    assert np.array_equal(reflected(-before, before + size + after, size), expected)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(-100, 100), st.integers(1, 60), st.integers(0, 59))
def test_reflection_depends_on_the_place_alone(size: int, start: int, length: int, shift: int) -> None:
    assert np.array_equal(reflected(start, length + shift, size)[shift:], reflected(start + shift, length, size))
