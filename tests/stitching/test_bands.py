from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mupd_wsi.geometry import Region, Size
from mupd_wsi.layout import as_planes, lies_by_pixel
from mupd_wsi.stitching import BandStitcher
from mupd_wsi.tiling import TileGrid

Cores = list[tuple[Region, NDArray[np.uint8]]]


def stitched(stitcher: BandStitcher, cores: Cores, size: Size, samples: int) -> NDArray[np.uint8]:
    bands = list(stitcher.bands(iter(cores)))
    assert [rows.y for rows, _ in bands] == list(np.cumsum([0, *(rows.height for rows, _ in bands[:-1])]))
    assert all(pixels.shape == (samples, rows.height, size.width) for rows, pixels in bands)
    return np.concatenate([pixels for _, pixels in bands], axis=1)


@settings(deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 30), st.integers(1, 4), st.sampled_from([0, 255]), st.data()
)
def test_equals_a_canvas_that_holds_the_whole_image(
    width: int, height: int, core: int, samples: int, background: int, data: st.DataObject
) -> None:
    size = Size(width, height)
    grid = TileGrid(size, Region(0, 0, width, height), core, 0)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    canvas = np.full((samples, height, width), background, np.uint8)
    cores: Cores = []
    for tile in grid.tiles():
        if rng.random() < 0.6:
            part = rng.integers(0, 256, (samples, tile.core.height, tile.core.width), np.uint8)
            cores.append((tile.core, part))
            canvas[:, tile.core.y : tile.core.bottom, tile.core.x : tile.core.right] = part
    stitcher = BandStitcher(size, samples, background, (grid.row_region(row) for row in grid.rows))
    assert np.array_equal(stitched(stitcher, cores, size, samples), canvas)


ROWS = (Region(0, 0, 4, 2), Region(0, 2, 4, 2), Region(0, 4, 4, 1))


def part(height: int, width: int) -> NDArray[np.uint8]:
    return np.zeros((1, height, width), np.uint8)


def test_a_band_lies_in_memory_as_its_cores_do() -> None:
    picture = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(2, 4, 3)
    cores = [(Region(0, 2, 4, 2), as_planes(picture))]
    blank, band, last = (pixels for _, pixels in BandStitcher(Size(4, 5), 3, 255, ROWS).bands(cores))
    assert lies_by_pixel(band)
    assert np.array_equal(band, as_planes(picture))
    assert (blank == 255).all()
    assert (last == 255).all()


def test_a_band_comes_as_soon_as_a_later_row_begins() -> None:
    taken = []

    def cores() -> Iterator[tuple[Region, NDArray[np.uint8]]]:
        for y in (0, 2, 4):
            taken.append(y)
            yield Region(0, y, 4, 1), part(1, 4)

    bands = BandStitcher(Size(4, 5), 1, 0, ROWS).bands(cores())
    assert next(bands)[0] == ROWS[0]
    assert taken == [0, 2]


def test_blank_bands_are_made_one_at_a_time() -> None:
    rows = tuple(Region(0, y, 2, 1) for y in range(50))
    bands = BandStitcher(Size(2, 50), 1, 255, rows).bands(iter([(Region(0, 49, 1, 1), part(1, 1))]))
    assert [int(pixels.min()) for _, pixels in bands] == [255] * 49 + [0]


@pytest.mark.parametrize(
    ("cores", "message"),
    [
        ([(Region(0, 2, 4, 2), part(2, 4)), (Region(0, 0, 4, 2), part(2, 4))], "raster order"),
        ([(Region(0, 1, 4, 2), part(2, 4))], "raster order"),
        ([(Region(3, 0, 2, 2), part(2, 2))], "raster order"),
        ([(Region(0, 5, 4, 2), part(2, 4))], "below the image"),
        ([(Region(0, 0, 4, 2), part(2, 3))], "shape"),
    ],
)
def test_what_does_not_fit_is_an_error(cores: Cores, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(BandStitcher(Size(4, 5), 1, 0, ROWS).bands(iter(cores)))


@pytest.mark.parametrize("rows", [ROWS[:2], ROWS[1:], (Region(0, 0, 3, 5),), (ROWS[0], ROWS[2])])
def test_bands_that_do_not_cover_the_image_are_an_error(rows: tuple[Region, ...]) -> None:
    with pytest.raises(ValueError, match="bands"):
        BandStitcher(Size(4, 5), 1, 0, rows)
