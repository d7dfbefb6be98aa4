"""Crops stay paired, bright places are found, and the fitted curves are what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mupd_wsi.errors import SlideError, UsageError
from mupd_wsi.model.calibration import Calibration
from mupd_wsi.training.augment import jitter_stains
from mupd_wsi.training.fitting import CurveCounts, display_windows, fit_transform
from mupd_wsi.training.neighbours import SlideOfTiles
from mupd_wsi.training.tiles import CropSampler, TilePlace, list_tiles, load_tiles

MARKERS = ("Hoechst", "CD8a", "Pan-CK")


@pytest.fixture(scope="module")
def train(paired_folder):
    return load_tiles(paired_folder, "train", MARKERS)


def test_crops_keep_haematoxylin_under_hoechst(train):
    sampler = CropSampler(train, 128, 0.5, np.random.default_rng(0))
    correlations = []
    for _ in range(20):
        he, markers = sampler.draw()
        assert he.shape == (128, 128, 3)
        assert markers.shape == (3, 128, 128)
        correlations.append(np.corrcoef(255 - he[..., 1].ravel().astype(float), markers[0].ravel())[0, 1])
    assert np.median(correlations) > 0.7


def test_crops_are_drawn_on_tissue(train):
    sampler = CropSampler(train, 64, 0.0, np.random.default_rng(0))
    glass = [np.mean(sampler.draw()[0].min(axis=2) > 240) for _ in range(30)]
    assert np.mean(glass) < 0.3


def test_tiles_of_a_split_come_from_its_table(paired_folder, tmp_path):
    assert list_tiles(paired_folder, "dev") == (TilePlace(3, 0),)
    with pytest.raises(UsageError, match="no tile of split 'heldout'"):
        list_tiles(paired_folder, "heldout")
    with pytest.raises(UsageError, match=r"tiles\.csv is missing"):
        list_tiles(tmp_path, "train")
    with pytest.raises(SlideError, match="missing or not an image"):
        load_tiles(paired_folder, "train", ("CD99",))


def test_slide_of_tiles_joins_neighbours_and_fills_gaps_with_glass(paired_folder, train):
    slide = SlideOfTiles(paired_folder)
    across = slide.read(512 - 32, 100, 64)
    np.testing.assert_array_equal(across[:, :32], train.he[0][100:164, -32:])
    np.testing.assert_array_equal(across[:, 32:], train.he[1][100:164, :32])
    beyond = slide.read(1024, -16, 32)
    assert (beyond == beyond[0, 0]).all()


def test_transform_standardises_tissue_and_can_be_undone(train):
    transform = fit_transform(train.markers, train.patch_tissue)
    intensity = torch.from_numpy(train.markers).float()
    inside = np.kron(train.patch_tissue, np.ones((64, 64), bool))
    z = transform.standardise(intensity).double().numpy().transpose(1, 0, 2, 3)[:, inside]
    np.testing.assert_allclose(z.mean(axis=1), 0, atol=1e-3)
    np.testing.assert_allclose(z.std(axis=1), 1, atol=1e-3)
    torch.testing.assert_close(
        transform.roots(transform.standardise(intensity)).square(), intensity, rtol=1e-3, atol=1e-3
    )


def test_calibration_keeps_the_mean_and_never_falls():
    rng = np.random.default_rng(0)
    roots = rng.gamma(2.0, 1.0, 200_000).astype(np.float32)
    real = np.clip(roots**2 * rng.exponential(1.5, roots.size), 0, 255).astype(np.uint8)
    counts = CurveCounts.empty(1)
    counts.add(roots.reshape(1, 400, 500), real.reshape(1, 400, 500))
    calibration = counts.fit()
    assert (np.diff(calibration.intensities[0]) >= 0).all()
    predicted = calibration.apply(torch.from_numpy(roots), 0).numpy()
    assert predicted.mean() == pytest.approx(real.mean(), rel=0.02)
    assert np.abs(roots**2).mean() < 0.8 * real.mean()  # what the curve mends


def test_jitter_of_no_strength_changes_nothing_and_glass_stays_pale():
    rgb = torch.full((4, 3, 16, 16), 244.0)
    generator = torch.Generator().manual_seed(0)
    assert jitter_stains(rgb, 0, generator) is rgb
    assert jitter_stains(rgb, 1, generator).min() > 220


def test_jitter_darkens_and_lightens_tissue_by_sample():
    rgb = torch.tensor([150.0, 90.0, 160.0])[None, :, None, None].expand(32, 3, 4, 4)
    brightness = jitter_stains(rgb, 1, torch.Generator().manual_seed(0)).mean(dim=(1, 2, 3))
    assert brightness.min() < 115 < 150 < brightness.max()


def test_window_shows_the_area_that_is_really_positive():
    rng = np.random.default_rng(0)
    real = np.zeros((1, 1, 512, 512), np.uint8)
    real[0, 0, :64, :64] = 200  # 1.6 % of the area
    haze = np.where(real[0] > 0, rng.normal(1.5, 0.2, real[0].shape), rng.gamma(2, 0.2, real[0].shape))
    counts = CurveCounts.empty(1)
    counts.add(haze.astype(np.float32), real[0])
    squares = Calibration((0.0,), (16.0,), (tuple(n**2 / 16 for n in range(65)),))  # root n / 4
    ((low, high),) = display_windows(counts.pixels, squares, real, shown_area=2.5)
    shown = (haze**2 > low).mean()
    assert shown == pytest.approx(2.5 * 64 * 64 / 512**2, rel=0.1)
    assert (haze**2 > high).mean() == pytest.approx(0.002, abs=0.001)


def test_matched_draws_have_the_real_distribution():
    rng = np.random.default_rng(1)
    dim = np.abs(rng.normal(0, 1.2, (1, 512, 512))).astype(np.float32)
    real = np.clip(rng.exponential(20, (1, 512, 512)), 0, 255).astype(np.uint8)
    counts = CurveCounts.empty(1)
    counts.add(dim, real)
    matched = counts.match(np.bincount(real.ravel(), minlength=256)[None]).apply(torch.from_numpy(dim), 0).numpy()
    for quantile in (0.5, 0.9, 0.99, 0.999):
        assert np.quantile(matched, quantile) == pytest.approx(np.quantile(real, quantile), rel=0.05, abs=0.6)
