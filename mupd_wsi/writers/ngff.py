"""OME-Zarr 0.5 (zarr v3): one shard a row of tiles, written straight from the stream of encoded tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import google_crc32c
import imagecodecs
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from mupd_wsi.geometry import Size
from mupd_wsi.request import NOTICE
from mupd_wsi.writers.omexml import software
from mupd_wsi.writers.pyramid import TILE, Pixels, TileFormat, TilePlace, level_sizes
from mupd_wsi.writers.spec import ImageSpec
from mupd_wsi.writers.staging import hidden_sibling, move_folder, remove

NGFF_VERSION: Final = "0.5"
#: On real marker images level 1 is 1.5 times as fast as level 3 and its files are 1 % larger.
ZSTD_LEVEL: Final = 1
#: In a shard's index, for offset and length alike: the chunk is not there, its pixels have the fill value.
MISSING: Final = 2**64 - 1
RGB_CHANNELS: Final = (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))


def encode_chunk(tile: Pixels) -> bytes:
    """A chunk as the array's codecs say: one zstd frame, then the CRC-32C of it, little-endian.

    Args:
        tile: uint8 (1, side, side).
    """
    frame = bytes(imagecodecs.zstd_encode(tile.tobytes(), ZSTD_LEVEL))
    return frame + _crc32c(frame)


def shard_index(places: Sequence[tuple[int, int]]) -> bytes:
    """What ends a shard.

    Args:
        places: offset and length of every chunk, in the order channel, column; twice :data:`MISSING` where there is
            none.
    """
    index = np.array(places, "<u8").tobytes()
    return index + _crc32c(index)


def shard_path(folder: Path, level: int, row: int) -> Path:
    """The file of one row of chunks.

    Args:
        folder: of the image.
        level: 0 is the image itself.
        row: of chunks, from the top.
    """
    return folder / str(level) / "c" / "0" / str(row) / "0"


class ZarrStore:
    """The arrays of one OME-Zarr image; see :class:`~mupd_wsi.writers.streamed.TileStore`.

    A shard is one row of chunks of all channels at full width. It is complete as soon as its last tile has come, so
    none is held in memory, and several writers of one image would never share a file. zarr-python makes the metadata;
    the shards' simple format (chunks, then an index of them) is written here, many times as fast. A row that is all
    background has a shard as well, with an empty index: so a lost shard can be told from an empty one.

    Memory bound: the index of one shard, two numbers a tile.

    Args:
        path: final name.
        spec: of the image.
        folder: where the image lies until it is complete, on the same disk, and goes on where it is there already; None
            takes a new hidden one beside ``path``.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, path: Path, spec: ImageSpec, folder: Path | None = None) -> None:
        self._path: Final = path
        self._samples: Final = spec.samples
        self.tiles: Final = TileFormat(encode=encode_chunk, planes=1, background=spec.background)
        self._sizes: Final = level_sizes(spec.size)
        self._columns: Final = [-(-size.width // TILE) for size in self._sizes]
        self._partial_path = folder or hidden_sibling(path, "partial")
        self._shard: BinaryIO | None = None
        self._index: list[tuple[int, int]] = []
        self._end = 0
        if folder is None or not folder.exists():
            self._partial_path.mkdir()
            _make_arrays(self._partial_path, spec, self._sizes)

    @property
    def folder(self) -> Path:
        """Where the image lies until it is complete."""
        return self._partial_path

    def take(self, place: TilePlace, encoded: bytes | None) -> None:
        """Append a chunk to its shard; the row's last chunk closes it."""
        if self._shard is None:
            self._shard = self._open_shard(place)
        if encoded is None:
            self._index.append((MISSING, MISSING))
        else:
            self._shard.write(encoded)
            self._index.append((self._end, len(encoded)))
            self._end += len(encoded)
        if len(self._index) == self._samples * self._columns[place.level]:
            self._close_shard(self._shard)

    def complete(self) -> None:
        """Rename the folder."""
        move_folder(self._partial_path, self._path)

    def discard(self) -> None:
        """Delete the partial folder."""
        self.release()
        remove(self._partial_path)

    def release(self) -> None:
        """Close what is open, and leave the partial folder."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None

    def _open_shard(self, place: TilePlace) -> BinaryIO:
        file = shard_path(self._partial_path, place.level, place.row)
        file.parent.mkdir(parents=True)
        return file.open("xb")

    def _close_shard(self, shard: BinaryIO) -> None:
        shard.write(shard_index(self._index))
        shard.close()
        self._shard, self._index, self._end = None, [], 0


def _make_arrays(folder: Path, spec: ImageSpec, sizes: tuple[Size, ...]) -> None:
    """Write the metadata of the group and of an empty array a level."""
    attributes = {"ome": ome_metadata(spec, sizes), "mupd_wsi": {"notice": NOTICE} | dict(spec.provenance)}
    group = zarr.create_group(store=folder, zarr_format=3, attributes=attributes)
    for level, size in enumerate(sizes):
        group.create_array(
            str(level),
            shape=(spec.samples, size.height, size.width),
            dtype="uint8",
            chunks=(1, TILE, TILE),
            shards=(spec.samples, TILE, -(-size.width // TILE) * TILE),
            compressors=(ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()),
            fill_value=spec.background,
            dimension_names=("c", "y", "x"),
        )


def ome_metadata(spec: ImageSpec, sizes: tuple[Size, ...]) -> dict[str, Any]:
    """The ``ome`` attribute, OME-NGFF 0.5.

    A level's translation is where the centre of its first pixel lies, measured from the centre of the slide's first
    output pixel: what NGFF readers assume. So a coarser level is shifted by half of what its pixels are larger.

    Args:
        spec: of the image.
        sizes: of its levels.
    """
    x, y = spec.origin_um
    datasets = []
    for level in range(len(sizes)):
        step, shift = spec.mpp * 2**level, spec.mpp * (2**level - 1) / 2
        transforms = [
            {"type": "scale", "scale": [1.0, step, step]},
            {"type": "translation", "translation": [0.0, y + shift, x + shift]},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    multiscale = {
        "name": spec.name,
        "axes": [
            {"name": "c", "type": "channel"},
            {"name": "y", "type": "space", "unit": "micrometer"},
            {"name": "x", "type": "space", "unit": "micrometer"},
        ],
        "datasets": datasets,
        "type": "mean",
        "metadata": {"description": "each level is the rounded mean of 2 x 2 px of the one above", "by": software()},
    }
    return {"version": NGFF_VERSION, "multiscales": [multiscale], "omero": _omero(spec)}


def _omero(spec: ImageSpec) -> dict[str, Any]:
    if spec.is_rgb:
        shown = [(name, color, (0, 255)) for name, color in RGB_CHANNELS]
    else:
        shown = [(c.name, "{:02X}{:02X}{:02X}".format(*c.color), c.window) for c in spec.channels]
    channels = [
        {
            "label": name,
            "color": color,
            "active": True,
            "coefficient": 1,
            "family": "linear",
            "inverted": False,
            "window": {"min": 0, "max": 255, "start": window[0], "end": window[1]},
        }
        for name, color, window in shown
    ]
    return {"name": spec.name, "channels": channels, "rdefs": {"model": "color", "defaultZ": 0, "defaultT": 0}}


def _crc32c(content: bytes) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(4, "little")
