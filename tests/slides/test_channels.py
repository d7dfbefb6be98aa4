"""Images of named channels: other readers agree, any um/px, our own stains know their place and intensities."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from mupd_wsi.errors import PixelSizeError, RegionError, SlideError
from mupd_wsi.geometry import Region, Size
from mupd_wsi.slides.channels import open_channels
from mupd_wsi.writers import Channel, ImageSpec, open_writer

NAMES = ("Hoechst", "CD8a", "Pan-CK")


def _planes(dtype=np.uint8, height=700, width=900):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (3, height, width)).astype(dtype)


def _ours(path, planes, provenance):
    channels = tuple(Channel(name, (255, 0, 0)) for name in NAMES)
    spec = ImageSpec("x", Size(planes.shape[2], planes.shape[1]), 1.3, channels, (130.0, 260.0), provenance)
    writer = open_writer(path, spec)
    writer.write(Region(0, 0, spec.size.width, spec.size.height), planes)
    return writer.finish()


def _foreign(path, planes, **options):
    metadata = {"axes": "CYX", "Channel": {"Name": list(NAMES)}} | options
    tifffile.imwrite(path, planes, ome=True, tile=(256, 256), metadata=metadata)
    return path


@pytest.mark.parametrize("name", ["x.ome.tiff", "x.ome.zarr"])
def test_our_own_stains_come_back_with_place_and_intensities(tmp_path, name):
    planes = _planes()
    shown = {"display_window": {"CD8a": [2.0, 51.0]}, "notice": "virtual"}
    with open_channels(_ours(tmp_path / name, planes, shown)) as image:
        assert image.names == NAMES
        assert (image.size, image.mpp.mean, image.is_8bit) == (Size(900, 700), 1.3, True)
        assert image.origin_um == pytest.approx((130, 260))
        assert image.gains.tolist() == pytest.approx([1, 0.2, 1])
        region = Region(100, 50, 300, 200)
        np.testing.assert_array_equal(image.read(region, 1.3), planes[:, 50:250, 100:400])
        np.testing.assert_array_equal(image.read(region, 1.3, (2, 0)), planes[[2, 0], 50:250, 100:400])


def test_stains_of_other_programs_keep_all_16_bits_and_have_no_place(tmp_path):
    planes = _planes(np.uint16)
    path = _foreign(tmp_path / "x.ome.tiff", planes, PhysicalSizeX=0.325, PhysicalSizeY=0.325)
    with open_channels(path) as image:
        assert image.names == NAMES
        assert not image.is_8bit
        assert image.origin_um == (0, 0)
        assert image.mpp.mean == pytest.approx(0.325)
        read = image.read(Region(10, 20, 100, 50), 1.3)
    means = planes[:, 80:280, 40:440].reshape(3, 50, 4, 100, 4).astype(float).mean(axis=(2, 4))
    np.testing.assert_allclose(read, means, rtol=1e-5)


def test_a_lower_level_is_read_where_it_is_fine_enough(tmp_path):
    path = _ours(tmp_path / "x.ome.tiff", _planes(), {"notice": "x"})
    lower = tifffile.imread(path, level=1)
    with open_channels(path) as image:
        np.testing.assert_array_equal(image.read(Region(0, 0, 450, 350), 2.6), lower)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_foreign, PixelSizeError, "states no pixel size"),
        (lambda p, a: tifffile.imwrite(p, a, photometric="minisblack", ome=False), SlideError, "OME metadata"),
        (lambda p, _: p.write_bytes(b"II*\0junk"), SlideError, "OME-TIFF"),
        (lambda p, _: p.mkdir(), SlideError, "no image of named channels"),
        (lambda _p, _a: None, SlideError, "does not exist"),
    ],
)
def test_what_is_no_image_of_channels_is_refused(tmp_path, make, error, message):
    path = tmp_path / "x.ome.tiff"
    make(path, _planes())
    with pytest.raises(error, match=message):
        open_channels(path)


def test_regions_outside_are_refused(tmp_path):
    with (
        open_channels(_ours(tmp_path / "x.ome.tiff", _planes(), {"notice": "x"})) as image,
        pytest.raises(RegionError, match="reaches outside"),
    ):
        image.read(Region(800, 0, 200, 10), 1.3)
