"""Pixels against OpenSlide's, parts against wholes, threads against one."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mupd_wsi.errors import PixelSizeError, RegionError, SlideError
from mupd_wsi.geometry import Region, output_size
from mupd_wsi.slides import Slide, open_slide
from mupd_wsi.slides.source import on_white

SLIDES = ["cmu_slide", "tcga_slide", "eas2_slide", "wrong_mpp_slide", "ihc_slide", "fluorescence_slide"]


def theirs(path: Path, level: int, region: Region) -> NDArray[np.uint8]:
    """OpenSlide's pixels; ``region`` in level pixels, at the origin unless the level is 0."""
    with openslide.OpenSlide(path) as slide:
        return on_white(np.asarray(slide.read_region((region.x, region.y), level, (region.width, region.height))))


def ours(slide: Slide, level: int, region: Region) -> NDArray[np.uint8]:
    return slide.read_level(level, region)


@pytest.mark.parametrize("fixture", SLIDES)
def test_level_0_is_openslides_to_the_bit(fixture: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    random = np.random.default_rng(0)
    with open_slide(path) as slide:
        regions = [Region(0, 0, 300, 200), Region(slide.size.width - 301, slide.size.height - 203, 301, 203)]
        for _ in range(6):
            x = int(random.integers(0, slide.size.width - 300))
            y = int(random.integers(0, slide.size.height - 200))
            regions.append(Region(x, y, 300, 200))
        for region in regions:
            np.testing.assert_array_equal(ours(slide, 0, region), theirs(path, 0, region))


@pytest.mark.parametrize("fixture", SLIDES)
def test_lower_levels_are_openslides_to_the_bit(fixture: str, request: pytest.FixtureRequest) -> None:
    """From the origin, where OpenSlide does not interpolate."""
    path: Path = request.getfixturevalue(fixture)
    with open_slide(path) as slide, openslide.OpenSlide(path) as other:
        sizes = [(level.size.width, level.size.height) for level in slide.levels]
        assert sizes == list(other.level_dimensions)[: len(sizes)]
        for level in range(1, len(slide.levels)):
            size = slide.levels[level].size
            region = Region(0, 0, min(size.width, 1700), min(size.height, 1300))
            np.testing.assert_array_equal(ours(slide, level, region), theirs(path, level, region))


@pytest.mark.parametrize("fixture", ["cmu_slide", "tcga_slide", "wrong_mpp_slide"])
def test_the_openslide_backend_reads_the_same(fixture: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    with open_slide(path, mpp=0.4) as fast, open_slide(path, mpp=0.4, backend="openslide") as plain:
        assert (fast.backend, plain.backend) == ("tifffile", "openslide")
        region = Region(100, 30, 200, 250)
        np.testing.assert_array_equal(fast.read(region, 1.3), plain.read(region, 1.3))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_part_equals_the_crop_of_the_whole(synthetic_slide: Callable[..., Path], data: st.DataObject) -> None:
    """At any um/px, whichever level serves it."""
    mpp = data.draw(st.sampled_from([0.31, 0.5, 0.65, 1.0, 1.3, 2.1, 4.3]))
    with open_slide(synthetic_slide(700, 533)) as slide:
        size = output_size(slide.size, slide.mpp, mpp)
        everything = slide.read(Region(0, 0, size.width, size.height), mpp)
        x, y = data.draw(st.integers(0, size.width - 1)), data.draw(st.integers(0, size.height - 1))
        w, h = data.draw(st.integers(1, size.width - x)), data.draw(st.integers(1, size.height - y))
        np.testing.assert_array_equal(slide.read(Region(x, y, w, h), mpp), everything[y : y + h, x : x + w])


def test_reading_equals_averaging_openslides_pixels(cmu_slide: Path) -> None:
    """0.499 -> 1.497 um/px is the plain mean of 3 x 3 pixels."""
    with open_slide(cmu_slide) as slide:
        mpp = slide.mpp.x * 3
        got = slide.read(Region(100, 200, 64, 48), mpp)
    source = theirs(cmu_slide, 0, Region(300, 600, 192, 144)).astype(np.float64)
    expected = source.reshape(48, 3, 64, 3, 3).mean(axis=(1, 3))
    assert np.abs(got - expected).max() <= 0.5 + 1e-3


def test_both_routes_to_a_resolution_show_the_same_place(synthetic_slide: Callable[..., Path]) -> None:
    """The same um/px out of the pyramid and out of level 0 alone: the far corner too is registered."""
    path = synthetic_slide(1301, 905)
    with open_slide(path) as slide:
        size = output_size(slide.size, slide.mpp, 2.05)
        corner = Region(size.width - 120, size.height - 100, 120, 100)
        by_pyramid = slide.read(corner, 2.05).astype(float)
        full = slide.read_level(0, Region(0, 0, 1301, 905)).astype(float)
    scale = 2.05 / 0.5
    x = np.minimum(np.arange(corner.x, corner.right)[:, None] * scale + np.arange(0, scale, 0.25), 1300).astype(int)
    y = np.minimum(np.arange(corner.y, corner.bottom)[:, None] * scale + np.arange(0, scale, 0.25), 904).astype(int)
    direct = full[y].mean(axis=1)[:, x].mean(axis=2)
    assert np.abs(by_pyramid - direct)[:-1, :-1].mean() < 2.5


def test_the_last_output_pixel_is_read(cmu_slide: Path) -> None:
    with open_slide(cmu_slide) as slide:
        size = output_size(slide.size, slide.mpp, 1.3)
        assert slide.read(Region(size.width - 1, size.height - 1, 1, 1), 1.3).shape == (1, 1, 3)


def test_many_threads_decode_each_tile_once(
    synthetic_slide: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(synthetic_slide()) as slide:
        decoded: Counter[tuple[int, int, int]] = Counter()
        lock, decode = threading.Lock(), slide._source.tile

        def counting(level: int, column: int, row: int) -> NDArray[np.uint8]:
            with lock:
                decoded[level, column, row] += 1
            return decode(level, column, row)

        monkeypatch.setattr(slide._source, "tile", counting)
        size = output_size(slide.size, slide.mpp, 0.7)
        regions = [
            Region(x, y, 200, 200) for y in range(0, size.height - 200, 100) for x in range(0, size.width - 200, 90)
        ]
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(lambda region: slide.read(region, 0.7), regions))
        assert set(decoded.values()) == {1}
        everything = slide.read(Region(0, 0, size.width, size.height), 0.7)
    for region, got in zip(regions, parts, strict=True):
        np.testing.assert_array_equal(got, everything[region.y : region.bottom, region.x : region.right])


def test_thumbnail(eas2_slide: Path, tcga_slide: Path) -> None:
    """Needs no um/px; covers the slide to its edge; large slides are read in strips."""
    for path in (eas2_slide, tcga_slide):
        with open_slide(path) as slide:
            picture, scale = slide.thumbnail(500), slide.thumbnail_scale(500)
            assert max(picture.shape) == 500
            assert picture.shape[1] == math.ceil(slide.size.width / scale - 1e-6)
            assert picture.shape[0] == math.ceil(slide.size.height / scale - 1e-6)
            assert slide.thumbnail(10**6 if slide.size.area < 2e7 else 600).max() > 200


def test_strips_equal_one_piece(synthetic_slide: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(synthetic_slide()) as slide:
        whole = slide.thumbnail(300)
        monkeypatch.setattr("mupd_wsi.slides.slide._MAX_SOURCE_AREA", 5000)
        np.testing.assert_array_equal(slide.thumbnail(300), whole)


def test_regions_outside_are_refused(cmu_slide: Path) -> None:
    with open_slide(cmu_slide) as slide:
        size = output_size(slide.size, slide.mpp, 1.3)
        for region in (Region(-1, 0, 5, 5), Region(size.width - 4, 0, 5, 5), Region(0, size.height, 1, 1)):
            with pytest.raises(RegionError, match="outside"):
                slide.read(region, 1.3)
        with pytest.raises(RegionError, match="outside"):
            slide.read_level(0, Region(0, 0, slide.size.width + 1, 1))
        with pytest.raises(RegionError, match="levels"):
            slide.read_level(9, Region(0, 0, 1, 1))
        with pytest.raises(PixelSizeError, match="above 0"):
            slide.read(Region(0, 0, 1, 1), 0)


def test_a_closed_slide_says_so(cmu_slide: Path) -> None:
    slide = open_slide(cmu_slide)
    slide.close()
    slide.close()
    with pytest.raises(SlideError, match="closed"):
        slide.thumbnail(100)
