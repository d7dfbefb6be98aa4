"""An OME-TIFF for the checks."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray

from mupd_wsi.geometry import Region, Size
from mupd_wsi.validation.image import ImageFacts, UnreadableError
from mupd_wsi.writers.omexml import NAMESPACE, PROVENANCE_NAMESPACE

_OME: Final = f"{{{NAMESPACE}}}"
CENTIMETRE_UM: Final = 10_000.0
_UNITS_UM: Final = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}
_JPEG_COMPRESSIONS: Final = (6, 7, 33003, 33005, 34712)
#: What tifffile and the codecs raise on damaged files.
_DAMAGE: Final = (tifffile.TiffFileError, RuntimeError, ValueError, IndexError, TypeError, KeyError, OSError)
_DAMAGE_ALL: Final = (*_DAMAGE, struct.error, zlib.error)


@contextmanager
def open_tiff_image(path: Path) -> Iterator[TiffImage]:
    """Open an OME-TIFF.

    Raises:
        UnreadableError: no TIFF, no OME-TIFF, or its metadata cannot be parsed.
    """
    try:
        tiff = tifffile.TiffFile(path)
    except _DAMAGE_ALL as error:
        raise UnreadableError("not-tiff", f"{path.name} is not a TIFF that can be read ({error})") from error
    with tiff:
        try:
            image = TiffImage(path, tiff)
        except _DAMAGE_ALL as error:
            if isinstance(error, UnreadableError):
                raise
            raise UnreadableError("damaged", f"{path.name} is damaged ({error})") from error
        yield image


class TiffImage:
    """See :class:`mupd_wsi.validation.image.OutputImage`."""

    def __init__(self, path: Path, tiff: Any) -> None:
        self._path = path
        if not tiff.is_ome or not tiff.series:
            raise UnreadableError("not-ome", f"{path.name} is a TIFF without OME metadata")
        self._series = tiff.series[0]
        self._xml: str = tiff.ome_metadata or ""
        self.facts = self._read_facts(tiff)

    def broken_tiles(self) -> Iterator[str]:
        """See :class:`OutputImage`."""
        for level, series in enumerate(self._series.levels):
            for plane, page in enumerate(series.pages):
                yield from self._broken_of(page, f"level {level}, plane {plane}")

    def read(self, level: int, region: Region) -> NDArray[np.uint8]:
        """See :class:`OutputImage`."""
        planes = [_read_page(page, region) for page in self._series.levels[level].pages]
        return np.concatenate(planes)

    def format_problems(self) -> Iterator[tuple[str, str]]:
        """The schema; and OpenSlide, with the viewers built on it, has to see all levels of a brightfield slide."""
        yield from _schema_problems(self._xml)
        if not self.facts.is_rgb:
            return
        try:
            with openslide.OpenSlide(str(self._path)) as slide:
                seen = [Size(*size) for size in slide.level_dimensions]
        except openslide.OpenSlideError as error:
            yield "openslide", f"OpenSlide cannot open it ({error})"
            return
        if seen != list(self.facts.levels):
            yield "openslide", f"OpenSlide sees {len(seen)} of {len(self.facts.levels)} levels"

    def _broken_of(self, page: Any, where: str) -> Iterator[str]:
        file = page.parent.filehandle
        for index, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
            file.seek(offset)
            data = file.read(count)
            if not count or len(data) < count:
                yield f"tile {index} of {where} is missing or cut off"
                continue
            try:
                page.decode(data, index, jpegtables=page.keyframe.jpegtables)
            except _DAMAGE_ALL as error:
                yield f"tile {index} of {where} cannot be decoded ({error})"

    def _read_facts(self, tiff: Any) -> ImageFacts:
        pixels, annotations = _parse_ome(tiff.ome_metadata)
        page = self._series.pages[0]
        is_rgb = page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
        channels = pixels.findall(f"{_OME}Channel")
        return ImageFacts(
            levels=tuple(Size(s.pages[0].imagewidth, s.pages[0].imagelength) for s in self._series.levels),
            stated_size=Size(int(pixels.attrib["SizeX"]), int(pixels.attrib["SizeY"])),
            samples=len(self._series.pages) * page.samplesperpixel,
            stated_samples=int(pixels.attrib["SizeC"]),
            is_rgb=is_rgb,
            mpp=_stated_mpp(pixels),
            other_mpp=_tag_mpp(page),
            channel_names=tuple(c.attrib.get("Name", "") for c in channels),
            channel_colors=tuple("Color" in c.attrib for c in channels),
            notice=annotations.get("notice", ""),
            has_provenance=any(key.startswith("model.") for key in annotations),
            lossless=int(page.compression) not in _JPEG_COMPRESSIONS,
        )


def _parse_ome(text: str | None) -> tuple[ET.Element, dict[str, str]]:
    """The Pixels element of the first image, and the values of our own annotation."""
    if not text or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UnreadableError("ome-xml", "the OME-XML is missing, or defines entities, which no OME-XML needs")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise UnreadableError("ome-xml", f"the OME-XML cannot be parsed ({error})") from error
    pixels = root.find(f"{_OME}Image/{_OME}Pixels")
    if pixels is None:
        raise UnreadableError("ome-xml", "the OME-XML has no image")
    ours = root.iterfind(f".//{_OME}MapAnnotation[@Namespace='{PROVENANCE_NAMESPACE}']/{_OME}Value/{_OME}M")
    return pixels, {m.attrib.get("K", ""): m.text or "" for m in ours}


def _schema_problems(xml: str) -> Iterator[tuple[str, str]]:
    """Check against the OME schema where ome-types, which carries it, is installed: it is for development only."""
    try:
        from ome_types import validate_xml
    except ImportError:
        return
    try:
        validate_xml(xml)
    except ImportError:
        return
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        yield "schema", f"the OME-XML does not follow the schema ({reason})"


def _stated_mpp(pixels: ET.Element) -> tuple[float, float] | None:
    values = []
    for axis in "XY":
        value, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if value is None or unit not in _UNITS_UM:
            return None
        values.append(float(value) * _UNITS_UM[unit])
    return values[0], values[1]


def _tag_mpp(page: Any) -> tuple[float, float] | None:
    if "XResolution" not in page.tags or page.resolutionunit != tifffile.RESUNIT.CENTIMETER:
        return None
    x, y = page.resolution
    return (CENTIMETRE_UM / x, CENTIMETRE_UM / y) if x and y else None


def _read_page(page: Any, region: Region) -> NDArray[np.uint8]:
    """A region of one page: (samples, height, width), decoding the tiles that it touches."""
    form = page.keyframe
    width, height, columns = form.tilewidth, form.tilelength, -(-form.imagewidth // form.tilewidth)
    out = np.empty((region.height, region.width, form.samplesperpixel), np.uint8)
    for row in range(region.y // height, -(-region.bottom // height)):
        for column in range(region.x // width, -(-region.right // width)):
            index = row * columns + column
            page.parent.filehandle.seek(page.dataoffsets[index])
            data = page.parent.filehandle.read(page.databytecounts[index])
            tile = page.decode(data, index, jpegtables=form.jpegtables)[0][0]
            place = Region(column * width, row * height, width, height).intersection(region)
            if place is not None:
                y, x = place.y - row * height, place.x - column * width
                out[place.y - region.y : place.bottom - region.y, place.x - region.x : place.right - region.x] = tile[
                    y : y + place.height, x : x + place.width
                ]
    return np.moveaxis(out, 2, 0)
