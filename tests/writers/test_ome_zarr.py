"""OME-Zarr as other readers see it: zarr-python for the pixels, ome-zarr-models for the metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from ome_zarr_models.common.omero import Omero
from ome_zarr_models.v05 import Image
from written import CHANNELS, HEIGHT, MPP, NOTICE, WIDTH, make_spec, marker_planes, plain_levels, rgb_picture, write

from mupd_wsi.writers import ImageSpec

PICTURES = {
    "rgb": (make_spec(origin_um=(13.0, 26.0)), rgb_picture()),
    "markers": (make_spec(channels=CHANNELS, origin_um=(13.0, 26.0)), marker_planes()),
}


@pytest.fixture(scope="module", params=list(PICTURES))
def written_zarr(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ImageSpec, NDArray[np.uint8]]:
    spec, pixels = PICTURES[request.param]
    return write(tmp_path_factory.mktemp("zarr") / "image.ome.zarr", spec, pixels), spec, pixels


def test_every_level_comes_back_bit_by_bit(written_zarr: tuple[Path, ImageSpec, NDArray[np.uint8]]) -> None:
    path, _, pixels = written_zarr
    group = zarr.open_group(path, mode="r")
    for level, meant in enumerate(plain_levels(pixels, 3)):
        array = group[str(level)]
        assert isinstance(array, zarr.Array)
        assert array.chunks == (1, 512, 512)
        assert array.shards is not None
        np.testing.assert_array_equal(np.asarray(array[:]), meant)


def test_the_metadata_is_right_by_the_model(written_zarr: tuple[Path, ImageSpec, NDArray[np.uint8]]) -> None:
    path, spec, _ = written_zarr
    group = zarr.open_group(path, mode="r")
    image = Image.from_zarr(group).ome_attributes
    assert image.version == "0.5"
    scales = image.multiscales[0]
    assert [(axis.name, axis.type, axis.unit) for axis in scales.axes] == [
        ("c", "channel", None),
        ("y", "space", "micrometer"),
        ("x", "space", "micrometer"),
    ]
    for level, dataset in enumerate(scales.datasets):
        scale, translation = dataset.coordinateTransformations
        assert scale.scale == [1, MPP * 2**level, MPP * 2**level]
        # Centres: those of 2 x 2 px lie half a pixel further in than that of the first of them.
        shift = MPP * (2**level - 1) / 2
        assert translation.translation == pytest.approx([0, 26 + shift, 13 + shift])
    channels = Omero.model_validate(image.omero).channels
    names = [channel.name for channel in spec.channels] or ["red", "green", "blue"]
    colors = [channel.color for channel in spec.channels] or [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert [channel.model_extra["label"] for channel in channels] == names
    assert [tuple(bytes.fromhex(channel.color)) for channel in channels] == colors
    windows = [(channel.window.start, channel.window.end) for channel in channels]
    assert windows == ([channel.window for channel in spec.channels] or [(0, 255)] * 3)
    ours = group.attrs["mupd_wsi"]
    assert isinstance(ours, dict)
    assert ours == dict(spec.provenance)
    assert ours["notice"] == NOTICE


def test_blank_chunks_take_no_room(tmp_path: Path) -> None:
    blank = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    path = write(tmp_path / "blank.ome.zarr", make_spec(channels=CHANNELS), blank)
    assert sum(file.stat().st_size for file in path.rglob("c/*/*/*")) < 2000
    assert not np.asarray(zarr.open_array(path / "0", mode="r")[:]).any()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 700), (700, 1), (512, 512), (513, 1024)])
def test_odd_sizes_of_zarr(tmp_path: Path, width: int, height: int) -> None:
    planes = marker_planes(2, height, width)
    path = write(tmp_path / "odd.ome.zarr", make_spec(width, height, CHANNELS[:2]), planes, [100])
    group = zarr.open_group(path, mode="r")
    levels = sorted(group.array_keys(), key=int)
    for name, meant in zip(levels, plain_levels(planes, len(levels)), strict=True):
        np.testing.assert_array_equal(np.asarray(group[name][:]), meant)  # type: ignore[index]  # an array, as above
