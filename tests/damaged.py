"""Slides with tiles whose bytes are no picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tifffile

MPP = 1.3


def jpeg_slide(path: Path, pixels: Any, quality: int = 90) -> Path:
    """A tiled TIFF whose tiles are JPEG streams, 128 px."""
    density = 1e4 / MPP
    tifffile.imwrite(
        path,
        pixels,
        tile=(128, 128),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": quality},
        resolution=(density, density),
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    return path


def without_bytes(path: Path, *indices: int) -> Path:
    """Zero the bytes of some tiles of a TIFF."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0].aspage()
        places = [(page.dataoffsets[i], page.databytecounts[i]) for i in indices]
    with path.open("r+b") as stream:
        for offset, count in places:
            stream.seek(offset)
            stream.write(bytes(count))
    return path
