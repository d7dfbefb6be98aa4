from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mupd_wsi import rendering
from mupd_wsi.rendering import to_brightfield, to_planes


@settings(deadline=None)
@given(st.lists(st.floats(0, 400, width=32), min_size=1, max_size=20), st.floats(0, 100), st.floats(0.5, 300))
def test_planes_are_the_rounded_share_of_the_window(values: list[float], low: float, width: float) -> None:
    planes = to_planes(np.array(values, np.float32).reshape(1, 1, -1), np.array([[low, low + width]], np.float32))
    expected = np.clip((np.array(values) - low) / width * 255, 0, 255)
    assert planes.dtype == np.uint8
    assert np.abs(planes[0, 0] - expected).max() <= 0.51


def test_every_channel_has_its_own_range() -> None:
    planes = to_planes(np.full((2, 1, 1), 50, np.float32), np.array([[0, 50], [0, 100]], np.float32))
    assert planes.ravel().tolist() == [255, 128]


def transmitted(nuclei: int, marker: int) -> np.ndarray:
    """Beer-Lambert for one pixel, step by step."""
    blue = rendering.HAEMATOXYLIN_DENSITY * (nuclei / 255) ** rendering.HAEMATOXYLIN_GAMMA
    above = max(0.0, marker / 255 - rendering.DAB_THRESHOLD) / (1 - rendering.DAB_THRESHOLD)
    brown = rendering.DAB_DENSITY * above**rendering.DAB_GAMMA
    light = [10 ** -(blue * h + brown * d) for h, d in zip(rendering.HAEMATOXYLIN, rendering.DAB, strict=True)]
    return np.rint(255 * (rendering.GLARE + (1 - rendering.GLARE) * np.array(light)))


@settings(deadline=None)
@given(st.integers(0, 255), st.integers(0, 255))
def test_brightfield_is_beer_lambert(nuclei: int, marker: int) -> None:
    picture = to_brightfield(np.array([[nuclei]], np.uint8), np.array([[marker]], np.uint8))
    assert picture.shape == (3, 1, 1)
    assert np.array_equal(picture[:, 0, 0], transmitted(nuclei, marker))


def test_vectors_are_directions() -> None:
    for vector in (rendering.HAEMATOXYLIN, rendering.DAB):
        assert np.linalg.norm(vector) == pytest.approx(1, abs=0.01)


def test_glass_is_white_nuclei_blue_positives_brown() -> None:
    levels = np.array([[0, 255, 0]], np.uint8), np.array([[0, 0, 255]], np.uint8)
    glass, nucleus, positive = to_brightfield(*levels)[:, 0].T.astype(int)
    assert glass.tolist() == [255, 255, 255]
    assert nucleus[2] > nucleus[0] + 30
    assert positive[0] > positive[1] > positive[2]
    assert positive.mean() < nucleus.mean()


def test_nuclei_alone_are_haematoxylin_alone() -> None:
    ramp = np.arange(256, dtype=np.uint8)[None]
    assert np.array_equal(to_brightfield(ramp, None), to_brightfield(ramp, np.zeros_like(ramp)))


def test_more_stain_is_never_brighter() -> None:
    nuclei, marker = (plane.astype(np.uint8) for plane in np.mgrid[:256, :256])
    picture = to_brightfield(nuclei, marker).astype(int)
    assert (np.diff(picture, axis=1) <= 0).all()
    assert (np.diff(picture, axis=2) <= 0).all()
