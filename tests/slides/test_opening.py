"""Formats, backends, um/px, and files that others write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from mupd_wsi.errors import PixelSizeError, UsageError
from mupd_wsi.geometry import Region
from mupd_wsi.slides import open_slide, slide_name


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    random = np.random.default_rng(3)
    return np.asarray(Image.fromarray(random.integers(0, 256, (15, 21, 3), np.uint8)).resize((700, 500)))


def whole(path: Path, level: int = 0, **options: Any) -> NDArray[np.uint8]:
    with open_slide(path, **options) as slide:
        size = slide.levels[level].size
        return slide.read_level(level, Region(0, 0, size.width, size.height))


def test_facts_are_openslides(cmu_slide: Path, eas2_slide: Path) -> None:
    for path in (cmu_slide, eas2_slide):
        with open_slide(path) as slide, openslide.OpenSlide(path) as other:
            assert slide.format == "Aperio SVS"
            assert slide.backend == "tifffile"
            assert (slide.size.width, slide.size.height) == other.dimensions
            assert slide.mpp.x == pytest.approx(float(other.properties["openslide.mpp-x"]))
            assert slide.mpp.source == "aperio.MPP"
            assert slide.magnification == pytest.approx(float(other.properties["openslide.objective-power"]))


def test_downsamples_are_whole_where_only_rounding_keeps_them_from_it(eas2_slide: Path) -> None:
    with open_slide(eas2_slide) as slide:
        assert all(level.downsample.is_integer() for level in slide.levels)


def test_fluorescence_is_read_by_openslide(fluorescence_slide: Path) -> None:
    with open_slide(fluorescence_slide) as slide:
        assert slide.mpp.x == pytest.approx(0.228, abs=0.001)
        if fluorescence_slide.suffix == ".ndpi":
            assert (slide.format, slide.backend) == ("Hamamatsu NDPI", "openslide")


def test_no_pixel_size_still_opens(tcga_slide: Path) -> None:
    with open_slide(tcga_slide) as slide:
        assert slide.file_mpp is None
        with pytest.raises(PixelSizeError, match="--mpp"):
            _ = slide.mpp
    with open_slide(tcga_slide, mpp=0.25) as slide:
        assert slide.mpp.mean == 0.25
        assert "--mpp" in slide.mpp.source


@pytest.mark.parametrize("fixture", ["wrong_mpp_slide", "ihc_slide"])
def test_absurd_pixel_size_is_shown_and_can_be_overridden(fixture: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    with open_slide(path) as slide:
        assert slide.file_mpp is not None
        assert slide.file_mpp.x == pytest.approx(1000)
        with pytest.raises(PixelSizeError, match=r"1000 x 1000 um/px.*--mpp"):
            _ = slide.mpp
    with open_slide(path, mpp=0.263) as slide:
        assert slide.mpp.mean == 0.263


def test_absurd_given_pixel_size() -> None:
    with pytest.raises(PixelSizeError, match="99"):
        open_slide("anything", mpp=99)
    with pytest.raises(UsageError, match="toaster"):
        open_slide("anything", backend="toaster")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.svs", "a"),
        ("a.b.ome.tiff", "a.b"),
        ("x.OME.TIF", "x"),
        ("y.ome.zarr", "y"),
        ("z.zarr", "z"),
        (".ome", ".ome"),
    ],
)
def test_names(name: str, expected: str) -> None:
    assert slide_name(Path("folder") / name) == expected


def test_fingerprint_tells_slides_apart(cmu_slide: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(cmu_slide, tmp_path / "other-name.svs"))
    with open_slide(cmu_slide) as slide, open_slide(copy) as same:
        assert slide.fingerprint() == same.fingerprint()
        assert len(slide.fingerprint()) == 64
        before = slide.fingerprint()
    with copy.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    with open_slide(copy) as changed:
        assert changed.fingerprint() != before


def write_ome(path: Path, picture: NDArray[np.uint8], axes: str, **options: Any) -> Path:
    """An OME-TIFF with one lower level in a SubIFD, 0.3 um/px, as Bio-Formats lays it out."""
    step = (slice(None), slice(None, None, 2), slice(None, None, 2)) if axes == "CYX" else (slice(None, None, 2),) * 2
    shared = {"tile": (128, 128)} | options
    metadata = {
        "axes": axes,
        "PhysicalSizeX": 0.3,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 0.3,
        "PhysicalSizeYUnit": "µm",
    }
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(picture, subifds=1, metadata=metadata, **shared)
        writer.write(picture[step], subfiletype=1, **shared)
    return path


@pytest.mark.parametrize("compression", [None, "deflate", "lzw", "zstd", "jpeg2000"])
def test_ome_tiff_with_subifds(tmp_path: Path, picture: NDArray[np.uint8], compression: str | None) -> None:
    path = write_ome(tmp_path / "a.ome.tiff", picture, "YXS", photometric="rgb", compression=compression)
    with open_slide(path) as slide:
        assert (slide.format, slide.backend, slide.name) == ("OME-TIFF", "tifffile", "a")
        assert [level.downsample for level in slide.levels] == [1, 2]
        assert (slide.mpp.x, slide.mpp.source) == (0.3, "OME-XML PhysicalSize")
    exact = compression != "jpeg2000"
    np.testing.assert_allclose(whole(path), picture, atol=0 if exact else 3)
    np.testing.assert_allclose(whole(path, 1), picture[::2, ::2], atol=0 if exact else 3)


def test_ome_tiff_in_jpeg_keeps_its_colours(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = write_ome(tmp_path / "a.ome.tiff", picture, "YXS", photometric="rgb", compression="jpeg")
    np.testing.assert_array_equal(whole(path), tifffile.imread(path))
    assert np.abs(whole(path).astype(float) - picture).mean() < 6


def test_ome_tiff_of_three_grey_pages(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    planes = np.ascontiguousarray(np.moveaxis(picture, 2, 0))
    path = write_ome(tmp_path / "a.ome.tiff", planes, "CYX", photometric="minisblack", compression="deflate")
    np.testing.assert_array_equal(whole(path), picture)
    np.testing.assert_array_equal(whole(path, 1), picture[::2, ::2])


def test_planar_tiff(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    planes = np.ascontiguousarray(np.moveaxis(picture, 2, 0))
    path = tmp_path / "planar.tif"
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", tile=(128, 128), compression="deflate")
    np.testing.assert_array_equal(whole(path), picture)


def test_a_tile_that_was_never_written_is_white(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    tiles = [np.full((128, 128, 3), 10, np.uint8), None, np.full((128, 128, 3), 30, np.uint8), None]
    tifffile.imwrite(
        path, iter(tiles), shape=(256, 256, 3), dtype="uint8", tile=(128, 128), photometric="rgb", metadata=None
    )
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        page = tiff.pages[0]
        page.tags["TileByteCounts"].overwrite([128 * 128 * 3, 0, 128 * 128 * 3, 0])
    pixels = whole(path, backend="tifffile")
    assert [int(pixels[y, x, 0]) for y, x in ((0, 0), (0, 200), (200, 0), (200, 200))] == [10, 255, 30, 255]


@pytest.mark.parametrize(("suffix", "name"), [(".png", "PNG"), (".bmp", "BMP"), (".tif", "TIFF")])
def test_flat_pictures(tmp_path: Path, picture: NDArray[np.uint8], suffix: str, name: str) -> None:
    path = tmp_path / f"flat{suffix}"
    Image.fromarray(picture).save(path, dpi=(96, 96))
    np.testing.assert_array_equal(whole(path), picture)
    with open_slide(path) as slide:
        assert (slide.format, slide.backend) == (name, "flat")
        assert slide.file_mpp is None  # 96 dpi is about printing


def test_flat_jpeg_with_a_microscopes_resolution(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = tmp_path / "flat.jpg"
    Image.fromarray(picture).save(path, dpi=(50800, 50800))
    with open_slide(path) as slide:
        assert slide.mpp.mean == pytest.approx(0.5)
    np.testing.assert_array_equal(whole(path), np.asarray(Image.open(path)))


def test_transparency_is_glass_and_palettes_are_colours(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    rgba = np.dstack([picture, np.zeros(picture.shape[:2], np.uint8)])
    rgba[:100, :100, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    pixels = whole(tmp_path / "alpha.png")
    np.testing.assert_array_equal(pixels[:100, :100], picture[:100, :100])
    assert pixels[100:].min() == 255
    palette = Image.fromarray(picture).quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(whole(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))


def test_grey_is_shown_as_rgb(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(whole(tmp_path / "grey.png"), np.repeat(picture[..., :1], 3, axis=2))


def write_zarr(
    path: Path, picture: NDArray[np.uint8], version: int, unit: str = "micrometer", axes: str = "cyx"
) -> Path:
    """An OME-Zarr image of two levels, 0.3 um/px: 0.5 on zarr v3 (sharded) or 0.4 on zarr v2."""
    group = zarr.create_group(path, zarr_format=3 if version == 5 else 2)
    full = np.moveaxis(picture, 2, 0)
    full = full.reshape((1,) * (len(axes) - 3) + full.shape)
    for name, data in (("0", full), ("1", full[..., ::2, ::2])):
        ones = (1,) * (len(axes) - 3)
        layout: dict[str, Any] = {"chunks": (*ones, 3, 64, 64)} | (
            {"shards": (*ones, 3, 256, 256)} if version == 5 else {}
        )
        group.create_array(name, shape=data.shape, dtype="uint8", **layout)[...] = data
    kinds = {"c": "channel", "t": "time"}
    spaces = [{"name": a, "type": kinds[a]} if a in kinds else {"name": a, "type": "space", "unit": unit} for a in axes]
    scales = [
        {"path": name, "coordinateTransformations": [{"type": "scale", "scale": [1.0] * (len(axes) - 2) + [size] * 2}]}
        for name, size in (("0", 0.3), ("1", 0.6))
    ]
    multiscales = [{"axes": spaces, "datasets": scales, "version": f"0.{version}"}]
    group.attrs.update(
        {"ome": {"version": "0.5", "multiscales": multiscales}} if version == 5 else {"multiscales": multiscales}
    )
    return path


@pytest.mark.parametrize(("version", "axes"), [(5, "cyx"), (4, "cyx"), (4, "tczyx")])
def test_ome_zarr(tmp_path: Path, picture: NDArray[np.uint8], version: int, axes: str) -> None:
    if axes == "tczyx":
        path = tmp_path / "five.ome.zarr"
        write_zarr(path, picture, version, axes="tzcyx")
    else:
        path = write_zarr(tmp_path / "a.ome.zarr", picture, version)
    with open_slide(path) as slide:
        assert (slide.format, slide.backend) == ("OME-Zarr", "zarr")
        assert [level.downsample for level in slide.levels] == [1, 2]
        assert (slide.mpp.x, slide.mpp.y) == (0.3, 0.3)
        assert len(slide.fingerprint()) == 64
    np.testing.assert_array_equal(whole(path), picture)
    np.testing.assert_array_equal(whole(path, 1), picture[::2, ::2])


def test_ome_zarr_units(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    with open_slide(write_zarr(tmp_path / "mm.zarr", picture, 5, unit="millimeter")) as slide:
        assert slide.file_mpp is not None
        assert slide.file_mpp.x == pytest.approx(300)
    with open_slide(write_zarr(tmp_path / "px.zarr", picture, 5, unit="pixel")) as slide:
        assert slide.file_mpp is None
