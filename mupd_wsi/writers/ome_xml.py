"""OME-XML (schema 2016-06) of an image that we write."""

from __future__ import annotations

import json
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

from mupd_wsi.writers.spec import Channel, ImageSpec

NAMESPACE: Final = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
PROVENANCE_NAMESPACE: Final = "mupd-wsi/provenance"
_XSI: Final = "http://www.w3.org/2001/XMLSchema-instance"


def ome_xml(spec: ImageSpec) -> str:
    """The OME-XML document of an image: size, um/px, position, channel names, colours and windows, provenance."""
    root = ET.Element(
        "OME",
        {
            "xmlns": NAMESPACE,
            "xmlns:xsi": _XSI,
            "xsi:schemaLocation": f"{NAMESPACE} {NAMESPACE}/ome.xsd",
            "UUID": f"urn:uuid:{uuid.uuid4()}",
            "Creator": f"mupd-wsi {version('mupd-wsi')}",
        },
    )
    image = ET.SubElement(root, "Image", ID="Image:0", Name=spec.name)
    ET.SubElement(image, "Description").text = str(spec.provenance.get("notice", ""))
    _add_pixels(image, spec)
    ET.SubElement(image, "AnnotationRef", ID="Annotation:0")
    _add_provenance(root, spec)
    return ET.tostring(root, encoding="unicode", xml_declaration=False)


def signed_color(color: tuple[int, int, int]) -> int:
    """OME's colour: RGBA in one signed 32-bit number."""
    value = color[0] << 24 | color[1] << 16 | color[2] << 8 | 255
    return value - (1 << 32) if value >= 1 << 31 else value


def flat_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as ``{"model.name": "mupd-mini", ...}``; what is no text is written as JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_values(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _add_pixels(image: ET.Element, spec: ImageSpec) -> None:
    pixels = ET.SubElement(
        image,
        "Pixels",
        ID="Pixels:0",
        DimensionOrder="XYCZT",
        Type="uint8",
        SignificantBits="8",
        BigEndian="false",
        Interleaved="true" if spec.is_rgb else "false",
        SizeX=str(spec.size.width),
        SizeY=str(spec.size.height),
        SizeC=str(spec.samples),
        SizeZ="1",
        SizeT="1",
        PhysicalSizeX=repr(spec.mpp),
        PhysicalSizeXUnit="µm",
        PhysicalSizeY=repr(spec.mpp),
        PhysicalSizeYUnit="µm",
    )
    if spec.is_rgb:
        ET.SubElement(pixels, "Channel", ID="Channel:0:0", Name="RGB", SamplesPerPixel="3")
    for i, channel in enumerate(spec.channels):
        color = str(signed_color(channel.color))
        ET.SubElement(pixels, "Channel", ID=f"Channel:0:{i}", Name=channel.name, SamplesPerPixel="1", Color=color)
    planes = len(spec.channels) or 1
    for plane in range(planes):
        ET.SubElement(pixels, "TiffData", IFD=str(plane), FirstC=str(plane), FirstZ="0", FirstT="0", PlaneCount="1")
    for plane in range(planes):
        x, y = spec.origin_um
        where = {"PositionX": repr(x), "PositionXUnit": "µm", "PositionY": repr(y), "PositionYUnit": "µm"}
        ET.SubElement(pixels, "Plane", {"TheC": str(plane), "TheZ": "0", "TheT": "0"} | where)


def _add_provenance(root: ET.Element, spec: ImageSpec) -> None:
    annotations = ET.SubElement(root, "StructuredAnnotations")
    annotation = ET.SubElement(annotations, "MapAnnotation", ID="Annotation:0", Namespace=PROVENANCE_NAMESPACE)
    value = ET.SubElement(annotation, "Value")
    windows = {f"window.{channel.name}": _window(channel) for channel in spec.channels}
    for key, text in (flat_values(spec.provenance) | windows).items():
        ET.SubElement(value, "M", K=key).text = text


def _window(channel: Channel) -> str:
    return f"{channel.window[0]}-{channel.window[1]}"
