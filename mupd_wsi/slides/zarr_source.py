"""OME-Zarr (OME-NGFF 0.4 on zarr v2, 0.5 on zarr v3): 8-bit images of three channels, read as RGB."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray
from zarr.storage import LocalStore

from mupd_wsi.errors import SlideError, SlideLostError
from mupd_wsi.geometry import Size
from mupd_wsi.slides.guards import DAMAGE, MAX_CHUNK_BYTES, require_sane
from mupd_wsi.slides.pixelsize import um_per_unit
from mupd_wsi.slides.source import RawMpp, SourceFacts, TileLevel
from mupd_wsi.slides.zarr_guard import GuardedStore, packing_of

_MIN_BLOCK: Final = 256
_MAX_BLOCK: Final = 2048
_USUAL_BLOCK: Final = 512


class ZarrSource:
    """One OME-Zarr image.

    Attributes:
        backend: ``"zarr"``.
        facts: format, levels, um/px.
    """

    backend: Final = "zarr"

    def __init__(self, path: Path) -> None:
        """Open the image.

        Raises:
            SlideError: no OME-Zarr image, or not one of three 8-bit channels.
        """
        self._path = path
        try:
            store = GuardedStore(LocalStore(path, read_only=True))
            group = zarr.open_group(store, mode="r")
            attributes: dict[str, Any] = dict(group.attrs)
            ome = attributes.get("ome", attributes)
            scales = ome["multiscales"][0]
            self._axes = tuple(str(axis["name"]) for axis in scales["axes"])
            self._arrays: list[Any] = [group[dataset["path"]] for dataset in scales["datasets"]]
            raw_mpp = _raw_mpp(scales, self._axes)
            self._require_rgb()
            self.facts = SourceFacts("OME-Zarr", tuple(self._level(array) for array in self._arrays), raw_mpp)
            packings = {f"{array.path}/": packing_of(array, path.name) for array in self._arrays}
        except SlideError:
            raise
        except (OSError, *DAMAGE, zarr.errors.BaseZarrError) as error:
            raise SlideError(
                f"{path.name} is a folder but not an OME-Zarr image ({type(error).__name__}: {error}); "
                "give the folder that holds the 'multiscales' metadata"
            ) from error
        for level in self.facts.levels:
            require_sane(path.name, level.size.width, level.size.height, level.tile.width, level.tile.height)
        most = max(packing.most for packing in packings.values())
        if most > MAX_CHUNK_BYTES:
            raise SlideError(f"{path.name} claims chunks of {most} bytes: it is damaged or a trap")
        store.packings = packings

    def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """Decode one block; see :class:`~mupd_wsi.slides.source.PixelSource`."""
        grid = self.facts.levels[level]
        size = grid.tile_size(column, row)
        y, x = row * grid.tile.height, column * grid.tile.width
        window = {"y": slice(y, y + size.height), "x": slice(x, x + size.width), "c": slice(None)}
        try:
            pixels = np.asarray(self._arrays[level][tuple(window.get(axis, 0) for axis in self._axes)])
        except OSError as error:
            raise SlideLostError(
                f"{self._path} cannot be read any more ({error.strerror or error}); see to its disk or network"
            ) from error
        except DAMAGE as error:
            raise SlideError(
                f"{self._path.name}: block {column},{row} of level {level} cannot be decoded "
                f"({' '.join(str(error).split())[:200]}); fetch the slide again"
            ) from error
        if not self._path.is_dir():  # its chunks then read as never written
            raise SlideLostError(f"{self._path} was removed while it was read; put it back, and run again")
        kept = [axis for axis in self._axes if axis in window]
        return np.ascontiguousarray(pixels.transpose([kept.index(axis) for axis in "yxc"]))

    def close(self) -> None:
        """Nothing is held open between reads. Safe to call twice."""

    def _require_rgb(self) -> None:
        array = self._arrays[0]
        sizes = dict(zip(self._axes, array.shape, strict=True))
        extra = {axis: n for axis, n in sizes.items() if axis not in {"c", "y", "x"} and n != 1}
        if not {"c", "y", "x"} <= set(sizes) or sizes["c"] != 3 or array.dtype != np.uint8 or extra:
            shape = " x ".join(f"{axis}={n}" for axis, n in sizes.items())
            raise SlideError(f"{self._path.name} holds {array.dtype} {shape}, not 8-bit RGB (c=3); give the H&E slide")

    def _level(self, array: Any) -> TileLevel:
        sizes = dict(zip(self._axes, array.shape, strict=True))
        chunks = dict(zip(self._axes, array.chunks, strict=True))
        blocks = [chunks[axis] if _MIN_BLOCK <= chunks[axis] <= _MAX_BLOCK else _USUAL_BLOCK for axis in "xy"]
        return TileLevel(Size(sizes["x"], sizes["y"]), Size(blocks[0], blocks[1]))


def _raw_mpp(scales: Mapping[str, Any], axes: tuple[str, ...]) -> RawMpp | None:
    """um/px of level 0: the dataset's scale times the image's, in the axes' units; None without units."""
    units = {str(axis["name"]): um_per_unit(axis.get("unit")) for axis in scales["axes"]}
    both = [*scales["datasets"][0].get("coordinateTransformations", ()), *scales.get("coordinateTransformations", ())]
    steps = [transform["scale"] for transform in both if transform.get("type") == "scale"]
    x_unit, y_unit = units.get("x"), units.get("y")
    if not steps or not x_unit or not y_unit:
        return None
    factors = np.prod(np.asarray(steps, np.float64), axis=0)
    x, y = float(factors[axes.index("x")]) * x_unit, float(factors[axes.index("y")]) * y_unit
    return RawMpp(x, y, "OME-Zarr scale") if x > 0 and y > 0 else None
