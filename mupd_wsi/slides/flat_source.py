"""Flat pictures (PNG, JPEG, BMP, untiled TIFF): the whole picture is held in memory, so its size is limited."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mupd_wsi.errors import SlideError
from mupd_wsi.geometry import Size
from mupd_wsi.slides import pixelsize
from mupd_wsi.slides.guards import DAMAGE
from mupd_wsi.slides.source import RawMpp, SourceFacts, TileLevel, on_white
from mupd_wsi.slides.tiff_source import flat_tiff_mpp

#: 0.5 GB as RGB; also where Pillow refuses a picture as a decompression bomb.
MAX_FLAT_PIXELS: Final = 178_956_970

_BLOCK: Final = 1024

#: Pillow modes that are a picture of 8 bits a sample. Others (16-bit, float) would lose what they hold.
_MODES: Final = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


class FlatSource:
    """One picture without a pyramid, decoded when it is opened.

    Memory bound: 3 bytes a pixel of at most 179 million, twice that while it is being opened.

    Attributes:
        backend: ``"flat"``.
        facts: format, one level, um/px.
    """

    backend: Final = "flat"

    def __init__(self, path: Path) -> None:
        """Decode the picture. Its pixels stay as stored: a rotation noted in EXIF is not applied.

        Raises:
            SlideError: not a picture, damaged, too large, or not 8 bits a sample.
        """
        with path.open("rb") as stream:
            is_tiff = stream.read(4) in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}
        name, self._pixels, raw_mpp = _read_tiff(path) if is_tiff else _read_picture(path)
        height, width = self._pixels.shape[:2]
        self.facts = SourceFacts(name, (TileLevel(Size(width, height), Size(_BLOCK, _BLOCK)),), raw_mpp)

    def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """A view of one block; see :class:`~mupd_wsi.slides.source.PixelSource`."""
        size = self.facts.levels[level].tile_size(column, row)
        y, x = row * _BLOCK, column * _BLOCK
        return self._pixels[y : y + size.height, x : x + size.width]

    def close(self) -> None:
        """Forget the picture. Safe to call twice."""
        self._pixels = np.empty((0, 0, 3), np.uint8)


def _read_picture(path: Path) -> tuple[str, NDArray[np.uint8], RawMpp | None]:
    """Format, RGB pixels (h, w, 3) and um/px by way of Pillow."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is Pillow's error
            image = Image.open(path)
        with image:
            if image.mode not in _MODES:
                raise SlideError(f"{path.name} holds {image.mode} pixels; convert it to 8-bit RGB")
            dpi = image.info.get("dpi")
            raw = pixelsize.from_dpi((float(dpi[0]), float(dpi[1])) if dpi else None)
            return str(image.format), on_white(np.asarray(image.convert("RGBA"))), raw
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except UnidentifiedImageError as error:
        raise SlideError(f"{path.name} is not an image in any format known here; give a slide file") from error
    except SlideError:
        raise
    except (OSError, SyntaxError, *DAMAGE) as error:  # Pillow reports damage by any of these
        raise SlideError(f"{path.name} is damaged or cut short ({error}); fetch it again") from error


def _read_tiff(path: Path) -> tuple[str, NDArray[np.uint8], RawMpp | None]:
    """The same of a TIFF's first page by way of tifffile, which knows more of TIFF than Pillow."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0].aspage()
            if page.imagewidth * page.imagelength > MAX_FLAT_PIXELS:
                raise _too_large(path)
            if page.nbytes > 4 * MAX_FLAT_PIXELS:
                raise SlideError(f"{path.name} claims {page.nbytes} bytes of pixels; convert it to 8-bit RGB")
            end = max((o + c for o, c in zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)
            if not 0 < end <= path.stat().st_size:
                raise SlideError(f"{path.name} is truncated: its pixels reach to byte {end}; copy it again")
            pixels, axes = page.asarray(), page.axes
            raw = flat_tiff_mpp(page)
    except SlideError:
        raise
    except (tifffile.TiffFileError, *DAMAGE, OSError) as error:
        raise SlideError(f"{path.name} is not a TIFF that can be read ({error}); is it whole?") from error
    if pixels.dtype != np.uint8 or axes not in {"YX", "YXS", "SYX"}:
        raise SlideError(f"{path.name} holds {pixels.dtype} pixels ({axes}); convert it to 8-bit RGB")
    if axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    return "TIFF", _as_rgb(pixels, path), raw


def _as_rgb(pixels: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """Grey, RGB or RGBA as RGB (h, w, 3)."""
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if pixels.ndim != 3:
        raise SlideError(f"{path.name} is damaged: its pixels have {pixels.ndim} dimension(s); fetch it again")
    if pixels.shape[2] == 4:
        return on_white(pixels)
    if pixels.shape[2] != 3:
        raise SlideError(f"{path.name} has {pixels.shape[2]} samples a pixel; convert it to 8-bit RGB")
    return np.ascontiguousarray(pixels)


def _too_large(path: Path) -> SlideError:
    return SlideError(
        f"{path.name} is larger than {MAX_FLAT_PIXELS / 1e6:.0f} megapixels without a pyramid; convert it first, "
        "for example with: vips tiffsave IN OUT.tif --tile --pyramid --bigtiff --compression jpeg"
    )
