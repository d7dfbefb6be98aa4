"""Dyes mixed by Beer-Lambert are found again, and slides are brought to one staining."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from mupd_wsi.normalising import StainProfile, StainTransfer, stain_profile

H, E = np.array([0.65, 0.70, 0.29]), np.array([0.09, 0.95, 0.28])
H, E = H / np.linalg.norm(H), E / np.linalg.norm(E)


def mixed(seed: int, h_strength: float, e_strength: float, white: float = 245.0) -> np.ndarray:
    """A field of nuclei and cytoplasm: (200, 200, 3)."""
    rng = np.random.default_rng(seed)
    nuclei = rng.random((200, 200)) < 0.2
    h = np.where(nuclei, rng.uniform(0.5, 1, nuclei.shape), rng.uniform(0, 0.02, nuclei.shape)) * h_strength
    e = np.where(nuclei, rng.uniform(0, 0.02, nuclei.shape), rng.uniform(0.3, 1, nuclei.shape)) * e_strength
    density = h[..., None] * H + e[..., None] * E
    return np.clip(np.rint(white * 10**-density), 0, 255).astype(np.uint8)


def test_dyes_and_their_strengths_are_found():
    profile = stain_profile(mixed(0, 1.0, 0.5), (245.0, 245.0, 245.0))
    assert profile is not None
    assert np.degrees(np.arccos(np.dot(profile.haematoxylin, H))) < 4
    assert np.degrees(np.arccos(np.dot(profile.eosin, E))) < 4
    # Of a fifth of the pixels, nuclei at 0.5 to 1, a twentieth of all lies above 0.875; of the others above 0.956.
    assert profile.strength == pytest.approx((0.875, 0.5 * 0.956), rel=0.1)


def test_a_bleeding_in_a_corner_does_not_make_the_slide_a_strong_one():
    plain = mixed(5, 1.0, 0.5)
    bled = plain.copy()
    bled[:30, :30] = mixed(6, 0.0, 2.0)[:30, :30]  # 2 % of the pixels
    before, after = (stain_profile(rgb, (245.0, 245.0, 245.0)) for rgb in (plain, bled))
    assert before is not None
    assert after is not None
    assert after.strength == pytest.approx(before.strength, rel=0.1)


def test_what_neither_dye_makes_comes_back_from_a_pale_staining():
    """Red cells, say: paler with the rest, so that the dyes are found all the same."""
    white = (245.0, 245.0, 245.0)
    rng = np.random.default_rng(7)
    third = np.array([0.25, 0.65, 0.72]) * np.where(rng.random((200, 200)) < 0.08, 0.15, 0.0)[..., None]
    slide = np.clip(np.rint(245 * 10 ** -(-np.log10(mixed(8, 0.8, 0.4) / 245.0 + 1e-9) + third)), 1, 255).astype(
        np.uint8
    )
    own = stain_profile(slide, white)
    assert own is not None
    pale = StainTransfer(own, StainProfile(white, own.haematoxylin, own.eosin, (0.3, 0.09))).apply(slide)
    found = stain_profile(pale, white)
    assert found is not None
    back = StainTransfer(found, own).apply(pale)
    for channel in range(3):
        assert np.corrcoef(back[..., channel].ravel(), slide[..., channel].ravel())[0, 1] > 0.97


def test_pale_slide_looks_like_the_reference_after_transfer():
    white = (245.0, 245.0, 245.0)
    pale, reference = mixed(1, 0.35, 0.15), mixed(1, 1.0, 0.5)
    source, target = stain_profile(pale, white), stain_profile(reference, white)
    assert source is not None
    assert target is not None
    transferred = StainTransfer(source, target).apply(pale)
    before = np.abs(pale.astype(float) - reference).mean()
    after = np.abs(transferred.astype(float) - reference).mean()
    assert after < 0.15 * before


def test_transfer_to_itself_changes_nothing_to_speak_of_and_glass_becomes_glass():
    rgb = mixed(2, 0.8, 0.4)
    profile = stain_profile(rgb, (245.0, 245.0, 245.0))
    assert profile is not None
    assert np.abs(StainTransfer(profile, profile).apply(rgb).astype(int) - rgb).max() <= 1
    other = StainProfile((250.0, 240.0, 242.0), profile.haematoxylin, profile.eosin, profile.strength)
    glass = StainTransfer(profile, other).apply(np.full((2, 2, 3), 245, np.uint8))
    assert np.abs(glass.astype(int) - (250, 240, 242)).max() <= 1


def test_transfer_depends_on_the_pixel_alone():
    rgb = mixed(3, 0.5, 0.3)
    source = stain_profile(rgb, (245.0, 245.0, 245.0))
    target = stain_profile(mixed(4, 1.0, 0.5), (245.0, 245.0, 245.0))
    assert source is not None
    assert target is not None
    transfer = StainTransfer(source, target)
    np.testing.assert_array_equal(
        transfer.apply(rgb)[50:90, 30:95], transfer.apply(np.ascontiguousarray(rgb[50:90, 30:95]))
    )


@pytest.mark.parametrize("rgb", [np.full((100, 100, 3), 244, np.uint8), np.zeros((3, 3, 3), np.uint8)])
def test_too_little_stain_gives_no_profile(rgb):
    assert stain_profile(rgb, (245.0, 245.0, 245.0)) is None


def test_one_dye_alone_gives_no_profile():
    amount = np.random.default_rng(0).uniform(0.1, 1, (100, 100, 1))
    rgb = np.rint(245 * 10 ** -(amount * H)).astype(np.uint8)
    assert stain_profile(rgb, (245.0, 245.0, 245.0)) is None


def test_profile_survives_json():
    profile = StainProfile((245.0, 244.0, 243.0), (0.6, 0.7, 0.3), (0.1, 0.9, 0.3), (1.0, 0.5))
    assert StainProfile.from_json(asdict(profile)) == profile
    with pytest.raises(ValueError, match="values to unpack"):
        StainProfile.from_json(asdict(profile) | {"eosin": [1, 2]})
