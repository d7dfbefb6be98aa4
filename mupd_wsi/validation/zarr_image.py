"""An OME-Zarr for the checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from mupd_wsi.geometry import Region, Size
from mupd_wsi.validation.image import ImageFacts, UnreadableError

_DAMAGE: Final = (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError)


@contextmanager
def open_zarr_image(path: Path) -> Iterator[ZarrImage]:
    """Open an OME-Zarr folder.

    Raises:
        UnreadableError: no zarr group, no OME metadata in it, or metadata that cannot be followed.
    """
    try:
        group = zarr.open_group(path, mode="r")
    except _DAMAGE as error:
        raise UnreadableError("not-zarr", f"{path.name} is not a zarr group that can be read ({error})") from error
    try:
        image = ZarrImage(path, group)
    except _DAMAGE as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError("damaged", f"{path.name} has damaged or missing metadata ({error!r})") from error
    yield image


class ZarrImage:
    """See :class:`mupd_wsi.validation.image.OutputImage`."""

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self._path = path
        attributes: dict[str, Any] = dict(group.attrs)
        if "ome" not in attributes:
            raise UnreadableError("not-ome", f"{path.name} is a zarr group without OME 0.5 metadata")
        self._ome = attributes["ome"]
        self._multiscale = self._ome["multiscales"][0]
        names = [dataset["path"] for dataset in self._multiscale["datasets"]]
        self._arrays = [_array(group, path, name) for name in names]
        self.facts = self._read_facts(attributes.get("mupd_wsi", {}))

    def broken_tiles(self) -> Iterator[str]:
        """See :class:`OutputImage`."""
        for level, array in enumerate(self._arrays):
            samples, height, width = array.shape
            step_y, step_x = (array.shards or array.chunks)[1:]
            for y in range(0, height, step_y):
                for x in range(0, width, step_x):
                    try:
                        array[:, y : y + step_y, x : x + step_x]
                    except _DAMAGE as error:
                        yield f"the shard of {samples} channels at {x},{y} of level {level} cannot be decoded ({error})"

    def read(self, level: int, region: Region) -> NDArray[np.uint8]:
        """See :class:`OutputImage`."""
        pixels = self._arrays[level][:, region.y : region.bottom, region.x : region.right]
        return np.asarray(pixels, np.uint8)

    def format_problems(self) -> Iterator[tuple[str, str]]:
        """The metadata has to be of OME-Zarr 0.5, and each level's pixel size twice that of the level above."""
        if self._ome.get("version") != "0.5":
            yield "version", f"the OME metadata is of version {self._ome.get('version')}, expected 0.5"
        yield from self._lost_shards()
        pitches = [_scale(dataset)[1:] for dataset in self._multiscale["datasets"]]
        for level, (finer, coarser) in enumerate(pairwise(pitches), start=1):
            if not np.allclose(np.multiply(finer, 2), coarser):
                yield "scale", f"level {level} states {coarser} um/px, not twice the {finer} of the level above"

    def _lost_shards(self) -> Iterator[tuple[str, str]]:
        """Every shard that mupd-wsi writes is a file, even a blank one; zarr itself takes a lost one as blank."""
        for level, array in enumerate(self._arrays):
            if array.shards is None or not self.facts.has_provenance:
                continue
            counts = [-(-size // step) for size, step in zip(array.shape, array.shards, strict=True)]
            folder = self._path / array.basename / "c"
            lost = [p for p in np.ndindex(*counts) if not folder.joinpath(*map(str, p)).is_file()]
            if lost:
                yield "lost-shard", f"{len(lost)} shards of level {level} are missing, the first is {lost[0]}"

    def _read_facts(self, provenance: dict[str, Any]) -> ImageFacts:
        axes = self._multiscale["axes"]
        first = self._arrays[0]
        if [axis["name"] for axis in axes] != ["c", "y", "x"] or first.ndim != 3 or first.dtype != np.uint8:
            raise UnreadableError("axes", "expected 8-bit images of the axes c, y, x")
        scale = _scale(self._multiscale["datasets"][0])
        in_um = all(axis.get("unit") == "micrometer" for axis in axes[1:])
        channels = self._ome.get("omero", {}).get("channels", [])
        names = tuple(str(c.get("label", "")) for c in channels)
        return ImageFacts(
            levels=tuple(Size(a.shape[2], a.shape[1]) for a in self._arrays),
            stated_size=Size(first.shape[2], first.shape[1]),
            samples=first.shape[0],
            stated_samples=len(channels),
            is_rgb=names == ("red", "green", "blue"),
            mpp=(scale[2], scale[1]) if in_um else None,
            other_mpp=None,
            channel_names=names,
            channel_colors=tuple("color" in c for c in channels),
            notice=str(provenance.get("notice", "")),
            has_provenance="model" in provenance,
            lossless=True,
        )


def _array(group: zarr.Group, path: Path, name: str) -> zarr.Array[Any]:
    if not (path / name).resolve().is_relative_to(path.resolve()):
        raise UnreadableError("path", f"the metadata points outside the folder ({name!r})")
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise UnreadableError("no-level", f"the metadata names level {name!r}, which is not there")
    return array


def _scale(dataset: dict[str, Any]) -> list[float]:
    steps = dataset["coordinateTransformations"]
    return [float(v) for v in next(step["scale"] for step in steps if step["type"] == "scale")]
