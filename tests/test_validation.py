"""``validate_slide``: what is right passes, and every kind of damage is named, never a stack trace."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from mupd_wsi.errors import SlideError
from mupd_wsi.geometry import Region, Size
from mupd_wsi.validation import validate_slide
from mupd_wsi.writers import Channel, ImageSpec, open_writer

CHANNELS = (Channel("Hoechst", (64, 96, 255)), Channel("CD8a", (0, 255, 0)))
PROVENANCE = {"notice": "virtual stain, research use only", "model": {"name": "mupd-mini"}}


def make(path: Path, spec: ImageSpec) -> Path:
    """A textured image with a blank right side."""
    size = spec.size
    y, x = np.mgrid[: size.height, : size.width]
    texture = (120 + 60 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)
    pixels = np.stack([texture] * spec.samples)
    pixels[:, :, 700:] = spec.background
    writer = open_writer(path, spec)
    writer.write(Region(0, 0, size.width, size.height), pixels)
    return writer.finish()


def spec_of(channels: tuple[Channel, ...]) -> ImageSpec:
    return ImageSpec("image", Size(1300, 1100), 1.3, channels, (0.0, 0.0), PROVENANCE)


KINDS: dict[str, tuple[str, tuple[Channel, ...]]] = {
    "ihc.ome.tiff": ("ome-tiff", ()),
    "mif.ome.tiff": ("ome-tiff", CHANNELS),
    "ihc.ome.zarr": ("ome-zarr", ()),
    "mif.ome.zarr": ("ome-zarr", CHANNELS),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    for name, (_, channels) in KINDS.items():
        make(folder / name, spec_of(channels))
    return folder


@pytest.fixture
def copy(originals: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an image that a test may damage."""

    def make_copy(name: str) -> Path:
        if (originals / name).is_dir():
            return Path(shutil.copytree(originals / name, tmp_path / name))
        return Path(shutil.copy(originals / name, tmp_path / name))

    return make_copy


def codes(path: Path) -> set[str]:
    return {finding.code for finding in validate_slide(path).findings}


@pytest.mark.parametrize("name", KINDS)
def test_what_we_write_is_right(originals: Path, name: str) -> None:
    report = validate_slide(originals / name)
    assert report.findings == ()
    assert report.ok
    json.dumps(asdict(report))


def test_a_missing_slide_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="does not exist"):
        validate_slide(tmp_path / "missing.ome.tiff")


@pytest.mark.parametrize("content", [b"", b"no slide at all", b"II*\0\x08\0\0\0", b"II+\0" + b"\xff" * 40])
def test_what_is_no_image_is_not_right(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text.ome.tiff").write_bytes(content)
    assert not validate_slide(tmp_path / "text.ome.tiff").ok
    (tmp_path / "folder.ome.zarr").mkdir()
    (tmp_path / "folder.ome.zarr" / "zarr.json").write_bytes(content)
    assert not validate_slide(tmp_path / "folder.ome.zarr").ok


def test_a_tiff_without_metadata_is_not_ome(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "plain.tif", np.zeros((20, 30), np.uint8), metadata=None)
    assert codes(tmp_path / "plain.tif") == {"not-ome"}


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("name", ["ihc.ome.tiff", "mif.ome.tiff"])
def test_a_truncated_tiff(copy: Callable[[str], Path], name: str, kept: float) -> None:
    path = copy(name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert not validate_slide(path).ok


def test_a_broken_tile(copy: Callable[[str], Path]) -> None:
    path = copy("mif.ome.tiff")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[1].aspage().dataoffsets[0]
    with path.open("r+b") as stream:
        stream.seek(offset + 40)
        stream.write(b"\xff" * 40)
    assert codes(path) == {"broken-tile"}


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ('SizeX="1300"', 'SizeX="1301"', "size"),
        ('PhysicalSizeX="1.3"', 'PhysicalSizeX="1.4"', "um-px-differs"),
        ('PhysicalSizeX="1.3"', 'PhysicalSizeX="130"', "absurd-um-px"),
        ("PhysicalSizeX", "PhysicalSizeQ", "no-um-px"),
        ('Name="CD8a"', 'Name="    "', "no-name"),
        ('Name="Hoechst"', 'Name="CD8a"   ', "same-name"),
        ("research use only", "for clinical use.", "no-notice"),
        ('K="model.name"', 'K="nodel.name"', "no-provenance"),
        ("<OME ", "<OME<", "ome-xml"),
        ("SignificantBits", "SignificantBots", "schema"),
    ],
)
def test_tampered_metadata(copy: Callable[[str], Path], old: str, new: str, code: str) -> None:
    path = copy("mif.ome.tiff")
    with tifffile.TiffFile(path) as tiff:
        xml = tiff.pages[0].aspage().description
    assert old in xml
    tifffile.tiffcomment(path, xml.replace(old, new).encode())
    assert code in codes(path) | ({"not-ome"} if code == "ome-xml" else set())
    assert not validate_slide(path).ok


