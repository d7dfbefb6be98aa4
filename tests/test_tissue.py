"""The tissue mask and the stain guess, on real slides and on things that are no tissue."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mupd_wsi.geometry import Region
from mupd_wsi.slides import open_slide
from mupd_wsi.tissue import TissueMask, stain_guess, tissue_mask

PINK, VIOLET = (228, 190, 215), (120, 80, 150)
SIDE = 1500


@functools.cache
def thumbnail(path: Path, mpp: float | None = None, side: int = SIDE) -> tuple[NDArray[np.uint8], float]:
    with open_slide(path, mpp=mpp) as slide:
        return slide.thumbnail(side), slide.mpp.mean * slide.thumbnail_scale(side)


def glass(height: int = 400, width: int = 500, grey: int = 243) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).normal(0, 1.5, (height, width, 3))
    return np.clip(grey + noise, 0, 255).astype(np.uint8)


def dense(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """What nobody doubts is tissue: clearly darker in green than the glass, over some distance."""
    green = cv2.GaussianBlur(rgb[..., 1], (0, 0), 3)
    return green < np.percentile(green, 99) - 60


@pytest.mark.parametrize(
    ("fixture", "mpp", "low", "high"),
    [("cmu_slide", None, 0.3, 0.65), ("eas2_slide", None, 0.06, 0.6), ("tcga_slide", 0.25, 0.4, 0.85)],
)
def test_real_slides(fixture: str, mpp: float | None, low: float, high: float, request: pytest.FixtureRequest) -> None:
    rgb, um = thumbnail(request.getfixturevalue(fixture), mpp)
    mask = tissue_mask(rgb, um)
    assert mask.shape == rgb.shape[:2]
    assert low < mask.mean() < high
    assert mask[dense(rgb)].mean() > 0.99 if dense(rgb).any() else True


def test_the_pale_biopsy_is_one_core_and_not_its_glass(eas2_slide: Path) -> None:
    rgb, um = thumbnail(eas2_slide)
    pieces, _, stats, _ = cv2.connectedComponentsWithStats(tissue_mask(rgb, um).astype(np.uint8))
    areas = np.sort(stats[1:, cv2.CC_STAT_AREA])[::-1]
    assert pieces > 1
    assert areas[0] > 0.7 * areas.sum()


@pytest.mark.parametrize("side", [400, 900, 2200])
def test_the_mask_hardly_depends_on_the_thumbnail(cmu_slide: Path, side: int) -> None:
    fractions = [tissue_mask(*thumbnail(cmu_slide, side=n)).mean() for n in (1500, side)]
    assert abs(fractions[0] - fractions[1]) < 0.05


@pytest.mark.parametrize("grey", [225, 243, 255])
def test_blank_glass_is_blank(grey: int) -> None:
    assert tissue_mask(glass(grey=grey), 8.0).mean() < 0.005


def test_a_blank_slide_with_dirt_border_and_coverslip_is_blank() -> None:
    rgb = np.full((600, 800, 3), (240, 236, 226), np.uint8)
    rgb[:60] = 0
    rgb[:, :50] = (3, 2, 4)
    cv2.line(rgb, (0, 300), (800, 310), (170, 168, 165), 3)
    cv2.circle(rgb, (400, 450), 60, (215, 212, 204), -1)  # an air bubble
    assert not tissue_mask(rgb, 8.0).any()


@pytest.mark.parametrize("ink", [(30, 50, 170), (70, 120, 220), (20, 130, 70), (200, 30, 40), (25, 24, 28)])
def test_pen_marks_are_no_tissue(ink: tuple[int, int, int]) -> None:
    """A stroke on glass and one over tissue, 0.5 mm wide; the tissue beside them stays."""
    rgb = glass(800, 1000)
    cv2.ellipse(rgb, (600, 400), (300, 250), 0, 0, 360, PINK, -1)
    for x, y in np.random.default_rng(1).integers((380, 220), (820, 580), (3000, 2)):
        cv2.circle(rgb, (int(x), int(y)), 1, VIOLET, -1)
    clean = tissue_mask(rgb, 10.0)
    cv2.line(rgb, (80, 100), (150, 700), ink, 50, cv2.LINE_AA)
    cv2.line(rgb, (600, 50), (600, 750), ink, 50, cv2.LINE_AA)
    marked = tissue_mask(cv2.GaussianBlur(rgb, (0, 0), 1.0), 10.0)
    strokes = np.zeros(marked.shape, np.uint8)
    cv2.line(strokes, (80, 100), (150, 700), 1, 50)
    cv2.line(strokes, (600, 50), (600, 750), 1, 50)
    assert not marked[strokes > 0].any()
    beside = cv2.dilate(strokes, np.ones((31, 31), np.uint8)) == 0
    assert marked[clean & beside].mean() > 0.99


def test_pieces_holes_and_the_margin() -> None:
    um = 8.0
    rgb = glass()
    rgb[100:300, 100:300] = PINK
    rgb[150:160, 150:160] = 243  # a hole of 80 um
    rgb[200:260, 200:260] = 243  # a lumen of 480 um
    rgb[20:24, 20:24] = PINK  # a speck of 32 um
    mask = tissue_mask(rgb, um)
    assert mask[150:160, 150:160].all()
    assert not mask[225:235, 225:235].any()
    assert not mask[:60, :60].any()
    reach = 100 - int(np.argmax(mask[180]))
    assert 30 <= reach * um <= 80
    assert mask[100:150, 100:300].all()


def test_a_cell_at_the_edge_is_kept() -> None:
    """A dark nucleus 20 um off the tissue's edge lies within the margin."""
    rgb = glass(500, 500)
    rgb[:, :250] = PINK
    cv2.circle(rgb, (255, 250), 2, VIOLET, -1)
    assert tissue_mask(rgb, 4.0)[245:256, 250:258].all()


