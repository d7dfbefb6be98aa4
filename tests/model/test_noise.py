"""Coordinate noise: the generator against its published vectors, the noise against its promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage, stats

from mupd_wsi.model.noise import colored, philox4x32, reach, slide_noise, slide_noise_colored


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # Known answers of Random123 1.14 (Salmon et al.), kat_vectors, philox4x32 10.
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, expected):
    words = philox4x32(tuple(np.array([c], np.uint32) for c in counter), key)
    assert tuple(int(w[0]) for w in words) == expected


def plain_noise(seed, x, y, channels, height, width):
    """The same noise, one operation after the other on whole arrays of counters: slow, and easy to check."""
    groups = -(-channels // 4)
    counter = np.empty((4, groups, height, width), np.uint64)
    counter[0] = np.arange(x, x + width).astype(np.uint32)
    counter[1] = np.arange(y, y + height).astype(np.uint32)[:, None]
    counter[2] = np.arange(groups)[:, None, None]
    counter[3] = 0
    c0, c1, c2, c3 = counter
    k0, k1, low = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32), np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & low, (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    normals = []
    for a, b in ((c0, c1), (c2, c3)):
        radius = np.sqrt(np.float32(-2) * np.log((a.astype(np.float32) + np.float32(1)) * np.float32(2**-32)))
        angle = b.astype(np.float32) * np.float32(2 * np.pi * 2**-32)
        normals += [radius * np.cos(angle), radius * np.sin(angle)]
    return np.stack(normals, axis=1).reshape(4 * groups, height, width)[:channels]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 18])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (37, 101), (3, 20_000), (400, 5)])
def test_noise_is_that_of_the_plain_version_bit_for_bit(channels, height, width):
    place = (2**40 + 11, -50, 2**31 - 20)
    found = slide_noise(*place, channels, height, width)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, plain_noise(*place, channels, height, width))


def test_overlapping_rectangles_share_their_noise():
    whole = slide_noise(7, -64, 1000, 18, 80, 96)
    part = slide_noise(7, -64 + 13, 1000 + 5, 18, 40, 50)
    np.testing.assert_array_equal(part, whole[:, 5:45, 13:63])


def test_noise_depends_on_seed_and_channel():
    a, b = slide_noise(0, 0, 0, 5, 32, 32), slide_noise(2**40, 0, 0, 5, 32, 32)
    assert np.abs(a - b).mean() > 0.5
    correlations = np.corrcoef(a.reshape(5, -1)) - np.eye(5)
    assert np.abs(correlations).max() < 0.15


def test_noise_is_standard_normal():
    values = slide_noise(3, 10_000, 20_000, 4, 128, 128).ravel()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert np.isfinite(values).all()


BLURS = ((0.5, 0.9), (1.2, 1.0), (3.0, 3.6), (8.0, 4.1))


def test_coloured_noise_is_the_same_wherever_the_rectangle_begins():
    whole = slide_noise_colored(7, -64, 1000, 5, 80, 96, BLURS)
    part = slide_noise_colored(7, -64 + 13, 1000 + 5, 5, 40, 50, BLURS)
    np.testing.assert_allclose(part, whole[:, 5:45, 13:63], rtol=0, atol=1e-6)


def test_coloured_noise_is_white_noise_under_gaussians():
    """Against the sum of scipy's own Gaussian filters, each cut at three standard deviations."""
    white = slide_noise(3, 0, 0, 2, 200, 220)
    edge = reach(BLURS)
    found = colored(white, BLURS)
    plain = sum(
        weight * ndimage.gaussian_filter(white, (0, s, s), radius=(0, math.ceil(3 * s), math.ceil(3 * s)))
        for s, weight in BLURS
    )[:, edge:-edge, edge:-edge]
    assert found.shape == plain.shape
    ratio = float((found * plain).sum() / (plain * plain).sum())
    np.testing.assert_allclose(found, ratio * plain, rtol=0, atol=2e-6)


def test_coloured_noise_has_unit_variance_and_the_spectrum_of_its_blurs():
    smooth = BLURS[1:]  # a Gaussian of half a pixel is not one on a raster
    noise = slide_noise_colored(5, 0, 0, 18, 512, 512, smooth)
    assert noise.std() == pytest.approx(1.0, abs=0.02)
    power = (np.abs(np.fft.rfft2(noise)) ** 2).mean(axis=0)
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512))
    wanted = sum(w * np.exp(-2 * (np.pi * s * frequency) ** 2) for s, w in smooth) ** 2
    bands = np.digitize(frequency.ravel(), [1 / w for w in (64, 32, 16, 8, 4)])
    found, expected = (np.bincount(bands, p.ravel(), minlength=6)[1:5] for p in (power, wanted))
    np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), rtol=0.15)


def test_gains_make_each_blurs_part_stronger_or_weaker():
    white = slide_noise(3, 0, 0, 2, 200, 220)
    parts = [colored(white, BLURS, tuple(tuple(float(i == j) for i in range(4)) for _ in range(2))) for j in range(4)]
    np.testing.assert_allclose(sum(parts), colored(white, BLURS), rtol=0, atol=2e-6)
    gains = ((1.0, 0.5, 2.0, 0.25), (0.0, 1.0, 1.0, 1.5))
    expected = [sum(g * part[channel] for g, part in zip(gains[channel], parts, strict=True)) for channel in range(2)]
    np.testing.assert_allclose(colored(white, BLURS, gains), np.stack(expected), rtol=0, atol=2e-6)


def test_without_blurs_noise_stays_white():
    assert np.array_equal(slide_noise_colored(1, 2, 3, 4, 16, 16, ()), slide_noise(1, 2, 3, 4, 16, 16))
