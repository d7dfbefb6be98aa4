"""OME-Zarr 0.5 (zarr 3, sharded), streamed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from mupd_wsi.geometry import Region
from mupd_wsi.writers.cascade import TILE, PyramidCascade, level_sizes
from mupd_wsi.writers.spec import Channel, ImageSpec
from mupd_wsi.writers.temporary import output_errors, partial_name, publish

#: A shard is one strip high, so that each is written once and whole, and at most this many tiles wide.
SHARD_COLUMNS: Final = 16
ZSTD_LEVEL: Final = 3
RGB_CHANNELS: Final = (Channel("red", (255, 0, 0)), Channel("green", (0, 255, 0)), Channel("blue", (0, 0, 255)))


class OmeZarrWriter:
    """Writes one OME-Zarr; see :class:`mupd_wsi.writers.spec.SlideWriter`.

    Axes are c, y, x. All channels of a place share a shard; blank chunks are not stored.

    Memory bound: that of :class:`PyramidCascade`, ``2 * samples * width * 512`` bytes, plus the shards of one strip,
    ``samples * width * 512`` bytes and their encoding. It does not depend on the height.
    """

    def __init__(self, path: Path, spec: ImageSpec) -> None:
        self._path, self._spec = path, spec
        self._folder = partial_name(path, "part")
        sizes = level_sizes(spec.size)
        with output_errors(path):
            group = zarr.create_group(
                self._folder, zarr_format=3, overwrite=True, attributes=attributes(spec, len(sizes))
            )
            self._arrays = [self._make_array(group, level, size.height, size.width) for level, size in enumerate(sizes)]
        self._cascade = PyramidCascade(spec.size, spec.samples, self._store)
        self._open = True

    def write(self, rows: Region, pixels: NDArray[np.uint8]) -> None:
        """Append a band, see :meth:`SlideWriter.write`."""
        with output_errors(self._path):
            self._cascade.add(rows, pixels)

    def finish(self) -> Path:
        """Give the folder its name, see :meth:`SlideWriter.finish`."""
        self._cascade.require_complete()
        with output_errors(self._path):
            publish(self._folder, self._path)
        self._open = False
        return self._path

    def abort(self) -> None:
        """Delete the temporary folder, see :meth:`SlideWriter.abort`."""
        if self._open:
            self._open = False
            shutil.rmtree(self._folder, ignore_errors=True)

    def _store(self, level: int, y: int, strip: NDArray[np.uint8]) -> None:
        array = self._arrays[level]
        expected = (*array.shape[:1], strip.shape[1], *array.shape[2:])
        if strip.shape != expected:  # zarr 3.1 would accept a wrong shape without a word
            raise ValueError(f"level {level} takes strips of shape {expected}, got {strip.shape}")
        array[:, y : y + strip.shape[1], :] = strip

    def _make_array(self, group: zarr.Group, level: int, height: int, width: int) -> zarr.Array[Any]:
        samples, columns = self._spec.samples, min(SHARD_COLUMNS, -(-width // TILE))
        return group.create_array(
            str(level),
            shape=(samples, height, width),
            dtype="uint8",
            chunks=(1, TILE, TILE),
            shards=(samples, TILE, columns * TILE),
            compressors=ZstdCodec(level=ZSTD_LEVEL),
            fill_value=self._spec.background,
            dimension_names=("c", "y", "x"),
        )


def attributes(spec: ImageSpec, levels: int) -> dict[str, Any]:
    """The group's attributes: multiscales and omero (OME-NGFF 0.5), and our provenance."""
    channels = spec.channels or RGB_CHANNELS
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    datasets = [
        {"path": str(level), "coordinateTransformations": _transformations(spec, level)} for level in range(levels)
    ]
    multiscale = {"name": spec.name, "axes": axes, "datasets": datasets, "type": "2x2 mean"}
    omero = {
        "channels": [_omero_channel(c) for c in channels],
        "rdefs": {"model": "color", "defaultZ": 0, "defaultT": 0},
    }
    ome = {"version": "0.5", "multiscales": [multiscale], "omero": omero}
    return {"ome": ome, "mupd_wsi": dict(spec.provenance)}


def _transformations(spec: ImageSpec, level: int) -> list[dict[str, Any]]:
    """Scale and translation of a level. Coordinates are pixel centres, which halving moves by half a pixel."""
    pitch = spec.mpp * 2**level
    shift = (2**level - 1) / 2 * spec.mpp
    x, y = spec.origin_um
    return [
        {"type": "scale", "scale": [1.0, pitch, pitch]},
        {"type": "translation", "translation": [0.0, y + shift, x + shift]},
    ]


def _omero_channel(channel: Channel) -> dict[str, Any]:
    start, end = channel.window
    return {
        "label": channel.name,
        "color": "".join(f"{part:02X}" for part in channel.color),
        "active": True,
        "coefficient": 1.0,
        "family": "linear",
        "inverted": False,
        "window": {"min": 0, "max": 255, "start": start, "end": end},
    }
