"""Value objects refuse what cannot be, and the output grid covers the slide."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mupd_wsi.errors import PixelSizeError, RegionError
from mupd_wsi.geometry import Mpp, Region, Size, output_size


@pytest.mark.parametrize("value", [0.0, -0.5, 0.049, 5.01, 1000.0, math.nan, math.inf])
def test_absurd_pixel_sizes_are_refused_with_the_value_shown(value):
    with pytest.raises(PixelSizeError, match=r"not plausible .*--mpp") as refusal:
        Mpp(value, value, "TIFF tags")
    assert f"{value:g}" in str(refusal.value)
    assert "TIFF tags" in str(refusal.value)


def test_axes_may_differ_by_two_percent_and_no_more():
    assert Mpp(0.25, 0.254, "x").mean == pytest.approx(0.252)
    with pytest.raises(PixelSizeError, match="more than 2 %"):
        Mpp(0.25, 0.26, "x")


@given(st.integers(1, 100_000), st.integers(1, 100_000), st.floats(0.05, 5.0), st.floats(0.05, 5.0))
def test_output_grid_covers_the_slide_and_no_more_than_a_pixel_beyond(width, height, slide_mpp, out_mpp):
    size = output_size(Size(width, height), Mpp(slide_mpp, slide_mpp, "x"), out_mpp)
    for level0, out in ((width, size.width), (height, size.height)):
        extent_um = level0 * slide_mpp
        assert out * out_mpp >= extent_um - 1e-5 * out_mpp
        assert out == 1 or (out - 1) * out_mpp < extent_um


def test_output_grid_forgives_rounding():
    assert output_size(Size(17408, 14336), Mpp(1.3, 1.3, "x"), 1.30) == Size(17408, 14336)
    assert output_size(Size(3000, 3000), Mpp(0.1, 0.1, "x"), 0.3) == Size(1000, 1000)


rectangles = st.builds(Region, st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 60), st.integers(1, 60))


def _pixels(region):
    return {(x, y) for x in range(region.x, region.right) for y in range(region.y, region.bottom)}


@given(rectangles, rectangles)
def test_intersection_holds_the_pixels_of_both(a, b):
    common = a.intersection(b)
    assert (_pixels(common) if common else set()) == _pixels(a) & _pixels(b)
    assert a.contains(b) == (_pixels(b) <= _pixels(a))


def test_grown_region_has_the_margin_on_every_side():
    assert Region(10, 20, 3, 4).grown(5) == Region(5, 15, 13, 14)


@pytest.mark.parametrize(("width", "height"), [(0, 1), (1, 0), (-3, 2)])
def test_empty_sizes_and_regions_are_refused(width, height):
    with pytest.raises(ValueError, match="at least 1 x 1"):
        Size(width, height)
    with pytest.raises(RegionError, match="at least 1 x 1"):
        Region(0, 0, width, height)
