"""Seam measurements against slow and plain versions of themselves, and against seams of known size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mupd_wsi.geometry import Region
from mupd_wsi.stitching.seams import (
    CONTROLS,
    EdgeStep,
    EdgeStepMeter,
    GridShift,
    SeamReport,
    ShiftProbe,
    grid_shift,
)


def smooth_noise(samples: int, height: int, width: int, seed: int = 0) -> NDArray[np.float64]:
    """Something with the texture of a stain: neighbours differ by about a grey level."""
    import cv2

    rng = np.random.default_rng(seed)
    planes = rng.normal(0, 1, (samples, height, width))
    return np.stack([128 + 40 * cv2.GaussianBlur(plane, (0, 0), 2.5) for plane in planes])


def measured(image: NDArray[np.uint8], core: int, region: Region, counts: NDArray[np.bool_] | None = None):
    """Feed an image (samples, h, w), which is the region of a slide, band by band."""

    def of_region(part: Region) -> NDArray[np.bool_]:
        assert counts is not None
        y, x = part.y - region.y, part.x - region.x
        assert x >= 0
        assert y >= 0
        assert x + part.width <= region.width
        assert y + part.height <= region.height
        return counts[y : y + part.height, x : x + part.width]

    meter = EdgeStepMeter(region, core, None if counts is None else of_region)
    y = 0
    while y < region.height:
        bottom = min(region.height, (region.y + y) // core * core + core - region.y)
        meter.add(Region(0, y, region.width, bottom - y), image[:, y:bottom])
        y = bottom
    return meter.result()


def plain_ratio(
    image: NDArray[np.uint8], core: int, region: Region, counts: NDArray[np.bool_] | None
) -> tuple[float, int]:
    """Edge by edge, pixel by pixel."""
    edge = control = 0.0
    pixels = 0
    usable = [o for o in CONTROLS if abs(o) <= core // 2]
    for transposed in (False, True):
        planes = image.astype(int).transpose(0, 2, 1) if transposed else image.astype(int)
        good = None if counts is None else (counts.T if transposed else counts)
        start = region.y if transposed else region.x
        other = region.x if transposed else region.y
        size = planes.shape[2]
        for line in range(1, size):
            if (start + line) % core:
                continue

            def step(at: int, row: int, planes: NDArray[np.int64] = planes) -> float:
                a, b, c, d = (planes[:, row, at + i] for i in (-2, -1, 0, 1))
                return float((abs(a - 2 * b + c) + abs(b - 2 * c + d)).sum()) / 2

            for row in range(planes.shape[1]):
                # What an edge may look at: along columns the band alone, along rows the last rows above it as well.
                low = -66 if transposed else -size
                if transposed:
                    band = (start + line) // core * core - start
                    low = max(0, (start + line - 1) // core * core - start, band - 66)
                    high = min(size, band + min(core, 66))
                else:
                    low, high = 0, size
                offsets = [o for o in usable if line + o - 2 >= low and line + o + 2 <= high]
                if not offsets or line - 2 < low or line + 2 > high:
                    continue
                needed = [line + o + i for o in (0, *offsets) for i in (-2, -1, 0, 1)]
                if good is not None and not good[row, needed].all():
                    continue
                edge += step(line, row)
                control += float(np.mean([step(line + o, row) for o in offsets]))
                pixels += 1
        assert other >= 0
    return edge / max(control, 1e-9), pixels


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_bands_give_what_a_slow_and_plain_sum_gives(data: st.DataObject) -> None:
    core = data.draw(st.sampled_from([32, 40, 64, 96]))
    region = Region(
        data.draw(st.integers(0, 70)),
        data.draw(st.integers(0, 70)),
        data.draw(st.integers(1, 120)),
        data.draw(st.integers(1, 120)),
    )
    image = smooth_noise(2, region.height, region.width, seed=data.draw(st.integers(0, 9))).clip(0, 255)
    pixels = image.astype(np.uint8)
    counts = None
    if data.draw(st.booleans()):
        counts = np.random.default_rng(1).random((region.height, region.width)) < 0.99
    ratio, number = plain_ratio(pixels, core, region, counts)
    found = measured(pixels, core, region, counts)
    if number == 0:
        assert found is None
        return
    assert found is not None
    assert found.pixels == number
    assert found.ratio == pytest.approx(ratio)


@pytest.mark.parametrize(("drift", "low", "high"), [(0, 0.93, 1.07), (1, 1.2, 1.8), (4, 2.5, 6)])
def test_a_drift_of_one_grey_level_is_seen(drift: int, low: float, high: float) -> None:
    """Every second tile brighter by a little: what a network does that takes means over a tile."""
    image = smooth_noise(3, 512, 512)
    y, x = np.mgrid[:512, :512] // 128
    image += drift * ((x + y) % 2)
    found = measured(np.rint(image).clip(0, 255).astype(np.uint8), 128, Region(0, 0, 512, 512))
    assert found is not None
    assert low < found.ratio < high
    assert found.pixels == 2 * 3 * 512


def test_glass_without_any_texture_is_no_seam() -> None:
    found = measured(np.full((1, 256, 256), 7, np.uint8), 64, Region(0, 0, 256, 256))
    assert found == EdgeStep(0.0, 2 * 3 * 256)


def test_a_picture_without_an_edge_has_no_ratio() -> None:
    assert measured(np.zeros((1, 60, 60), np.uint8), 64, Region(2, 2, 60, 60)) is None


def test_a_place_is_compared_where_cores_came_and_pixels_count() -> None:
    probe = ShiftProbe(Region(10, 20, 4, 3), 2)
    written = np.arange(2 * 6 * 6, dtype=np.uint8).reshape(2, 6, 6)
    probe.keep(Region(8, 18, 4, 6), written[:, :, :4])  # covers x 8..11: half of the place
    probe.keep(Region(100, 100, 4, 6), written[:, :, :4])
    expected = written[:, 2:5, 2:4]
    other = np.zeros((2, 3, 4), np.uint8)
    other[:, :, :2] = expected + np.array([[[0, 3]]], np.uint8)
    every = probe.differences(other, None)
    assert every.shape == (2, 6)
    assert sorted(every.ravel()) == [0] * 6 + [3] * 6
    counts = np.zeros((3, 4), bool)
    counts[0] = True
    assert grid_shift([every, probe.differences(other, counts)]) == GridShift(1.5, 3, 2, 8)
    assert grid_shift([probe.differences(other, np.zeros((3, 4), bool))]) is None


def test_a_report_is_json() -> None:
    assert SeamReport(None, None).as_json() == {"grid_shift": None, "edge_step": None}
    report = SeamReport(GridShift(0.123456789, 2, 1, 9), EdgeStep(1.23456789, 5)).as_json()
    assert report["grid_shift"] == {"mean": 0.12346, "max": 2, "places": 1, "pixels": 9}
    assert report["edge_step"] == {"ratio": 1.2346, "pixels": 5}