def test_entities_are_refused(copy: Callable[[str], Path]) -> None:
    path = copy("mif.ome.tiff")
    with tifffile.TiffFile(path) as tiff:
        xml = tiff.pages[0].aspage().description
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    tifffile.tiffcomment(path, (bomb + xml.replace("Hoechst", "&b;")).encode())
    assert not validate_slide(path).ok


@pytest.mark.parametrize("name", ["ihc.ome.tiff", "mif.ome.zarr"])
def test_a_level_that_shows_something_else(copy: Callable[[str], Path], name: str) -> None:
    path = copy(name)
    if path.is_dir():
        array: Any = zarr.open_array(path / "1", mode="r+")
        array[:] = 255 - np.asarray(array[:])
    else:
        with tifffile.TiffFile(path) as tiff:
            first, second = tiff.series[0].levels[1].pages[0].aspage(), tiff.series[0].levels[0].pages[0].aspage()
            table = first.tags["TileOffsets"].valueoffset, first.tags["TileByteCounts"].valueoffset
            blank = second.dataoffsets[2], second.databytecounts[2]
        with path.open("r+b") as stream:
            for place, value in zip(table, blank, strict=True):
                stream.seek(place)
                stream.write(struct.pack("<I", value))
    assert codes(path) == {"pyramid"}


def test_openslide_has_to_see_all_levels(copy: Callable[[str], Path]) -> None:
    path = copy("ihc.ome.tiff")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0].aspage()
        place = page.offset + tiff.tiff.tagnosize + len(page.tags) * tiff.tiff.tagsize
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"\0" * 4)
    assert codes(path) == {"openslide"}


def change_ome(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the attributes of an OME-Zarr group."""
    document = json.loads((path / "zarr.json").read_text())
    change(document["attributes"])
    (path / "zarr.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda a: a.pop("ome"), "not-ome"),
        (lambda a: a["ome"].update(version="0.4"), "version"),
        (lambda a: a["ome"].pop("multiscales"), "damaged"),
        (lambda a: a["ome"]["multiscales"][0]["axes"].reverse(), "axes"),
        (lambda a: a["ome"]["multiscales"][0]["axes"][1].pop("unit"), "no-um-px"),
        (lambda a: a["ome"]["multiscales"][0]["datasets"].pop(1), "levels"),
        (lambda a: a["ome"]["multiscales"][0]["datasets"][1].update(path="7"), "no-level"),
        (lambda a: a["ome"]["multiscales"][0]["datasets"][1].update(path="../../x"), "path"),
        (lambda a: a["ome"]["omero"]["channels"].pop(), "channel-count"),
        (lambda a: a["ome"]["omero"]["channels"][0].pop("color"), "no-color"),
        (lambda a: a.pop("mupd_wsi"), "no-notice"),
    ],
)
def test_tampered_zarr(copy: Callable[[str], Path], change: Callable[[dict[str, Any]], None], code: str) -> None:
    path = copy("mif.ome.zarr")
    change_ome(path, change)
    assert code in codes(path)


def test_damaged_and_lost_shards(copy: Callable[[str], Path]) -> None:
    path = copy("mif.ome.zarr")
    shard = next(path.glob("0/c/0/0/0"))
    content = bytearray(shard.read_bytes())
    content[50] ^= 1  # one bit: the chunk's own checksum notices
    shard.write_bytes(content)
    assert codes(path) == {"broken-tile"}
    shard.write_bytes(content[: len(content) // 2])
    assert codes(path) == {"broken-tile"}
    shard.unlink()
    assert "lost-shard" in codes(path)


def test_a_stopped_run_is_pointed_out(copy: Callable[[str], Path]) -> None:
    path = copy("mif.ome.tiff")
    (path.parent / ".mif.mupd-part").mkdir()
    assert codes(path) == {"unfinished"}


def test_leftovers_are_pointed_out(copy: Callable[[str], Path]) -> None:
    path = copy("mif.ome.tiff")
    writer = open_writer(path, replace(spec_of(CHANNELS), name="again"))
    report = validate_slide(path)
    writer.abort()
    assert report.ok
    assert {finding.code for finding in report.findings} == {"leftover"}
    assert codes(path) == set()
