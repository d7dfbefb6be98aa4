"""Joining overlaps: weights that add up, and cells against a plain canvas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mupd_wsi.stitching.mosaic import Mosaic, WeightedSum, fading_weights


@pytest.mark.parametrize(("side", "halo"), [(32, 8), (30, 0), (48, 1), (64, 16)])
def test_weights_of_neighbours_add_up_to_one(side: int, halo: int) -> None:
    core = side - 2 * halo
    canvas = np.zeros((3 * core + 2 * halo,) * 2)
    for y in range(3):
        for x in range(3):
            canvas[y * core : y * core + side, x * core : x * core + side] += fading_weights(side, halo)
    inner = slice(2 * halo, 3 * core)
    np.testing.assert_allclose(canvas[inner, inner], 1, atol=1e-6)


@pytest.mark.parametrize(("side", "halo"), [(9, 4), (16, 7), (20, 0), (736, 112)])
def test_weights_are_above_zero_and_fade(side: int, halo: int) -> None:
    weights = fading_weights(side, halo)
    assert weights.shape == (side, side)
    assert weights.dtype == np.float32
    assert (weights > 0).all()
    assert (np.diff(weights[side // 2, : side // 2]) >= 0).all()
    np.testing.assert_allclose(weights, weights.T)
    np.testing.assert_allclose(weights, weights[::-1, ::-1])


@settings(deadline=None)
@given(st.data())
def test_cells_hold_what_a_canvas_holds(data: st.DataObject) -> None:
    pitch, corner = data.draw(st.integers(1, 9)), (data.draw(st.integers(-9, 9)), data.draw(st.integers(-9, 9)))
    mosaic, canvas = Mosaic(2, pitch, corner), np.zeros((2, 60, 60), np.float32)
    generator = np.random.default_rng(0)
    for _ in range(data.draw(st.integers(1, 5))):
        x, y, side = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 40)), data.draw(st.integers(1, 20))
        values = generator.integers(0, 100, (2, side, side)).astype(np.float32)
        mosaic.add(x, y, values)
        canvas[:, y : y + side, x : x + side] += values
    x, y, side = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 40)), data.draw(st.integers(1, 20))
    assert np.array_equal(mosaic.read(x, y, side), canvas[:, y : y + side, x : x + side])
    assert np.array_equal(mosaic.read(0, 0, 60), canvas)


def test_rows_can_be_dropped_and_cells_taken() -> None:
    mosaic = Mosaic(1, 4, (-2, -2))
    mosaic.add(0, 0, np.ones((1, 8, 8), np.float32))
    assert mosaic.row(1) == [(1, 0), (1, 1), (1, 2)]
    assert mosaic.corner_of((1, 2)) == (6, 2)
    mosaic.drop_above(2)
    assert len(mosaic) == 3
    assert mosaic.take((2, 0)).sum() == 2 * 2
    assert (2, 0) not in mosaic


def test_a_weighted_mean_is_one_wherever_all_agree() -> None:
    weights = fading_weights(12, 3)
    sums = WeightedSum(2, 6, (-3, -3), weights)
    for x, y in ((-3, -3), (3, -3), (9, 3)):
        sums.add(x, y, np.full((2, 12, 12), 5, np.float32))
    cells = dict(sums.take_row(0))
    np.testing.assert_allclose(cells[0, 1], 5, rtol=1e-6)
    assert (cells[0, 3][:, :, :].max(), sorted(cells)) == (0, [(0, 0), (0, 1), (0, 2)]) if (0, 3) in cells else True
    assert dict(sums.take_row(0)) == {}
