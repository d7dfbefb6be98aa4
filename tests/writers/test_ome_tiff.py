"""OME-TIFF as other readers see it: OpenSlide, tiffslide, tifffile, pyvips, ome-types."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import ome_types
import openslide
import pytest
import pyvips
import tifffile
import tiffslide
from numpy.typing import NDArray
from written import (
    BLUE,
    CHANNELS,
    HEIGHT,
    MPP,
    NOTICE,
    RED,
    WIDTH,
    make_spec,
    marker_planes,
    plain_levels,
    rgb_picture,
    write,
)

SIZES = [(1301, 1811), (651, 906), (326, 453)]
#: JPEG at quality 90, grey levels: on average, and at the worst pixel of a hard edge of colour.
MEAN_LOSS, WORST_LOSS = 2.0, 90


@pytest.fixture(scope="module")
def brightfield(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiff") / "ihc.ome.tiff"
    return write(path, make_spec(origin_um=(13.0, 26.0)), rgb_picture())


@pytest.fixture(scope="module")
def fluorescence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiff") / "mif.ome.tif"
    return write(path, make_spec(channels=CHANNELS, origin_um=(13.0, 26.0)), marker_planes())


def assert_close(shown: NDArray[np.uint8], meant: NDArray[np.uint8]) -> None:
    """Two pictures, uint8 (h, w, 3), differ by JPEG's loss only."""
    assert shown.shape == meant.shape
    difference = np.abs(shown.astype(int) - meant)
    assert difference.mean() < MEAN_LOSS
    assert difference.max() < WORST_LOSS


