"""Pixel sizes and magnifications out of the metadata of many formats; others judge whether they are plausible."""

from __future__ import annotations

import math
import re
from typing import Final
from xml.etree import ElementTree

from mupd_wsi.slides.guards import has_entities
from mupd_wsi.slides.source import RawMpp

#: um in one unit: OME-XML's symbols (schema 2016-06, UnitsLength) and UDUNITS-2 names (OME-NGFF).
_UM_PER_UNIT: Final[dict[str, float]] = {
    "pm": 1e-6,
    "picometer": 1e-6,
    "å": 1e-4,
    "angstrom": 1e-4,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "um": 1.0,
    "micron": 1.0,
    "micrometer": 1.0,
    "mm": 1e3,
    "millimeter": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "in": 25400.0,
    "inch": 25400.0,
    "m": 1e6,
    "meter": 1e6,
}

#: TIFF 6.0, ResolutionUnit: 2 is inch, 3 is centimetre; 1 is none, which says nothing.
_UM_PER_TIFF_UNIT: Final = {2: 25400.0, 3: 10000.0}

#: Below this, dots per inch are about printing (72, 96, 300), not about a microscope: 2000 dpi is 12.7 um/px.
_MIN_MICROSCOPE_DPI: Final = 2000.0


def um_per_unit(unit: str | None) -> float | None:
    """um in one named unit of length, or None for unknown ones such as ``"pixel"``."""
    folded = (unit or "").strip().casefold().replace("µ", "u").replace("μ", "u")
    return _UM_PER_UNIT.get(folded.replace("metre", "meter"))


def from_aperio(description: str) -> tuple[RawMpp | None, float | None]:
    """um/px and magnification out of an Aperio ImageDescription, ``"...|AppMag = 20|MPP = 0.4990|..."``."""
    pairs = dict(re.findall(r"\|\s*([^|=]+?)\s*=\s*([^|]*)", description))
    value = _positive(pairs.get("MPP"))
    return (RawMpp(value, value, "aperio.MPP") if value else None), _positive(pairs.get("AppMag"))


def from_ome_xml(xml: str) -> tuple[RawMpp | None, float | None]:
    """um/px and magnification of the first image of an OME-XML document; (None, None) if it cannot be parsed, or
    defines entities."""
    if has_entities(xml):
        return None, None
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None, None
    pixels = root.find(".//{*}Pixels")
    objective = root.find(".//{*}Objective")
    power = _positive(objective.get("NominalMagnification")) if objective is not None else None
    if pixels is None:
        return None, power
    sizes = []
    for axis in ("X", "Y"):
        value = _positive(pixels.get(f"PhysicalSize{axis}"))
        unit = um_per_unit(pixels.get(f"PhysicalSize{axis}Unit", "um"))
        sizes.append(value * unit if value and unit else None)
    x, y = sizes
    return (RawMpp(x, y, "OME-XML PhysicalSize") if x and y else None), power


def from_tiff_resolution(x: tuple[int, int] | None, y: tuple[int, int] | None, unit: int | None) -> RawMpp | None:
    """um/px out of TIFF's XResolution, YResolution (fractions, pixels per unit), ResolutionUnit (inch by default)."""
    um = _UM_PER_TIFF_UNIT.get(2 if unit is None else unit)
    if um is None or x is None or y is None or not all((*x, *y)):
        return None
    return RawMpp(um * x[1] / x[0], um * y[1] / y[0], "TIFF resolution tags")


def from_dpi(dpi: tuple[float, float] | None) -> RawMpp | None:
    """um/px out of the dots per inch of a flat picture; printing resolutions are no pixel size and give None."""
    if dpi is None or not all(math.isfinite(value) and value >= _MIN_MICROSCOPE_DPI for value in dpi):
        return None
    return RawMpp(25400 / dpi[0], 25400 / dpi[1], "the picture's dots per inch")


def drop_print_resolution(raw: RawMpp | None) -> RawMpp | None:
    """The same rule for a value that is already in um/px."""
    return from_dpi((25400 / raw.x, 25400 / raw.y)) and raw if raw else None


def from_openslide(properties: dict[str, str]) -> tuple[RawMpp | None, float | None]:
    """um/px and magnification out of OpenSlide's properties."""
    x, y = _positive(properties.get("openslide.mpp-x")), _positive(properties.get("openslide.mpp-y"))
    power = _positive(properties.get("openslide.objective-power"))
    return (RawMpp(x, y, "openslide.mpp-x/y") if x and y else None), power


def _positive(text: str | None) -> float | None:
    """A positive finite number, or None for anything else that a file may hold."""
    try:
        value = float((text or "").replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
