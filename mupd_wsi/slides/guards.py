"""Bounds on what a file may claim: small files that would unpack to fill the memory are refused before they do."""

from __future__ import annotations

import struct
import zlib
from typing import Final

import imagecodecs

from mupd_wsi.errors import SlideError

#: Longest side of a slide, px: half a metre of glass at 0.25 um/px.
MAX_SIDE: Final = 2**21
#: Pixels of one tile, 200 MB as RGB. Scanners use 240 to 4096 px a side.
MAX_TILE_AREA: Final = 2**26
#: Bytes of one chunk of an OME-Zarr image.
MAX_CHUNK_BYTES: Final = 2**28
#: Tiles of all levels of one slide.
MAX_TILES: Final = 2**25

#: What parsers of damaged files raise, besides errors of their own: numbers that are none, too large, or out of place.
DAMAGE: Final = (struct.error, LookupError, ValueError, TypeError, ArithmeticError, AttributeError, RuntimeError)

_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_BLOSC_VERSION: Final = 2
_GZIP_MAGIC: Final = b"\x1f\x8b"


def require_sane(name: str, width: int, height: int, tile_width: int, tile_height: int) -> None:
    """Check the sizes that a file claims.

    Args:
        name: of the slide.
        width: of a level, px.
        height: of a level, px.
        tile_width: px.
        tile_height: px.

    Raises:
        SlideError: no scanner writes such sizes.
    """
    if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE:
        raise SlideError(
            f"{name} claims {width} x {height} px, more than {MAX_SIDE} px a side: it is damaged or a trap"
        )
    if tile_width <= 0 or tile_height <= 0 or tile_width * tile_height > MAX_TILE_AREA:
        raise SlideError(f"{name} claims tiles of {tile_width} x {tile_height} px: it is damaged or a trap")
    tiles = -(-width // tile_width) * -(-height // tile_height)
    if tiles > MAX_TILES:
        raise SlideError(f"{name} claims {tiles} tiles, more than {MAX_TILES}: it is damaged or a trap")


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG stream's frame header claims; None where there is no such header.

    A stream may have no more than one; the largest is taken.
    """
    found, position = None, 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0xDA:
            break
        length, height, width = struct.unpack(">2xH1xHH", data[position : position + 9])
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            found = max(found or (0, 0), (width, height), key=lambda size: size[0] * size[1])
        position += 2 + length
    return found


def jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG 2000 code stream claims; None where there is no such header."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 24:
        return None
    right, bottom, left, top = struct.unpack(">4I", data[start + 8 : start + 24])
    return max(0, right - left), max(0, bottom - top)


def require_chunk_fits(data: bytes, most: int) -> None:
    """Check that a packed chunk does not unpack to more than a chunk has.

    Args:
        data: one chunk as stored, packed by zstd, gzip, zlib or blosc, or not at all.
        most: bytes that it may have unpacked.

    Raises:
        ValueError: it has more.
    """
    if data[:4] == _ZSTD_MAGIC:
        claimed = zstd_size(data)
        fits = claimed <= most if claimed is not None else _unpacks_zstd(data, most)
    elif data[:2] == _GZIP_MAGIC:
        fits = _unpacks_within(data, most, zlib.MAX_WBITS | 16)
    elif len(data) >= 2 and data[0] & 0x0F == 8 and int.from_bytes(data[:2]) % 31 == 0:
        fits = _unpacks_within(data, most, zlib.MAX_WBITS)
    elif len(data) >= 16 and data[0] == _BLOSC_VERSION and len(data) != most:
        fits = struct.unpack("<I", data[4:8])[0] <= most
    else:
        fits = True
    if not fits:
        raise ValueError(f"a chunk of {len(data)} bytes unpacks to more than the {most} that it should have")


def zstd_size(data: bytes) -> int | None:
    """Bytes that a zstd frame says it unpacks to (RFC 8878, 3.1.1.1); None where it does not say.

    Decoders give it no more than that.
    """
    if len(data) < 5:
        return None
    descriptor = data[4]
    single_segment = descriptor >> 5 & 1
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    length = (single_segment, 2, 4, 8)[descriptor >> 6]
    if length == 0 or len(data) < start + length:
        return None
    return int.from_bytes(data[start : start + length], "little") + (256 if length == 2 else 0)


def _unpacks_zstd(data: bytes, most: int) -> bool:
    try:
        imagecodecs.zstd_decode(data, out=most)
    except RuntimeError as error:
        return "too small" not in str(error)  # other damage is for the codec to tell
    return True


def _unpacks_within(data: bytes, most: int, bits: int) -> bool:
    stream = zlib.decompressobj(bits)
    try:
        stream.decompress(data, most + 1)
    except zlib.error:
        return True  # no zlib stream after all, or damage, which the codec tells
    return not stream.unconsumed_tail or stream.eof


def has_entities(xml: str) -> bool:
    """Whether an XML document defines entities, which no metadata needs and which may unfold without end."""
    return "<!DOCTYPE" in xml or "<!ENTITY" in xml