def test_tissue_without_any_glass_is_tissue() -> None:
    rgb = np.random.default_rng(0).normal((200, 140, 180), 12, (300, 300, 3)).clip(0, 255).astype(np.uint8)
    assert tissue_mask(rgb, 8.0).mean() > 0.95


@pytest.mark.parametrize(
    ("fixture", "label"),
    [
        ("cmu_slide", "H&E"),
        ("tcga_slide", "H&E"),
        ("eas2_slide", "H&E"),
        ("fluorescence_slide", "fluorescence"),
        ("ihc_slide", "IHC (DAB)"),
    ],
)
@pytest.mark.parametrize("side", [300, 1500])
def test_stain_guess(fixture: str, label: str, side: int, request: pytest.FixtureRequest) -> None:
    guess = stain_guess(thumbnail(request.getfixturevalue(fixture), 0.5, side)[0])
    assert guess.label == label
    assert guess.is_he == (label == "H&E")
    assert 0.5 <= guess.confidence <= 1
    assert guess.reason


def test_stain_guess_of_what_cannot_be_known() -> None:
    assert stain_guess(glass()).label == "unknown"
    grey = glass()
    grey[100:300, 100:300] = 120
    assert stain_guess(grey).label == "unknown"
    blue = glass()
    blue[100:300, 100:300] = (150, 165, 200)  # haematoxylin without eosin
    assert stain_guess(blue).label == "unknown"


def test_cytology_does_not_crash(wrong_mpp_slide: Path) -> None:
    rgb, um = thumbnail(wrong_mpp_slide, 0.5)
    assert stain_guess(rgb).label
    assert tissue_mask(rgb, um).shape == rgb.shape[:2]


def test_one_pixel() -> None:
    assert tissue_mask(np.full((1, 1, 3), 255, np.uint8), 0.5).tolist() == [[False]]
    assert stain_guess(np.full((1, 1, 3), 255, np.uint8)).label == "unknown"


def test_fraction_of_a_region() -> None:
    tissue = TissueMask(np.array([[True, False], [False, False]]), 10.0)
    assert tissue.fraction(Region(0, 0, 20, 20), 1.0) == pytest.approx(0.25)
    assert tissue.fraction(Region(0, 0, 10, 10), 1.0) == pytest.approx(1)
    assert tissue.fraction(Region(5, 5, 10, 10), 1.0) == pytest.approx(0.25)
    assert tissue.fraction(Region(10, 0, 10, 20), 1.0) == 0
    assert tissue.fraction(Region(-10, 0, 20, 10), 1.0) == pytest.approx(0.5)  # outside is no tissue
    assert tissue.fraction(Region(50, 50, 5, 5), 1.0) == 0
    assert tissue.covers(Region(9, 9, 5, 5), 1.0)
    assert not tissue.covers(Region(10, 10, 5, 5), 1.0)


@pytest.mark.parametrize("mpp", [0.7, 1.3, 3.0, 25.0])
def test_fraction_and_pixels_agree_with_a_plain_count(mpp: float) -> None:
    mask = np.random.default_rng(2).random((40, 60)) > 0.6
    tissue = TissueMask(mask, 10.0)
    width, height = int(600 / mpp), int(400 / mpp)
    region = Region(width // 5, height // 4, max(width // 2, 1), max(height // 2, 1))
    fine = 50
    x = (np.arange(region.width * fine) / fine + region.x + 0.5 / fine) * mpp / 10
    y = (np.arange(region.height * fine) / fine + region.y + 0.5 / fine) * mpp / 10
    columns, rows = np.bincount(x.astype(int), minlength=60), np.bincount(y.astype(int), minlength=40)
    count = rows @ mask @ columns / (region.size.area * fine**2)
    assert tissue.fraction(region, mpp) == pytest.approx(count, abs=2e-3)
    if mpp < 2:
        assert tissue.pixels(region, mpp).mean() == pytest.approx(count, abs=0.02)


def test_pixels_outside_hold_no_tissue() -> None:
    tissue = TissueMask(np.ones((2, 2), bool), 10.0)
    assert tissue.pixels(Region(-1, 1, 4, 2), 10.0).tolist() == [[False, True, True, False], [False] * 4]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="um/px"):
        TissueMask(np.ones((2, 2), bool), 0)
    with pytest.raises(ValueError, match="um/px"):
        tissue_mask(glass(), 0)
