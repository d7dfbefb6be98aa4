"""Images of named channels (multiplex immunofluorescence): OME-TIFF and OME-Zarr, real or virtual, at any um/px."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from xml.etree import ElementTree

import numpy as np
import tifffile
import zarr
import zarr.errors
from numpy.typing import NDArray

from mupd_wsi.errors import PixelSizeError, RegionError, SlideError
from mupd_wsi.geometry import Mpp, Region, Size, output_size
from mupd_wsi.slides.pixelsize import from_ome_xml, um_per_unit
from mupd_wsi.slides.resample import make_taps, resample_planes
from mupd_wsi.slides.source import RawMpp

#: Of our own outputs, the annotation that says which intensities grey levels stand for.
_OURS: Final = "mupd-wsi/provenance"
_DAMAGE: Final = (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, zarr.errors.BaseZarrError)
_SPATIAL: Final = {"c", "y", "x"}


@dataclass(frozen=True, slots=True)
class ChannelFacts:
    """What a file says of its channels.

    Attributes:
        names: of the channels, in order; empty text where one has none.
        axes: of the stored arrays, such as ``"cyx"``.
        raw_mpp: um per pixel of the largest level, or None.
        origin_um: where the image's corner lies on the slide (x, y).
        windows: by channel name, the intensity that grey 255 stands for; only outputs of this program say so.
    """

    names: tuple[str, ...]
    axes: str
    raw_mpp: RawMpp | None
    origin_um: tuple[float, float]
    windows: Mapping[str, float]


class ChannelImage:
    """An open image of channels, 8 or 16 bit or float. Close it, or use it in a ``with`` statement.

    Memory bound: of :meth:`read`, the source pixels of the region in all channels as float32, twice.

    Attributes:
        path: the file or folder.
        names: of the channels, in order.
        size: pixels of the largest level.
        mpp: um per pixel of the largest level.
        origin_um: where its corner lies on the slide (x, y), um; not (0, 0) for a stained region of interest.
        gains: float32 (C,), intensity per stored level: outputs of this program state it, else 1.
        is_8bit: whether levels are 0-255.
    """

    def __init__(self, path: Path, facts: ChannelFacts, levels: list[Any], mpp: float | None, file: Any = None) -> None:
        """Check what was opened; see :func:`open_channels`."""
        self.path, self.names, self.origin_um = path, facts.names, facts.origin_um
        self._axes, self._levels, self._file = facts.axes, levels, file
        sizes = dict(zip(facts.axes, levels[0].shape, strict=True))
        extra = {axis: n for axis, n in sizes.items() if axis not in _SPATIAL and n != 1}
        if extra or not {"y", "x"} <= set(sizes):
            raise SlideError(
                f"{path.name} has axes {facts.axes} of {levels[0].shape}; expected channels, y and x alone"
            )
        if sizes.get("c", 1) != len(facts.names):
            raise SlideError(f"{path.name} holds {sizes.get('c', 1)} channels and names {len(facts.names)} of them")
        self.size = Size(sizes["x"], sizes["y"])
        self.mpp = _checked_mpp(path, facts.raw_mpp, mpp)
        self.is_8bit = levels[0].dtype == np.uint8
        # A channel "CD8a SD" is told in grey levels of "CD8a".
        shown = (facts.windows.get(name, facts.windows.get(name.removesuffix(" SD"), 255.0)) for name in facts.names)
        self.gains = np.array([high / 255.0 for high in shown], np.float32)

    def read(self, region: Region, mpp: float, channels: tuple[int, ...] | None = None) -> NDArray[np.float32]:
        """Stored levels at any resolution, resampled as slides are: a pixel depends on its place alone.

        Args:
            region: output pixels of ``mpp`` um, inside :func:`mupd_wsi.geometry.output_size` of the image.
            mpp: um per output pixel.
            channels: which, in this order; None means all.

        Returns:
            float32 (C, region.height, region.width); times :attr:`gains` they are intensities.

        Raises:
            RegionError: the region reaches outside the image.
            SlideError: the file's pixels cannot be read.
        """
        whole = output_size(self.size, self.mpp, mpp)
        if not Region(0, 0, whole.width, whole.height).contains(region):
            raise RegionError(f"region {region} (x,y,width,height) reaches outside the {whole} of {self.path.name}")
        level, down_x, down_y = self._best_level(mpp)
        sizes = dict(zip(self._axes, level.shape, strict=True))
        columns = make_taps(region.x, region.width, mpp / self.mpp.x / down_x, sizes["x"])
        rows = make_taps(region.y, region.height, mpp / self.mpp.y / down_y, sizes["y"])
        window = {"y": slice(rows.start, rows.stop), "x": slice(columns.start, columns.stop)}
        chosen = range(len(self.names)) if channels is None else channels
        return np.concatenate([resample_planes(self._stored(level, window, c), rows, columns) for c in chosen])

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stored(self, level: Any, window: dict[str, slice], channel: int) -> NDArray[Any]:
        place = tuple((window | {"c": slice(channel, channel + 1)}).get(axis, 0) for axis in self._axes)
        try:
            pixels = np.asarray(level[place])
        except _DAMAGE as error:
            reason = " ".join(str(error).split())[:200]
            raise SlideError(
                f"{self.path.name}: channel {channel} cannot be decoded ({reason}); fetch it again"
            ) from error
        kept = [axis for axis in self._axes if axis in _SPATIAL]
        ordered = pixels.transpose([kept.index(axis) for axis in "cyx" if axis in kept])
        return ordered if "c" in kept else ordered[None]

    def _best_level(self, mpp: float) -> tuple[Any, float, float]:
        """The coarsest level that is as fine as ``mpp``, with its downsamples."""
        best = (self._levels[0], 1.0, 1.0)
        for level in self._levels[1:]:
            sizes = dict(zip(self._axes, level.shape, strict=True))
            down_x, down_y = (float(round(a / b)) for a, b in zip(self.size_xy, (sizes["x"], sizes["y"]), strict=True))
            if self.mpp.x * down_x <= mpp * 1.001 and self.mpp.y * down_y <= mpp * 1.001:
                best = (level, down_x, down_y)
        return best

    @property
    def size_xy(self) -> tuple[int, int]:
        """Width and height of the largest level."""
        return self.size.width, self.size.height


def open_channels(path: str | Path, *, mpp: float | None = None) -> ChannelImage:
    """Open an OME-TIFF or OME-Zarr of channels, ours or any other program's.

    Args:
        path: the file, or the folder of an OME-Zarr image.
        mpp: um per pixel, instead of what the file states.

    Raises:
        SlideError: missing, or no image of named channels.
        PixelSizeError: no um/px is stated, or it is absurd.
    """
    place = Path(path)
    if not place.exists():
        raise SlideError(f"{place} does not exist; check the path")
    try:
        return _open_zarr(place, mpp) if place.is_dir() else _open_tiff(place, mpp)
    except tifffile.TiffFileError as error:
        raise SlideError(f"{place} is no TIFF that can be read ({error}); give an OME-TIFF or OME-Zarr") from error
    except _DAMAGE as error:
        if isinstance(error, (SlideError, PixelSizeError)):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise SlideError(f"{place} is no image of named channels ({reason}); give an OME-TIFF or OME-Zarr") from error


def stated_origin(path: Path) -> tuple[float, float]:
    """Where an output of this program lies on its slide, um (x, y); (0, 0) for all that was not stained as a part."""
    try:
        if path.is_dir():
            return open_channels(path, mpp=1.0).origin_um
        with tifffile.TiffFile(path) as tiff:
            return ome_xml_facts(tiff.ome_metadata or "", "").origin_um if tiff.is_ome else (0.0, 0.0)
    except (tifffile.TiffFileError, SlideError, ElementTree.ParseError):
        return 0.0, 0.0


def _open_tiff(path: Path, mpp: float | None) -> ChannelImage:
    tiff = tifffile.TiffFile(path)
    try:
        if not tiff.is_ome:
            raise SlideError(f"{path.name} is a TIFF without OME metadata, which names the channels; give an OME-TIFF")
        series = tiff.series[0]
        facts = ome_xml_facts(tiff.ome_metadata or "", series.axes.lower())
        levels = [zarr.open_array(series.aszarr(level=i), mode="r") for i in range(len(series.levels))]
        return ChannelImage(path, facts, levels, mpp, tiff)
    except BaseException:
        tiff.close()
        raise


def ome_xml_facts(xml: str, axes: str) -> ChannelFacts:
    """Channels, um/px, place and our own display windows out of the first image of an OME-XML document."""
    root = ElementTree.fromstring(xml)
    pixels = root.find(".//{*}Pixels")
    if pixels is None:
        raise SlideError("the OME-XML has no image")
    names = tuple(channel.get("Name", "") for channel in pixels.findall("{*}Channel"))
    plane = pixels.find("{*}Plane")
    origin = (0.0, 0.0)
    if plane is not None:
        x, y = (
            float(plane.get(f"Position{a}", 0)) * (um_per_unit(plane.get(f"Position{a}Unit")) or 0) for a in ("X", "Y")
        )
        origin = (x, y)
    ours = root.iterfind(f".//{{*}}MapAnnotation[@Namespace='{_OURS}']/{{*}}Value/{{*}}M")
    pairs = {m.get("K", ""): m.text or "" for m in ours}
    prefix = "display_window."
    windows = {k.removeprefix(prefix): float(json.loads(v)[1]) for k, v in pairs.items() if k.startswith(prefix)}
    return ChannelFacts(names, axes, from_ome_xml(xml)[0], origin if windows else (0.0, 0.0), windows)


def _open_zarr(path: Path, mpp: float | None) -> ChannelImage:
    attributes: dict[str, Any] = dict(zarr.open_group(path, mode="r").attrs)
    ome = attributes.get("ome", attributes)
    scales = ome["multiscales"][0]
    axes = "".join(str(axis["name"]).lower() for axis in scales["axes"])
    group = zarr.open_group(path, mode="r")
    levels: list[Any] = [group[dataset["path"]] for dataset in scales["datasets"]]
    count = dict(zip(axes, levels[0].shape, strict=True)).get("c", 1)
    described = ome.get("omero", attributes.get("omero", {})).get("channels", [{}] * count)
    names = tuple(str(channel.get("label", "")) for channel in described)
    units = {str(axis["name"]).lower(): um_per_unit(axis.get("unit")) for axis in scales["axes"]}
    step, shift = _zarr_places(scales["datasets"][0], axes)
    shown = attributes.get("mupd_wsi", {}).get("display_window", {})
    windows = {name: float(window[1]) for name, window in shown.items()}
    raw = None
    if step and units.get("x") and units.get("y"):
        raw = RawMpp(step["x"] * (units["x"] or 1), step["y"] * (units["y"] or 1), "OME-Zarr scale")
    origin = (shift.get("x", 0.0), shift.get("y", 0.0)) if windows else (0.0, 0.0)
    return ChannelImage(path, ChannelFacts(names, axes, raw, origin, windows), levels, mpp)


def _zarr_places(dataset: Mapping[str, Any], axes: str) -> tuple[dict[str, float], dict[str, float]]:
    """Scale and translation of a level, by axis; empty where none is stated."""
    found: dict[str, dict[str, float]] = {"scale": {}, "translation": {}}
    for transform in dataset.get("coordinateTransformations", ()):
        if transform.get("type") in found:
            found[transform["type"]] = dict(zip(axes, map(float, transform[transform["type"]]), strict=True))
    return found["scale"], found["translation"]


def _checked_mpp(path: Path, raw: RawMpp | None, given: float | None) -> Mpp:
    if given is not None:
        return Mpp(given, given, "the user (--mpp)")
    if raw is None:
        raise PixelSizeError(f"{path.name} states no pixel size; write it into the file's metadata, or give it")
    return Mpp(raw.x, raw.y, raw.source)
