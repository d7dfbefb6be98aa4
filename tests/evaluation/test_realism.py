"""Whether a draw that looks like a stain is told from one that does not."""

from __future__ import annotations

import numpy as np
import pytest

from mupd_wsi.evaluation.realism import WAVELENGTHS, Realism, band_power, ideal_draw, quantiles

SIDE = 512


@pytest.fixture(scope="module")
def stain():
    """Bright discs on dark, in a raster, every third one positive: uint8 (1, SIDE, SIDE), and the cells' labels."""
    rng = np.random.default_rng(0)
    cells, plane = np.zeros((SIDE, SIDE), np.int32), np.zeros((SIDE, SIDE), np.float32)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    centres = [(y, x) for y in range(8, SIDE, 16) for x in range(8, SIDE, 16)]
    for number, (y, x) in enumerate(centres, 1):
        disc = (rows - y) ** 2 + (columns - x) ** 2 <= 25
        cells[disc] = number
        if rng.random() < 0.33:
            plane[disc] = rng.uniform(100, 200)
    return np.rint(plane).astype(np.uint8)[None], cells


def _kept(real, draw, cells, pearson=1.0):
    realism = Realism(np.array([50.0]))
    blank = np.zeros(real.shape, np.float32)
    realism.add(real, draw.astype(np.float32), blank, cells)
    (row,) = realism.summary(np.array([pearson]), np.array([1.0]))
    return row


def test_the_real_stain_itself_keeps_everything(stain):
    row = _kept(stain[0], stain[0], stain[1])
    assert all(row["kept"].values())
    assert row["area_ratio"] == 1
    assert row["spectrum_ratio"] == [1.0] * (len(WAVELENGTHS) - 1)
    assert row["cell_error"] == 0 < row["readout_cell_error"]


def test_an_ideal_draw_has_the_odds_that_the_readout_tells():
    rng = np.random.default_rng(3)
    expected = rng.random((40_000, 2)).astype(np.float32)
    real = rng.random(expected.shape) < expected * (0.5, 0.02)
    drawn = ideal_draw(expected, real)
    for low in (0.0, 0.25, 0.5, 0.75):
        within = (expected >= low) & (expected < low + 0.25)
        assert [drawn[w, c].mean() for c, w in enumerate(within.T)] == pytest.approx(
            [real[w, c].mean() for c, w in enumerate(within.T)], abs=0.012
        )
    assert (drawn != real).any()


def test_no_draw_of_rare_cells_misses_less_of_a_patch_than_calling_none_positive(stain):
    """Which is why a draw that keeps the area cannot have fewer errors than a read-out that calls none."""
    _, cells = stain
    rare = np.zeros((1, SIDE, SIDE), np.float32)
    rare[0, np.isin(cells, np.arange(1, cells.max(), 60))] = 150
    row = _kept(np.rint(rare).astype(np.uint8), rare, cells)
    assert row["ideal_cell_error"] > row["readout_cell_error"] > row["cell_error"] == 0


def test_positive_cells_elsewhere_in_the_patch_are_as_good(stain):
    turned = np.rot90(stain[0].reshape(1, 8, 64, 8, 64).transpose(0, 1, 3, 2, 4), 2, axes=(3, 4))
    row = _kept(stain[0], turned.transpose(0, 1, 3, 2, 4).reshape(stain[0].shape), stain[1])
    assert all(row["kept"].values())


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        (lambda p: p * 0.6, "quantiles"),
        (lambda p: p * 0.0 + 60, "area"),
        (lambda p: p + 30 * np.random.default_rng(1).standard_normal(p.shape), "spectrum"),
        (lambda p: p * 0.0, "cells"),
    ],
)
def test_what_is_wrong_is_named(stain, change, missed):
    assert not _kept(stain[0], np.clip(change(stain[0].astype(np.float32)), 0, 255), stain[1])["kept"][missed]


def test_a_draw_that_correlates_less_over_patches_than_it_has_to_is_told(stain):
    assert not _kept(stain[0], stain[0], stain[1], pearson=0.8)["kept"]["patches"]


def test_power_of_a_wave_lies_in_the_band_of_its_wavelength():
    wave = np.tile(127 + 100 * np.sin(2 * np.pi * np.arange(SIDE) / 12), (SIDE, 1))
    power = band_power(wave)
    assert np.argmax(power) == 2  # 16 to 8 px
    assert power[2] > 0.99 * power.sum()


def test_quantiles_of_a_histogram():
    counts = np.zeros(256, np.int64)
    counts[[0, 10, 100]] = 950, 49, 1
    assert quantiles(counts).tolist() == [0, 10, 10]