def test_openslide_sees_all_levels_and_the_pixel_size(brightfield: Path) -> None:
    meant = plain_levels(rgb_picture(), 3)
    with openslide.OpenSlide(brightfield) as slide:
        assert list(slide.level_dimensions) == SIZES
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(MPP, rel=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(MPP, rel=1e-6)
        for level, size in enumerate(SIZES):
            pixels = np.asarray(slide.read_region((0, 0), level, size))
            assert pixels[..., 3].min() == 255  # nothing is transparent, blank glass included
            assert_close(pixels[..., :3], meant[level].transpose(1, 2, 0))


def test_red_is_red_and_blue_is_blue(brightfield: Path) -> None:
    with openslide.OpenSlide(brightfield) as slide:
        for color, x in ((RED, 164), (BLUE, 364)):
            assert np.abs(np.asarray(slide.read_region((x, 164), 0, (1, 1)))[0, 0, :3] - np.array(color)).max() <= 3


def test_tiffslide_sees_the_same(brightfield: Path) -> None:
    with tiffslide.TiffSlide(brightfield) as slide:
        assert list(slide.level_dimensions) == SIZES
        assert slide.properties["tiffslide.mpp-x"] == pytest.approx(MPP, rel=1e-6)
        assert_close(
            slide.read_region((0, 0), 0, (700, 600), as_array=True), rgb_picture()[:, :600, :700].transpose(1, 2, 0)
        )


def test_pyvips_sees_the_same(brightfield: Path) -> None:
    image = pyvips.Image.new_from_file(str(brightfield))
    assert (image.width, image.height, image.bands) == (WIDTH, HEIGHT, 3)
    assert (image.get("n-pages"), image.get("n-subifds")) == (3, 2)
    assert 1000 / image.xres == pytest.approx(MPP, rel=1e-6)
    meant = plain_levels(rgb_picture(), 3)
    for option in ({"page": 2}, {"subifd": 1}):
        assert_close(pyvips.Image.new_from_file(str(brightfield), **option).numpy(), meant[2].transpose(1, 2, 0))


def test_tifffile_sees_one_brightfield_series(brightfield: Path) -> None:
    meant = plain_levels(rgb_picture(), 3)
    with tifffile.TiffFile(brightfield) as tiff:
        assert tiff.is_ome
        assert len(tiff.series) == 1
        assert tiff.pages[0].tags["Software"].value.startswith("mupd-wsi ")
        assert [level.shape for level in tiff.series[0].levels] == [(h, w, 3) for w, h in SIZES]
        for level, pixels in zip(tiff.series[0].levels, meant, strict=True):
            page = level.pages[0].aspage()
            assert page.tile == (512, 512)
            assert int(page.compression) == 7
            assert int(page.photometric) == 6
            assert page.tags["YCbCrSubSampling"].value == (2, 1)  # Bio-Formats shows (1, 1) in wrong colours
            assert_close(level.asarray(), pixels.transpose(1, 2, 0))


def test_fluorescence_comes_back_bit_by_bit_at_all_levels(fluorescence: Path) -> None:
    with tifffile.TiffFile(fluorescence) as tiff:
        assert tiff.is_ome
        assert len(tiff.pages) == len(CHANNELS)
        assert tiff.series[0].axes == "CYX"
        assert int(tiff.pages[0].aspage().compression) == 8
        for level, meant in zip(tiff.series[0].levels, plain_levels(marker_planes(), 3), strict=True):
            np.testing.assert_array_equal(level.asarray(), meant)
    image = pyvips.Image.new_from_file(str(fluorescence), page=2)
    np.testing.assert_array_equal(image.numpy(), marker_planes()[2])


@pytest.mark.parametrize("kind", ["brightfield", "fluorescence"])
def test_the_metadata_is_right_by_the_schema(kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    with tifffile.TiffFile(path) as tiff:
        xml = tiff.pages[0].aspage().description
    ome_types.validate_xml(xml)
    # Bio-Formats drops character references, and a file whose unit is "181;m" is no OME-TIFF to it.
    assert "&#" not in xml
    image = ome_types.from_xml(xml).images[0]
    pixels = image.pixels
    assert (pixels.size_x, pixels.size_y, pixels.size_c) == (WIDTH, HEIGHT, 3)
    assert (pixels.physical_size_x, pixels.physical_size_y) == (MPP, MPP)
    assert pixels.physical_size_x_unit.value == "µm"
    assert {(plane.position_x, plane.position_y) for plane in pixels.planes} == {(13.0, 26.0)}
    assert NOTICE in (image.description or "")
    if kind == "fluorescence":
        assert [channel.name for channel in pixels.channels] == [channel.name for channel in CHANNELS]
        assert [channel.color.as_rgb_tuple()[:3] for channel in pixels.channels] == [c.color for c in CHANNELS]
    else:
        assert [channel.samples_per_pixel for channel in pixels.channels] == [3]


def test_the_provenance_can_be_read(fluorescence: Path) -> None:
    ome = ome_types.from_tiff(fluorescence)
    pairs: dict[str, str] = {}
    for annotation in ome.structured_annotations.map_annotations:
        pairs |= {m.k: m.value for m in annotation.value.ms}
    assert pairs["notice"] == NOTICE
    assert pairs["model.weights_sha256"] == "ab" * 32
    assert pairs["slide.name"] == "größer <&> µ.svs"
    assert pairs["steps"] == "4"


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 700), (700, 1), (512, 512), (513, 1024)])
def test_odd_sizes(tmp_path: Path, width: int, height: int) -> None:
    planes = marker_planes(2, height, width)
    path = write(tmp_path / "odd.ome.tiff", make_spec(width, height, CHANNELS[:2]), planes, [100])
    with tifffile.TiffFile(path) as tiff:
        levels = tiff.series[0].levels
        for level, meant in zip(levels, plain_levels(planes, len(levels)), strict=True):
            np.testing.assert_array_equal(level.asarray().reshape(meant.shape), meant)
    picture = rgb_picture(height, width)
    path = write(tmp_path / "odd-rgb.ome.tiff", make_spec(width, height), picture, [100])
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (width, height)
        shown = np.asarray(slide.read_region((0, 0), 0, (width, height)))[..., :3]
        assert_close(shown, picture.transpose(1, 2, 0))


@pytest.mark.parametrize("channels", [(), CHANNELS])
def test_a_bigtiff_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: tuple[()]) -> None:
    pixels = marker_planes() if channels else rgb_picture()
    small = write(tmp_path / "small.ome.tiff", make_spec(channels=channels), pixels)
    monkeypatch.setattr("mupd_wsi.writers.tiff.MAX_CLASSIC_BYTES", 1)
    big = write(tmp_path / "big.ome.tiff", make_spec(channels=channels), pixels)
    with tifffile.TiffFile(small) as first, tifffile.TiffFile(big) as second:
        assert (first.is_bigtiff, second.is_bigtiff) == (False, True)
        for one, other in zip(first.series[0].levels, second.series[0].levels, strict=True):
            np.testing.assert_array_equal(one.asarray(), other.asarray())
    if not channels:
        with openslide.OpenSlide(big) as slide:
            assert list(slide.level_dimensions) == SIZES


def test_names_that_xml_cannot_hold_are_cleaned(tmp_path: Path) -> None:
    spec = replace(make_spec(20, 10, CHANNELS[:1]), name="a\x01b\nc\udc80 d")
    path = write(tmp_path / "odd.ome.tiff", spec, marker_planes(1, 10, 20))
    assert ome_types.from_tiff(path).images[0].name == "a b c  d"


def test_the_same_image_gives_the_same_bytes(tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"{n}.ome.tiff", make_spec(), rgb_picture(), bands) for n, bands in enumerate(([37], [900]))
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
