"""Files made to harm: small ones that claim or unpack to more than a memory holds, and ways out of a folder."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import resource
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import imagecodecs
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from mupd_wsi.engine.destination import target_label
from mupd_wsi.errors import BundleError, SlideError
from mupd_wsi.geometry import Region
from mupd_wsi.model.bundle import find_bundle, read_info, read_weights
from mupd_wsi.slides import open_slide
from mupd_wsi.slides.claims import jpegxl_size, webp_size
from mupd_wsi.slides.guards import jpeg2000_size, jpeg_size, require_chunk_fits, zstd_size

#: None of these files is larger than this, nor takes more memory than that.
SMALL = 4 * 2**20
BOUND = 700 * 2**20


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Address space beyond what there is now is limited: whoever takes a gigabyte, fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BOUND, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused(path: Path, words: str) -> None:
    files = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
    assert sum(file.stat().st_size for file in files) < SMALL
    with bounded_memory(), pytest.raises(SlideError, match=words), open_slide(path, mpp=0.5) as slide:
        slide.read_level(0, Region(0, 0, 64, 64))


def test_a_png_that_claims_a_huge_picture(tmp_path: Path) -> None:
    header = struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(2_000_000))), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in parts:
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "bomb.png").write_bytes(content)
    refused(tmp_path / "bomb.png", "megapixels")


def patched(path: Path, code: int, value: int, page: int = 0) -> Path:
    """Overwrite the value of a TIFF tag."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[page].aspage().tags[code].overwrite(value)
    return path


@pytest.fixture
def tiled(tmp_path: Path) -> Path:
    path = tmp_path / "a.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="jpeg", metadata=None)
    return path


@pytest.mark.parametrize(("code", "value"), [(256, 2**31 - 1), (257, 2**31 - 1), (322, 2**20), (323, 2**20)])
def test_a_tiff_that_claims_a_huge_size(code: int, value: int, tiled: Path) -> None:
    refused(patched(tiled, code, value), "trap|truncated|damaged|damage|promised|claims")


@pytest.mark.parametrize(("code", "value"), [(277, 60_000), (258, 64)])
def test_a_flat_tiff_that_claims_a_huge_depth(code: int, value: int, tmp_path: Path) -> None:
    path = tmp_path / "flat.tif"
    tifffile.imwrite(path, np.zeros((4000, 4000), np.uint8), compression="deflate", metadata=None)
    refused(patched(path, code, value), "claims|pixels|not a TIFF|truncated")


def test_a_tile_that_claims_a_huge_jpeg(tiled: Path) -> None:
    with tifffile.TiffFile(tiled) as tiff:
        offset, count = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    content = bytearray(tiled.read_bytes())
    tile = bytes(content[offset : offset + count])
    assert jpeg_size(tile) == (256, 256)
    frame = tile.index(b"\xff\xc0")
    content[offset + frame + 5 : offset + frame + 9] = struct.pack(">HH", 65_000, 65_000)
    tiled.write_bytes(content)
    refused(tiled, "tile 0,0 of level 0 claims 65000 x 65000 px")


def test_sizes_that_jpeg_2000_streams_claim() -> None:
    picture = np.zeros((30, 50, 3), np.uint8)
    for container in ("j2k", "jp2"):
        assert jpeg2000_size(bytes(imagecodecs.jpeg2k_encode(picture, codecformat=container))) == (50, 30)
    assert jpeg2000_size(b"no such stream") is None


@pytest.mark.parametrize("side", [8, 250, 256, 257, 300, 1000, 9000])
@pytest.mark.parametrize("other", [1, 40, 256, 600])
def test_sizes_that_jpeg_xl_streams_claim(side: int, other: int) -> None:
    for height, width in ((side, other), (other, side), (side, side), (side, 2 * side)):
        if height * width > 1_000_000:
            continue
        for container in (True, False):
            picture = np.zeros((height, width, 3), np.uint8)
            stream = bytes(imagecodecs.jpegxl_encode(picture, effort=1, usecontainer=container))
            assert jpegxl_size(stream) == (width, height)
    assert jpegxl_size(b"no such stream") is None
    assert jpegxl_size(b"") is None


def test_jpeg_xl_streams_of_many_pictures_are_refused() -> None:
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="more than one picture"):
        jpegxl_size(bytes(imagecodecs.jpegxl_encode(frames)))


@pytest.mark.parametrize("lossless", [True, False])
def test_sizes_that_webp_files_claim(lossless: bool) -> None:
    for height, width in ((30, 50), (256, 256), (1, 4000)):
        for samples in (3, 4):
            picture = np.random.default_rng(0).integers(0, 256, (height, width, samples), np.uint8)
            assert webp_size(bytes(imagecodecs.webp_encode(picture, lossless=lossless))) == (width, height)
    assert webp_size(b"no such file") is None


