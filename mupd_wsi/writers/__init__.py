"""Slides out: OME-TIFF and OME-Zarr behind one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from mupd_wsi.errors import UsageError
from mupd_wsi.writers.ome_tiff import OmeTiffWriter
from mupd_wsi.writers.ome_zarr import OmeZarrWriter
from mupd_wsi.writers.spec import Channel, ImageSpec, SlideWriter

__all__ = ["Channel", "ImageSpec", "OutputFormat", "SlideWriter", "estimated_bytes", "open_writer"]

OutputFormat = Literal["ome-tiff", "ome-zarr"]

#: Bytes a pixel and sample of tissue, compressed: above what EAS2-HE1 and the ORION slide measured.
RGB_BYTES: Final = 0.45
PLANE_BYTES: Final = 0.75
BLANK_BYTES: Final = 0.005
PYRAMID: Final = 4 / 3
FIXED_BYTES: Final = 1_000_000


def open_writer(path: Path, spec: ImageSpec, *, format: OutputFormat | None = None) -> SlideWriter:
    """Start writing an image.

    Args:
        path: final name; nothing lies there until the image is complete.
        spec: the image's facts.
        format: None takes it from the name's ending.

    Raises:
        UsageError: the ending is of no known format.
        OutputError: the folder cannot be written to.
    """
    chosen = format or _format_of(path)
    return OmeZarrWriter(path, spec) if chosen == "ome-zarr" else OmeTiffWriter(path, spec)


def estimated_bytes(spec: ImageSpec, tissue_fraction: float, format: OutputFormat) -> int:
    """Disk that writing an image takes at its height, temporary files included: on the high side.

    Args:
        spec: the image's facts.
        tissue_fraction: share of it that is not background, 0-1.
        format: OME-TIFF needs twice its size for a while, since its tiles are spooled before they are put in order.
    """
    each = RGB_BYTES if spec.is_rgb else PLANE_BYTES
    compressed = spec.size.area * spec.samples * PYRAMID * (tissue_fraction * each + BLANK_BYTES)
    return FIXED_BYTES + int(compressed * (2 if format == "ome-tiff" else 1))


def _format_of(path: Path) -> OutputFormat:
    name = path.name.lower()
    if name.endswith((".tif", ".tiff")):
        return "ome-tiff"
    if name.endswith(".zarr"):
        return "ome-zarr"
    raise UsageError(f"output name {path.name!r} has no known ending; end it in .ome.tiff or .ome.zarr")
