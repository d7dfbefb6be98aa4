"""What the writers write, the readers read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mupd_wsi.errors import SlideError
from mupd_wsi.geometry import Region, Size
from mupd_wsi.slides import open_slide
from mupd_wsi.writers import Channel, ImageSpec, open_writer


def write(path: Path, planes: NDArray[np.uint8], channels: tuple[Channel, ...] = ()) -> Path:
    height, width = planes.shape[1:]
    notice = {"notice": "virtual stain, research use only"}
    writer = open_writer(path, ImageSpec("stain", Size(width, height), 1.3, channels, (0.0, 0.0), notice))
    for y in range(0, height, 512):
        part = planes[:, y : y + 512]
        writer.write(Region(0, y, width, part.shape[1]), np.ascontiguousarray(part))
    return writer.finish()


@pytest.fixture(scope="module")
def picture(synthetic_slide: Callable[..., Path]) -> NDArray[np.uint8]:
    with open_slide(synthetic_slide()) as slide:
        return slide.read_level(0, Region(0, 0, slide.size.width, slide.size.height))


@pytest.mark.parametrize(("name", "slack"), [("a.ome.tiff", 2.0), ("a.ome.zarr", 0.0)])
def test_our_rgb_output_is_a_slide(tmp_path: Path, picture: NDArray[np.uint8], name: str, slack: float) -> None:
    path = write(tmp_path / name, np.moveaxis(picture, 2, 0))
    height, width = picture.shape[:2]
    with open_slide(path) as slide:
        assert slide.name == "a"
        assert slide.size == Size(width, height)
        assert (slide.mpp.x, slide.mpp.y) == pytest.approx((1.3, 1.3))
        assert [level.downsample for level in slide.levels] == [2**n for n in range(len(slide.levels))]
        assert len(slide.levels) > 1
        got = slide.read(Region(0, 0, width, height), 1.3)
        half = slide.read(Region(0, 0, width // 2, height // 2), 2.6)
    assert np.abs(got.astype(float) - picture).mean() <= slack
    mean = picture[: height // 2 * 2, : width // 2 * 2].reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - mean).mean() <= slack + 0.6


@pytest.mark.parametrize("name", ["a.ome.tiff", "a.ome.zarr"])
def test_our_fluorescence_output_is_no_he(tmp_path: Path, name: str) -> None:
    channels = tuple(Channel(marker, (0, 255, 0)) for marker in ("Hoechst", "CD8a", "CD3e", "Pan-CK"))
    path = write(tmp_path / name, np.zeros((4, 600, 700), np.uint8), channels)
    with pytest.raises(SlideError, match="H&E slide"):
        open_slide(path)