def replace_only_tile(path: Path, content: bytes) -> None:
    """Put other bytes at the end of a TIFF of one tile, and let its tags name them."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page, end = tiff.pages[0].aspage(), path.stat().st_size
        page.tags[324].overwrite(end)
        page.tags[325].overwrite(len(content))
    with path.open("ab") as stream:
        stream.write(content)


@pytest.mark.parametrize("compression", ["jpegxl", "webp"])
def test_a_tile_that_claims_to_be_huge(compression: str, tmp_path: Path) -> None:
    """A whole and valid stream, of one colour, many times as large as the tile it stands for."""
    path = tmp_path / "a.tif"
    picture = np.zeros((256, 256, 3), np.uint8)
    tifffile.imwrite(path, picture, tile=(256, 256), photometric="rgb", compression=compression, metadata=None)
    with open_slide(path) as slide:
        assert slide.backend == "tifffile"
        slide.read_level(0, Region(0, 0, 64, 64))
    shape = (8500, 8500, 3)
    encode = imagecodecs.jpegxl_encode if compression == "jpegxl" else imagecodecs.webp_encode
    bomb = bytes(encode(np.zeros(shape, np.uint8), **({"effort": 1} if compression == "jpegxl" else {"level": 1})))
    replace_only_tile(path, bomb)
    refused(path, "claims 8500 x 8500 px")


def test_a_tile_that_unpacks_to_more_than_a_tile(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        np.zeros((256, 256, 3), np.uint8),
        tile=(256, 256),
        photometric="rgb",
        compression="deflate",
        metadata=None,
    )
    bomb = zlib.compress(bytes(1_000_000_000), 9)
    replace_only_tile(path, bomb)
    refused(path, "cannot be decoded")


# ---------------------------------------------------------------------------------------------- OME-Zarr


def zarr_image(path: Path, version: int = 3, dataset: str = "0", **options: Any) -> Path:
    group = zarr.create_group(path, zarr_format=version)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 256, 256), np.uint8)
    options = {"chunks": (3, 256, 256)} | options
    array = group.create_array("0", shape=pixels.shape, dtype="uint8", **options)
    array[...] = pixels
    scales = [
        {
            "axes": [{"name": name, "type": "space"} for name in "cyx"],
            "datasets": [{"path": dataset}],
        }
    ]
    if version == 3:
        group.attrs["ome"] = {"version": "0.5", "multiscales": scales}
    else:
        group.attrs["multiscales"] = scales
    return path


def zstd_bomb(count: int) -> bytes:
    return bytes(imagecodecs.zstd_encode(bytes(count), 3))


@pytest.mark.parametrize(
    ("version", "packer"),
    [(3, "zstd"), (3, "gzip"), (2, "zstd"), (2, "gzip"), (2, "zlib"), (2, "blosc")],
)
def test_a_chunk_that_unpacks_to_more_than_a_chunk(version: int, packer: str, tmp_path: Path) -> None:
    huge = 1_000_000_000
    if version == 3:
        codecs: dict[str, Any] = {"zstd": zarr.codecs.ZstdCodec(), "gzip": zarr.codecs.GzipCodec()}
    else:
        codecs = {
            "zstd": numcodecs.Zstd(),
            "gzip": numcodecs.GZip(),
            "zlib": numcodecs.Zlib(),
            "blosc": numcodecs.Blosc(),
        }
    bombs: dict[str, Callable[[], bytes]] = {
        "zstd": lambda: zstd_bomb(huge),
        "gzip": lambda: gzip.compress(bytes(huge), 9),
        "zlib": lambda: zlib.compress(bytes(huge), 9),
        "blosc": lambda: bytes(numcodecs.Blosc(clevel=9).encode(bytes(huge))),
    }
    path = zarr_image(tmp_path / "a.zarr", version, compressors=codecs[packer])
    with open_slide(path) as slide:
        slide.read_level(0, Region(0, 0, 64, 64))
    chunk = path / "0" / ("c/0/0/0" if version == 3 else "0.0.0")
    assert chunk.is_file()
    chunk.write_bytes(bombs[packer]()[: SMALL - 100_000])
    refused(path, "unpacks to more than")


@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("place", [0, 3])
def test_a_shard_with_a_trap_in_any_of_its_chunks(place: int, location: str, tmp_path: Path) -> None:
    """The shard is read at once, as its window covers it."""
    layout = {"shape": (3, 256, 256), "index_location": location}
    path = zarr_image(tmp_path / "a.zarr", chunks=(3, 128, 128), shards=layout, compressors=zarr.codecs.ZstdCodec())
    with open_slide(path, mpp=0.5) as slide:
        slide.read_level(0, Region(0, 0, 64, 64))
    shard = path / "0" / "c" / "0" / "0" / "0"
    content, size = shard.read_bytes(), 4 * 16
    index = content[: size + 4] if location == "start" else content[-size - 4 :]
    places = np.frombuffer(index[:size], "<u8").reshape(4, 2).copy()
    bomb = zstd_bomb(1_000_000_000)
    places[place] = (len(content), len(bomb)) if location == "start" else (len(content) - size - 4, len(bomb))
    fresh = places.tobytes() + int(google_crc32c.value(places.tobytes())).to_bytes(4, "little")
    shard.write_bytes(
        fresh + content[size + 4 :] + bomb if location == "start" else content[: -size - 4] + bomb + fresh
    )
    refused(path, "unpacks to more than")


@pytest.mark.parametrize(
    "compressors",
    [
        (zarr.codecs.ZstdCodec(), zarr.codecs.GzipCodec()),
        (zarr.codecs.ShardingCodec(chunk_shape=(3, 64, 64)), None),
    ],
)
def test_chunks_that_are_packed_twice_are_refused(compressors: tuple[Any, Any], tmp_path: Path) -> None:
    """What the inner packing unpacks to is not known before the outer one is unpacked."""
    if compressors[1] is None:
        inner = zarr.codecs.ShardingCodec(chunk_shape=(3, 128, 128), codecs=[compressors[0]])
        path = zarr_image(tmp_path / "a.zarr", serializer=inner, compressors=None)
    else:
        path = zarr_image(tmp_path / "a.zarr", compressors=compressors)
    refused(path, "packed twice")


def test_a_frame_that_does_not_say_its_size() -> None:
    """As streaming writers make them: unpacked no further than a chunk goes."""
    frame = zstd_bomb(5_000_000)
    assert zstd_size(frame) == 5_000_000
    assert zstd_size(zstd_bomb(100)) == 100
    assert zstd_size(zstd_bomb(300)) == 300
    # RFC 8878: descriptor without content size, a window of 8 MiB, and the same blocks
    start = 4 + 1 + (1 - (frame[4] >> 5 & 1)) + (frame[4] >> 5 & 1, 2, 4, 8)[frame[4] >> 6]
    silent = frame[:4] + bytes([frame[4] & 0x04, 0x68]) + frame[start:]
    assert zstd_size(silent) is None
    require_chunk_fits(silent, 5_000_000)
    with pytest.raises(ValueError, match="unpacks to more"):
        require_chunk_fits(silent, 4_999_999)


def test_huge_chunks_are_refused(tmp_path: Path) -> None:
    path = zarr_image(tmp_path / "a.zarr")
    file = path / "0" / "zarr.json"
    facts = json.loads(file.read_text())
    facts["shape"] = [3, 200_000, 200_000]
    facts["chunk_grid"]["configuration"]["chunk_shape"] = [3, 200_000, 200_000]
    file.write_text(json.dumps(facts))
    refused(path, "chunks of 120000000000 bytes")


@pytest.mark.parametrize(
    "dataset", ["../other.zarr/0", "../../other.zarr/0", "0/../../other.zarr/0", "/../other.zarr/0"]
)
def test_no_way_out_of_a_zarr(dataset: str, tmp_path: Path) -> None:
    zarr_image(tmp_path / "other.zarr")
    refused(zarr_image(tmp_path / "a.zarr", dataset=dataset), "OME-Zarr")


# ---------------------------------------------------------------------------------------------- words


LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 20}">' for n in range(9))
    + ']><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
    'DimensionOrder="XYCZT" Type="uint8" SizeX="256" SizeY="256" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="&j;">'
    '<Channel ID="Channel:0" SamplesPerPixel="3"/><TiffData/></Pixels></Image></OME>'
)


def test_entities_that_unfold_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tiff"
    pixels = np.zeros((256, 256, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", description=LAUGHS.encode(), metadata=None)
    refused(path, "entities")


def test_target_names_do_not_leave_the_folder() -> None:
    assert target_label(["../../etc/passwd"], 18) == "etc-passwd"
    assert target_label(["..", "/"], 18) == "target+target"


class Exploit:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploited").touch, ())


def test_pickles_in_bundles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    bundle = tmp_path / "bundle"
    shutil.copytree(find_bundle("mupd-mini"), bundle)
    weights, card = bundle / "model.safetensors", bundle / "model.json"
    for save in (lambda: weights.write_bytes(pickle.dumps(Exploit())), lambda: torch.save(Exploit(), weights)):
        save()
        facts = json.loads(card.read_text())
        facts["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        card.write_text(json.dumps(facts))
        with pytest.raises(BundleError, match="not a safetensors file"):
            read_weights(bundle, read_info(bundle))
    assert not (tmp_path / "exploited").exists()


def test_a_good_picture_is_still_read_under_the_bound(tmp_path: Path) -> None:
    Image.fromarray(np.full((100, 100, 3), 7, np.uint8)).save(tmp_path / "a.png")
    with bounded_memory(), open_slide(tmp_path / "a.png") as slide:
        assert (slide.read_level(0, Region(0, 0, 100, 100)) == 7).all()
