from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mupd_wsi.drawing import PANEL_SIDE, SHEET_WIDTH, Panel, as_png, draw_panel, scale_bar
from mupd_wsi.errors import OutputError
from mupd_wsi.geometry import Region, Size
from mupd_wsi.preview import PreviewCollector, PreviewText, compose, draw_preview, save_preview
from mupd_wsi.tiling import TileGrid
from mupd_wsi.writers.spec import Channel

TEXT = PreviewText("slide-1", "CD8a", "H&E", "virtual IHC", (), (), ("virtual stain, research use only",))


def gathered(region: Region, core: int, planes: NDArray[np.uint8]) -> PreviewCollector:
    """Feed a picture of the whole slide, (samples, h, w), in tiles."""
    collector = PreviewCollector(region, core, len(planes), 0)
    grid = TileGrid(Size(planes.shape[2], planes.shape[1]), region, core, 0)
    for tile in grid.tiles():
        part = planes[:, tile.core.y : tile.core.bottom, tile.core.x : tile.core.right]
        collector.add(tile.core, part, float(part.mean()))
    return collector


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([(x * 255 // width), (y * 255 // height)]).astype(np.uint8)


@pytest.mark.parametrize("region", [Region(0, 0, 3100, 1700), Region(37, 501, 2011, 1003)])
def test_overview_is_the_block_mean_at_the_right_place(region: Region) -> None:
    planes = smooth(1700, 3100)
    collector = gathered(region, 64, planes)
    frame, overview = collector.overview
    k = collector.factor
    assert k == (4 if region.width == 3100 else 2)
    assert overview.shape == (2, frame.height, frame.width)
    inner = planes[:, frame.y * k + k : (frame.bottom - 1) * k, frame.x * k + k : (frame.right - 1) * k]
    blocks = inner.reshape(2, frame.height - 2, k, frame.width - 2, k).mean((2, 4))
    assert np.abs(overview[:, 1:-1, 1:-1] - blocks).max() <= 1
    assert (Region(0, 0, -(-3100 // k), -(-1700 // k))).contains(frame)


def test_detail_is_the_tile_with_the_most_stain() -> None:
    planes = np.zeros((1, 256, 256), np.uint8)
    planes[0, 130:140, 70:90] = 200
    core, pixels = gathered(Region(0, 0, 256, 256), 64, planes).detail or pytest.fail("no detail")
    assert core == Region(64, 128, 64, 64)
    assert np.array_equal(pixels, planes[:, 128:192, 64:128])


def blank(region: Region, mpp: float) -> NDArray[np.uint8]:
    del mpp
    return np.full((region.height, region.width, 3), 240, np.uint8)


def test_nothing_stained_leaves_background_and_no_detail() -> None:
    collector = PreviewCollector(Region(0, 0, 2000, 1000), 64, 3, 255)
    assert collector.detail is None
    assert collector.overview[1].min() == 255
    picture = draw_preview(collector, blank, 1.3, TEXT)
    assert picture.width == SHEET_WIDTH


@settings(deadline=None)
@given(st.floats(0.01, 100), st.integers(80, 2000))
def test_scale_bar_is_true_round_and_fits(um_per_px: float, width: int) -> None:
    length, label = scale_bar(um_per_px, width)
    number, unit = label.split()
    um = float(number) * {"um": 1, "mm": 1000}[unit]
    assert length * um_per_px == pytest.approx(um)
    assert 0.1 * width <= length <= 0.301 * width
    assert f"{um:.0e}"[0] in "125"


def test_the_drawn_bar_has_its_length_on_the_picture() -> None:
    picture = np.asarray(draw_panel(Panel("", np.full((384, 384, 3), 200, np.uint8), 1.0), None))
    assert picture.shape == (PANEL_SIDE, PANEL_SIDE, 3)
    length, label = scale_bar(0.5, PANEL_SIDE)
    assert (label, length) == ("100 um", 200)
    bar_row = picture[PANEL_SIDE - 12 - 44 + 33]
    assert abs(int((bar_row.max(axis=1) < 90).sum()) - 200) <= 1


def test_a_window_cuts_the_picture_between_pixels() -> None:
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], 100, axis=0).repeat(3, axis=2)
    drawn = draw_panel(Panel("", ramp, 1.0, (10.5, 0, 50.5, 40)), None)
    assert drawn.size == (120, 120)
    assert np.asarray(drawn)[5, 60, 0] == pytest.approx(2 * 30, abs=2)


def test_compose_lays_channels_over_each_other_as_light() -> None:
    planes = np.array([[[0, 255, 255, 128]], [[0, 0, 255, 0]]], np.uint8)
    picture = compose(planes, (Channel("a", (255, 0, 0)), Channel("b", (0, 0, 255))))
    assert picture[0].tolist() == [[0, 0, 0], [255, 0, 0], [255, 0, 255], [128, 0, 0]]


def test_the_png_holds_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    with Image.open(io.BytesIO(as_png(picture))) as read:
        read.load()
        assert (read.format, read.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(read), picture)


def test_compose_keeps_rgb() -> None:
    planes = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    assert np.array_equal(compose(planes, ()), np.moveaxis(planes, 0, 2))


def test_both_sides_show_the_same_place_and_the_frame_marks_the_detail(tmp_path: Path) -> None:
    """The H&E and the stain of the same pattern must be the same pictures, overview and detail."""
    rng = np.random.default_rng(1)
    pattern = np.kron(rng.integers(60, 256, (50, 70), np.uint8), np.ones((32, 32), np.uint8))
    planes = np.stack([pattern] * 3)

    def read_he(region: Region, mpp: float) -> NDArray[np.uint8]:
        k = round(mpp / 1.3)
        height, width = pattern.shape
        small = pattern[: height // k * k, : width // k * k].reshape(height // k, k, width // k, k).mean((1, 3))
        part = small[region.y : region.bottom, region.x : region.right]
        return np.repeat(np.rint(part).astype(np.uint8)[..., None], 3, axis=2)

    collector = gathered(Region(0, 0, 2240, 1600), 512, planes)
    save_preview(tmp_path / "p.png", collector, read_he, 1.3, TEXT)
    with Image.open(tmp_path / "p.png") as picture:
        sheet = np.asarray(picture).astype(int)
    assert sheet.shape[1] == SHEET_WIDTH
    left, right = sheet[:, 24 : 24 + PANEL_SIDE], sheet[:, 24 + PANEL_SIDE + 16 : -24]
    body = slice(150, sheet.shape[0] - 80)
    assert np.abs(left[body] - right[body]).mean() < 1.5
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (3, 2)])
def test_tiny_and_thin_images_can_be_drawn(size: tuple[int, int]) -> None:
    planes = np.zeros((2, size[1], size[0]), np.uint8)
    channels = (Channel("CD8a", (0, 255, 0)), Channel("x" * 40, (1, 2, 3), (100, 255)))
    text = PreviewText("s" * 300, "t", "H&E", "v", channels, ("w " * 200,), ("n",))
    collector = gathered(Region(0, 0, *size), 512, planes)
    picture = draw_preview(collector, blank, 1.3, text)
    assert picture.width == SHEET_WIDTH


def test_a_preview_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    collector = PreviewCollector(Region(0, 0, 20, 10), 64, 3, 255)
    with pytest.raises(OutputError, match="cannot write"):
        save_preview(tmp_path / "no" / "p.png", collector, blank, 1, TEXT)
