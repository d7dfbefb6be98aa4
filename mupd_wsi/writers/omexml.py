"""OME-XML (schema 2016-06) of one image, and the words by which every output says what it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any, Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from mupd_wsi.request import NOTICE
from mupd_wsi.writers.spec import ImageSpec

NAMESPACE: Final = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_SCHEMA: Final = f"{NAMESPACE} {NAMESPACE}/ome.xsd"
_XSI: Final = "http://www.w3.org/2001/XMLSchema-instance"
PROVENANCE_NAMESPACE: Final = "mupd-wsi/provenance"
DISPLAY_NAMESPACE: Final = "mupd-wsi/display"
UM: Final = "\N{MICRO SIGN}m"
#: Control characters and halves of surrogate pairs: XML cannot hold them, or only as character references.
_NOT_PLAIN: Final = re.compile("[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@cache
def software() -> str:
    """Name and version of this package."""
    return f"mupd-wsi {version('mupd-wsi')}"


def ome_xml(spec: ImageSpec) -> bytes:
    """The whole document, UTF-8. Not ASCII with character references: Bio-Formats drops these, and then the unit.

    The schema has no place for display ranges, so these go into a map annotation; what viewers can read, they find:
    size, physical size, channel names and colours, position.
    """
    root = Element(
        "OME",
        {
            "xmlns": NAMESPACE,
            "xmlns:xsi": _XSI,
            "xsi:schemaLocation": _SCHEMA,
            "Creator": software(),
        },
    )
    annotations = list(_annotations(spec))
    image = SubElement(root, "Image", {"ID": "Image:0", "Name": _clean(spec.name)})
    SubElement(image, "Description").text = _clean(_description(spec))
    _add_pixels(image, spec)
    for number in range(len(annotations)):
        SubElement(image, "AnnotationRef", {"ID": f"Annotation:{number}"})
    holder = SubElement(root, "StructuredAnnotations")
    for number, (namespace, pairs) in enumerate(annotations):
        one = SubElement(holder, "MapAnnotation", {"ID": f"Annotation:{number}", "Namespace": namespace})
        value = SubElement(one, "Value")
        for key, text in pairs.items():
            SubElement(value, "M", {"K": _clean(key)}).text = _clean(text)
    return ElementTree.tostring(root, encoding="unicode").encode()


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as text pairs: ``{"model": {"seed": 1}}`` gives ``("model.seed", "1")``; all but text is JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _description(spec: ImageSpec) -> str:
    rendering = spec.provenance.get("rendering")
    return f"{spec.provenance.get('notice', NOTICE)}" + (f"; {rendering}" if rendering else "")


def _annotations(spec: ImageSpec) -> Iterator[tuple[str, dict[str, str]]]:
    yield PROVENANCE_NAMESPACE, {"notice": NOTICE} | dict(flattened(spec.provenance))
    if spec.channels:
        yield DISPLAY_NAMESPACE, {c.name: f"{c.window[0]}-{c.window[1]}" for c in spec.channels}


def _add_pixels(image: Element, spec: ImageSpec) -> None:
    pixels = SubElement(
        image,
        "Pixels",
        {
            "ID": "Pixels:0",
            "DimensionOrder": "XYCZT",
            "Type": "uint8",
            "SignificantBits": "8",
            "Interleaved": "true" if spec.is_rgb else "false",
            "BigEndian": "false",
            "SizeX": str(spec.size.width),
            "SizeY": str(spec.size.height),
            "SizeC": str(spec.samples),
            "SizeZ": "1",
            "SizeT": "1",
            "PhysicalSizeX": repr(float(spec.mpp)),
            "PhysicalSizeXUnit": UM,
            "PhysicalSizeY": repr(float(spec.mpp)),
            "PhysicalSizeYUnit": UM,
        },
    )
    if spec.is_rgb:
        SubElement(pixels, "Channel", {"ID": "Channel:0:0", "Name": "RGB", "SamplesPerPixel": "3"})
    for number, channel in enumerate(spec.channels):
        identity = {"ID": f"Channel:0:{number}", "Name": _clean(channel.name), "SamplesPerPixel": "1"}
        SubElement(pixels, "Channel", identity | {"Color": str(signed_rgba(channel.color))})
    planes = max(1, len(spec.channels))
    for page in range(planes):
        at = {"FirstC": str(page), "FirstZ": "0", "FirstT": "0", "IFD": str(page), "PlaneCount": "1"}
        SubElement(pixels, "TiffData", at)
    x, y = (repr(float(position)) for position in spec.origin_um)
    position = {"PositionX": x, "PositionXUnit": UM, "PositionY": y, "PositionYUnit": UM}
    for page in range(planes):
        SubElement(pixels, "Plane", {"TheC": str(page), "TheZ": "0", "TheT": "0"} | position)


def signed_rgba(color: tuple[int, int, int]) -> int:
    """A colour as OME-XML wants it: red, green, blue and full opacity in one signed number of 32 bits."""
    red, green, blue = color
    number = red << 24 | green << 16 | blue << 8 | 255
    return number - 2**32 if number >= 2**31 else number


def _clean(text: str) -> str:
    return _NOT_PLAIN.sub(" ", text)
