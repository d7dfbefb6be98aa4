from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mupd_wsi.layout import as_picture, as_planes, lies_by_pixel


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 4), st.integers(0, 99))
def test_pixels_stay_where_they_are(height: int, width: int, planes: int, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, planes), np.uint8)
    by_pixel, by_plane = as_planes(picture), np.ascontiguousarray(as_planes(picture))
    for pixels in (by_pixel, by_plane, by_pixel[:, ::2, 1:], by_plane[:, ::2, 1:]):
        made = as_picture(pixels)
        assert made.shape == (*pixels.shape[1:], planes)
        assert made.flags.c_contiguous
        assert np.array_equal(as_planes(made), pixels)


def test_a_part_of_a_picture_lies_by_pixel_too() -> None:
    picture = np.zeros((9, 8, 3), np.uint8)
    assert lies_by_pixel(as_planes(picture))
    assert lies_by_pixel(as_planes(picture)[:, 2:5, 3:])
    assert not lies_by_pixel(np.ascontiguousarray(as_planes(picture)))
    assert not lies_by_pixel(as_planes(picture)[:2])
    assert not lies_by_pixel(as_planes(picture[..., :1]))
