"""Pyramidal output slides, streamed: OME-TIFF and OME-Zarr 0.5 behind one protocol."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from mupd_wsi.errors import UsageError
from mupd_wsi.request import FileFormat
from mupd_wsi.writers.pyramid import TILE, level_sizes
from mupd_wsi.writers.spec import Channel, ImageSpec, SlideWriter
from mupd_wsi.writers.staging import output_errors

OutputFormat = FileFormat

__all__ = ["Channel", "ImageSpec", "OutputFormat", "SlideWriter", "estimated_bytes", "open_writer"]

_ENDINGS: Final[dict[str, FileFormat]] = {".tif": "ome-tiff", ".tiff": "ome-tiff", ".zarr": "ome-zarr"}
#: Encoded bytes per sample of tissue, above what real stains need (measured on ORION's markers: deflate and zstd 0.08;
#: on H&E as an RGB picture rich in detail: JPEG 0.25, zstd 0.75).
_GREY_BYTES: Final = 0.75
_JPEG_BYTES: Final = 0.4
_ZSTD_RGB_BYTES: Final = 0.9
#: Encoded bytes of a tile of empty glass, table entries included.
_BLANK_BYTES: Final = {"jpeg": 6144, "grey": 512}
_FIXED_BYTES: Final = 2**20


def open_writer(path: Path, spec: ImageSpec, *, format: OutputFormat | None = None) -> SlideWriter:
    """Begin to write an image. Temporary files appear beside ``path``, hidden; see :class:`SlideWriter`.

    What lies at ``path`` is replaced when the new image is complete; whether it may be is the caller's business.

    Args:
        path: final name: a file for OME-TIFF, a folder for OME-Zarr.
        spec: of the image.
        format: None: by the name's ending, .tif, .tiff or .zarr, whatever is before it.

    Raises:
        UsageError: no format given, and the name has another ending.
        OutputError: the temporary files cannot be made.
    """
    from mupd_wsi.writers.streamed import StreamedWriter, TileStore

    chosen = format or _format_of(path)
    with output_errors(path):
        store: TileStore
        if chosen == "ome-tiff":
            from mupd_wsi.writers.tiff import TiffStore

            store = TiffStore(path, spec)
        else:
            from mupd_wsi.writers.ngff import ZarrStore

            store = ZarrStore(path, spec)
        return StreamedWriter(path, spec, store)


def estimated_bytes(spec: ImageSpec, tissue_fraction: float, format: OutputFormat) -> int:
    """Disk that writing an image needs at its peak, temporary files included; more than real stains take.

    Args:
        spec: of the image.
        tissue_fraction: of the image's area, 0-1; the rest is background.
        format: of the output.
    """
    interleaved = spec.is_rgb and format == "ome-tiff"
    per_sample = _JPEG_BYTES if interleaved else _ZSTD_RGB_BYTES if spec.is_rgb else _GREY_BYTES
    pages = 1 if interleaved else spec.samples
    total = float(_FIXED_BYTES)
    for size in level_sizes(spec.size):
        tiles = pages * math.ceil(size.width / TILE) * math.ceil(size.height / TILE)
        total += size.area * spec.samples * tissue_fraction * per_sample
        total += tiles * _BLANK_BYTES["jpeg" if interleaved else "grey"]
    return math.ceil(total) * (2 if format == "ome-tiff" else 1)


def _format_of(path: Path) -> FileFormat:
    name = path.name.lower()
    for ending, chosen in _ENDINGS.items():
        if name.endswith(ending):
            return chosen
    raise UsageError(f"output name {path.name!r} has no known ending; end it in .ome.tiff or .ome.zarr")
