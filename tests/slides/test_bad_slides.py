"""Every broken file gives one clear line, at opening or at reading; never wrong pixels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from mupd_wsi.errors import SlideError
from mupd_wsi.geometry import Region
from mupd_wsi.slides import open_slide
from mupd_wsi.slides.flat_source import MAX_FLAT_PIXELS


def read_all(path: Path) -> None:
    with open_slide(path) as slide:
        for level in range(len(slide.levels)):
            size = slide.levels[level].size
            slide.read_level(level, Region(0, 0, size.width, size.height))


def refused(path: Path, *words: str) -> None:
    with pytest.raises(SlideError) as caught:
        read_all(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    for word in words:
        assert word in message


def empty(path: Path) -> Path:
    path.touch()
    return path


def text(path: Path) -> Path:
    path.write_text("this is no slide\n" * 100)
    return path


def noise(path: Path) -> Path:
    path.write_bytes(b"II*\0" + np.random.default_rng(0).bytes(5000))
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def ten_bytes(path: Path) -> Path:
    path.write_bytes(b"II*\0" + bytes(6))
    return path


def zarr_without_image(path: Path) -> Path:
    zarr.create_group(path)
    return path


def sixteen_bits(path: Path) -> Path:
    Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256)).save(path)
    return path


def fluorescence_channels(path: Path) -> Path:
    tifffile.imwrite(path, np.zeros((5, 256, 256), np.uint8), metadata={"axes": "CYX"}, tile=(128, 128))
    return path


@pytest.mark.parametrize(
    ("name", "make", "word"),
    [
        ("missing.svs", lambda path: path, "does not exist"),
        ("empty.svs", empty, "empty"),
        ("text.svs", text, "not an image"),
        ("noise.tif", noise, "fetch"),
        ("short.tif", ten_bytes, "10 bytes"),
        ("folder", folder, "folder"),
        ("empty.zarr", zarr_without_image, "OME-Zarr"),
        ("deep.png", sixteen_bits, "8-bit"),
        ("mif.ome.tiff", fluorescence_channels, "5 grey channels"),
    ],
)
def test_no_slide(tmp_path: Path, name: str, make: Callable[[Path], Path], word: str) -> None:
    if name == "noise.tif":
        with pytest.raises(SlideError, match=name):
            read_all(make(tmp_path / name))
    else:
        refused(make(tmp_path / name), word)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("fixture", ["cmu_slide", "tcga_slide", "ihc_slide", "fluorescence_slide"])
def test_truncated(
    fixture: str, share: float, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    source: Path = request.getfixturevalue(fixture)
    data = source.read_bytes()
    path = tmp_path / f"short{source.suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with caplog.at_level(logging.CRITICAL):
        refused(path)


@pytest.mark.parametrize("style", ["svs", "tiff"])
def test_truncated_synthetic_slides(synthetic_slide: Callable[..., Path], style: str, tmp_path: Path) -> None:
    data = synthetic_slide(style=style).read_bytes()
    path = tmp_path / "short.tif"
    for share in (0.05, 0.5, 0.95):
        path.write_bytes(data[: int(len(data) * share)])
        refused(path, "truncated")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_truncated_flat_pictures(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"flat{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused(path)


def tile_bytes(path: Path, index: int) -> tuple[int, int]:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        return page.dataoffsets[index], page.databytecounts[index]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: bytes(len(data)),
        lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
        lambda data: b"\xff\xd8" + np.random.default_rng(0).bytes(len(data) - 2),
        lambda data: data[: len(data) // 2] + b"\xff\xc0" * 50 + data[len(data) // 2 + 100 :],
    ],
    ids=["zeros", "half zeros", "noise", "impossible markers"],
)
@pytest.mark.parametrize("fixture", ["cmu_slide", "tcga_slide"])
def test_a_damaged_tile_is_named(
    fixture: str, damage: Callable[[bytes], bytes], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(fixture)
    offset, count = tile_bytes(source, 3)
    data = source.read_bytes()
    path = tmp_path / source.name
    path.write_bytes(data[:offset] + damage(data[offset : offset + count]) + data[offset + count :])
    refused(path, "tile 3,0 of level 0", "fetch")
    with open_slide(path) as slide:
        assert slide.read_level(0, Region(0, 0, 100, 100)).shape == (100, 100, 3)  # the rest is still there


def test_a_damaged_ndpi(fluorescence_slide: Path, tmp_path: Path) -> None:
    data = bytearray(fluorescence_slide.read_bytes())
    middle = len(data) // 4
    data[middle : middle + 20000] = bytes(20000)
    path = tmp_path / fluorescence_slide.name
    path.write_bytes(data)
    refused(path)


def test_a_damaged_chunk_of_a_zarr(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    group = zarr.create_group(path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 300, 300), np.uint8)
    group.create_array("0", shape=pixels.shape, dtype="uint8", chunks=(3, 256, 256))[...] = pixels
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    read_all(path)
    chunk = path / "0" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:1000])
    refused(path, "block 0,0 of level 0")


def test_a_zarr_of_many_channels(tmp_path: Path) -> None:
    path = tmp_path / "mif.zarr"
    group = zarr.create_group(path)
    group.create_array("0", shape=(7, 64, 64), dtype="uint8")
    axes = [{"name": name, "type": "space"} for name in "cyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    refused(path, "c=7")


def test_a_picture_too_large_for_memory(tmp_path: Path) -> None:
    for side, name in ((12_000, "large.png"), (20_000, "bomb.png")):
        Image.new("1", (side, side)).save(tmp_path / name)
    assert 12_000**2 < MAX_FLAT_PIXELS < 20_000**2
    refused(tmp_path / "bomb.png", "pyramid")


def test_the_named_backend_is_used_or_refused(cmu_slide: Path, tmp_path: Path) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "flat.png")
    for backend in ("tifffile", "openslide", "zarr"):
        with pytest.raises(SlideError, match=r"flat\.png"):
            open_slide(tmp_path / "flat.png", backend=backend)
    with open_slide(cmu_slide, backend="openslide") as slide:
        assert slide.backend == "openslide"
