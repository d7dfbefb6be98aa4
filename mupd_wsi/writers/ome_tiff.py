"""Pyramidal OME-TIFF, streamed.

Layout: tiles of 512 px; level 0 in IFDs, lower levels in SubIFDs (OME-TIFF 6.0 and later). RGB is JPEG in YCbCr without
chroma subsampling, for DAB and haematoxylin differ in hue at the width of a membrane; markers are one grey plane each,
deflate with the horizontal predictor, which every reader knows.

OpenSlide and the readers built on it see chained IFDs only, not SubIFDs. tifffile chains the SubIFDs to each other, so
for RGB the "next IFD" of IFD 0 is set to the first of them: both kinds of reader then see the whole pyramid.
"""

from __future__ import annotations

import os
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from mupd_wsi.geometry import Region
from mupd_wsi.writers.cascade import TILE, PyramidCascade, level_sizes
from mupd_wsi.writers.ome_xml import ome_xml
from mupd_wsi.writers.spec import ImageSpec
from mupd_wsi.writers.spool import TileSpool
from mupd_wsi.writers.temporary import output_errors, partial_name, publish

JPEG_QUALITY: Final = 90
DEFLATE_LEVEL: Final = 5
#: Classic TIFF ends at 4 GiB; tags and tables need some of that.
CLASSIC_LIMIT: Final = 3_900_000_000
CENTIMETRE_UM: Final = 10_000.0


class OmeTiffWriter:
    """Writes one OME-TIFF; see :class:`mupd_wsi.writers.spec.SlideWriter`.

    Compressed tiles go to a spool file beside the output as bands come, and are copied into the TIFF's own order at the
    end.

    Memory bound: that of :class:`PyramidCascade`, ``2 * samples * width * 512`` bytes, plus the encoded tiles of one
    strip. It does not depend on the height.
    """

    def __init__(self, path: Path, spec: ImageSpec) -> None:
        self._path, self._spec = path, spec
        self._sizes = level_sizes(spec.size)
        self._file = partial_name(path, "part")
        with output_errors(path):
            self._spool = TileSpool(
                partial_name(path, "spool"),
                self._sizes,
                planes=len(spec.channels) or 1,
                background=spec.background,
                encode=encode_rgb if spec.is_rgb else encode_plane,
            )
        self._cascade = PyramidCascade(spec.size, spec.samples, partial(self._spool.add_strip, rgb=spec.is_rgb))
        self._open = True

    def write(self, rows: Region, pixels: NDArray[np.uint8]) -> None:
        """Append a band, see :meth:`SlideWriter.write`."""
        with output_errors(self._path):
            self._cascade.add(rows, pixels)

    def finish(self) -> Path:
        """Assemble the file and give it its name, see :meth:`SlideWriter.finish`."""
        self._cascade.require_complete()
        with output_errors(self._path):
            self._assemble()
            if self._spec.is_rgb and len(self._sizes) > 1:
                chain_pyramid(self._file)
            sync(self._file)
            publish(self._file, self._path)
        self.abort()
        return self._path

    def abort(self) -> None:
        """Delete all that is temporary, see :meth:`SlideWriter.abort`."""
        if self._open:
            self._open = False
            self._spool.close()
            self._file.unlink(missing_ok=True)

    def _assemble(self) -> None:
        with tifffile.TiffWriter(self._file, bigtiff=self._spool.nbytes > CLASSIC_LIMIT, byteorder="<") as writer:
            for level, size in enumerate(self._sizes):
                planes = len(self._spec.channels)
                shape = (size.height, size.width)
                writer.write(
                    self._spool.tiles(level),
                    shape=(*shape, 3) if self._spec.is_rgb else (planes, *shape),
                    dtype=np.uint8,
                    tile=(TILE, TILE),
                    resolution=(CENTIMETRE_UM / (self._spec.mpp * 2**level),) * 2,
                    resolutionunit="CENTIMETER",
                    metadata=None,
                    contiguous=False,
                    **self._level_arguments(level),
                    **self._encoding(),
                )

    def _level_arguments(self, level: int) -> dict[str, Any]:
        if level:
            return {"subfiletype": 1}
        return {
            "subifds": len(self._sizes) - 1,
            "description": ome_xml(self._spec).encode(),
            "software": f"mupd-wsi {version('mupd-wsi')}",
        }

    def _encoding(self) -> dict[str, Any]:
        if self._spec.is_rgb:
            return {"photometric": "ycbcr", "compression": "jpeg", "subsampling": (1, 1), "planarconfig": "contig"}
        return {"photometric": "minisblack", "compression": "adobe_deflate", "predictor": True}


def encode_rgb(tile: NDArray[np.uint8]) -> bytes:
    """JPEG of an RGB tile (h, w, 3), stored as YCbCr 4:4:4."""
    encoded = imagecodecs.jpeg8_encode(
        tile, level=JPEG_QUALITY, colorspace="rgb", outcolorspace="ycbcr", subsampling="444"
    )
    return bytes(encoded)


def encode_plane(tile: NDArray[np.uint8]) -> bytes:
    """Deflate of a grey tile (h, w), horizontal differences."""
    return bytes(imagecodecs.zlib_encode(imagecodecs.delta_encode(tile, axis=-1).tobytes(), level=DEFLATE_LEVEL))


def chain_pyramid(path: Path) -> None:
    """Point IFD 0's "next IFD" at its first SubIFD, which tifffile has chained to the others."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page, form = tiff.pages[0].aspage(), tiff.tiff
        first = page.subifds[0]
        tiff.filehandle.seek(page.offset + form.tagnosize + len(page.tags) * form.tagsize)
        tiff.filehandle.write(first.to_bytes(form.offsetsize, "little"))


def sync(path: Path) -> None:
    """Wait until a file is on the disk, so that its final name never stands for less."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
