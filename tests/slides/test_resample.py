"""The resampler against a slow plain one, and against itself on parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mupd_wsi.slides.resample import make_taps, resample

SCALES = st.one_of(st.floats(0.2, 9.0), st.sampled_from([0.5, 1.0, 2.0, 4.0, 1.236, 2.6052104, 0.9999]))


def whole(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    height, width = (max(1, math.ceil(side / scale - 1e-6)) for side in image.shape[:2])
    return part(image, scale, 0, 0, width, height)


def part(image: NDArray[np.uint8], scale: float, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
    rows = make_taps(y, height, scale, image.shape[0])
    columns = make_taps(x, width, scale, image.shape[1])
    return resample(image[rows.start : rows.stop, columns.start : columns.stop], rows, columns)


def plain(line: NDArray[np.float64], x: int, scale: float) -> NDArray[np.float64]:
    """One output position along one axis, by the definition. ``line``: (n, ...)."""
    if scale < 0.999:
        centre = min(max((x + 0.5) * scale - 0.5, 0), len(line) - 1)
        left = min(math.floor(centre), len(line) - 2) if len(line) > 1 else 0
        right = min(left + 1, len(line) - 1)
        return line[left] * (1 - (centre - left)) + line[right] * (centre - left)
    low, high = x * scale, min((x + 1) * scale, len(line))
    if low >= len(line) - 1e-6:
        return line[-1]
    total, weights = np.zeros(line.shape[1:]), 0.0
    for pixel in range(math.floor(low), math.ceil(high)):
        weight = max(0.0, min(high, pixel + 1) - max(low, pixel))
        total = total + line[pixel] * weight
        weights += weight
    return total / weights


@settings(max_examples=60, deadline=None)
@given(scale=SCALES, width=st.integers(1, 23), height=st.integers(1, 23), seed=st.integers(0, 99))
def test_equals_the_plain_double_loop(scale: float, width: int, height: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    fast = whole(image, scale).astype(float)
    exact = np.empty(fast.shape)
    for y in range(fast.shape[0]):
        row = plain(image.astype(float), y, scale)
        for x in range(fast.shape[1]):
            exact[y, x] = plain(row, x, scale)
    assert np.abs(fast - exact).max() <= 0.5 + 1e-3


@settings(max_examples=80, deadline=None)
@given(scale=SCALES, data=st.data())
def test_a_part_equals_the_crop_of_the_whole(scale: float, data: st.DataObject) -> None:
    image = np.random.default_rng(7).integers(0, 256, (61, 83, 3), np.uint8)
    all_of_it = whole(image, scale)
    height, width = all_of_it.shape[:2]
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    np.testing.assert_array_equal(part(image, scale, x, y, w, h), all_of_it[y : y + h, x : x + w])


@given(scale=SCALES, grey=st.integers(0, 255))
@settings(deadline=None)
def test_a_flat_picture_stays_flat(scale: float, grey: int) -> None:
    assert set(np.unique(whole(np.full((37, 41, 3), grey, np.uint8), scale))) == {grey}


def test_scale_one_copies() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    np.testing.assert_array_equal(whole(image, 1.0), image)


def test_halves_round_up() -> None:
    image = np.array([[[0] * 3, [1] * 3]], np.uint8)
    assert whole(image, 2.0).tolist() == [[[1, 1, 1]]]


def test_positions_stay_true_far_from_the_origin() -> None:
    """An edge at 100,000 source pixels lies where it should in the output."""
    scale = 4.9426275
    taps = make_taps(20_000, 2_000, scale, 120_000)
    ramp = (taps.index * taps.weight).sum(axis=1)
    expected = (np.arange(20_000, 22_000) + 0.5) * scale - 0.5
    assert np.abs(ramp - expected).max() < 0.05


def test_a_source_of_the_wrong_shape_is_refused() -> None:
    taps = make_taps(0, 4, 2.0, 8)
    with pytest.raises(ValueError, match="shape"):
        resample(np.zeros((7, 8, 3), np.uint8), taps, taps)
