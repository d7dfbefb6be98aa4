"""Cutting a stream of rows into tiles of all levels: every pixel of every level exactly once, whatever the bands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from written import plain_levels

from mupd_wsi.geometry import Size
from mupd_wsi.layout import as_planes, lies_by_pixel
from mupd_wsi.writers.pyramid import PyramidCutter, TileFormat, TilePlace, halved, level_sizes

SIDE = 8


class Canvas:
    """Puts raw tiles back together, and counts how often each tile comes."""

    def __init__(self, size: Size, planes: int, background: int, group: int) -> None:
        self.background, self.group = background, group
        self.levels = [
            np.zeros((planes, -(-s.height // SIDE) * SIDE, -(-s.width // SIDE) * SIDE), np.uint8)
            for s in level_sizes(size, SIDE)
        ]
        self.places: list[TilePlace] = []

    def take(self, place: TilePlace, encoded: bytes | None) -> None:
        self.places.append(place)
        shape = (self.group, SIDE, SIDE)
        blank = np.full(shape, self.background, np.uint8)
        tile = blank if encoded is None else np.frombuffer(encoded, np.uint8).reshape(shape)
        y, x, first = place.row * SIDE, place.column * SIDE, place.group * self.group
        self.levels[place.level][first : first + self.group, y : y + SIDE, x : x + SIDE] = tile


def random_planes(seed: int, planes: int, height: int, width: int, background: int) -> NDArray[np.uint8]:
    """Noise on the left, background on the right."""
    pixels = np.random.default_rng(seed).integers(0, 256, (planes, height, width), np.uint8)
    pixels[:, :, width // 2 :] = background
    return pixels


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    bands=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    shape=st.sampled_from([(1, 1), (3, 1), (3, 3), (4, 2)]),
    background=st.sampled_from([0, 255]),
    seed=st.integers(0, 1000),
)
def test_every_pixel_of_every_level_arrives_once(
    width: int, height: int, bands: list[int], shape: tuple[int, int], background: int, seed: int
) -> None:
    planes, group = shape
    size = Size(width, height)
    pixels = random_planes(seed, planes, height, width, background)
    canvas = Canvas(size, planes, background, group)
    cutter = PyramidCutter(size, planes, TileFormat(np.ndarray.tobytes, group, background, SIDE), canvas.take, 2)
    y = turn = 0
    while y < height:
        cutter.add(pixels[:, y : y + bands[turn % len(bands)]])
        y, turn = y + bands[turn % len(bands)], turn + 1
    cutter.close()
    assert cutter.rows == height
    expected = {
        TilePlace(level, row, number, column)
        for level, s in enumerate(cutter.sizes)
        for row in range(-(-s.height // SIDE))
        for number in range(planes // group)
        for column in range(-(-s.width // SIDE))
    }
    assert len(canvas.places) == len(expected)
    assert set(canvas.places) == expected
    for level in range(len(cutter.sizes)):
        own = [(p.row, p.group, p.column) for p in canvas.places if p.level == level]
        assert own == sorted(own)
    for shown, meant in zip(canvas.levels, plain_levels(pixels, len(cutter.sizes)), strict=True):
        np.testing.assert_array_equal(shown[:, : meant.shape[1], : meant.shape[2]], meant)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.booleans(), st.integers(0, 1000))
def test_halving_is_the_rounded_mean(height: int, width: int, planes: int, by_pixel: bool, seed: int) -> None:
    shape = (height, width, planes) if by_pixel else (planes, height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    pixels = as_planes(pixels) if by_pixel else pixels
    np.testing.assert_array_equal(halved(pixels), plain_levels(pixels, 2)[1])


def test_halves_lie_in_memory_as_what_they_are_made_of() -> None:
    pixels = np.zeros((8, 9, 3), np.uint8)
    assert lies_by_pixel(halved(as_planes(pixels)))
    assert not lies_by_pixel(halved(np.ascontiguousarray(as_planes(pixels))))


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_halving_keeps_flat_pictures(value: int) -> None:
    assert np.unique(halved(np.full((1, 31, 33), value, np.uint8))).tolist() == [value]


def test_levels_end_with_one_tile() -> None:
    assert level_sizes(Size(512, 1)) == (Size(512, 1),)
    assert level_sizes(Size(1300, 3)) == (Size(1300, 3), Size(650, 2), Size(325, 1))
    assert level_sizes(Size(17408, 14336))[-1] == Size(272, 224)


def test_wrong_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="groups"):
        PyramidCutter(Size(4, 4), 3, TileFormat(np.ndarray.tobytes, 2, 0, SIDE), lambda *_: None)
