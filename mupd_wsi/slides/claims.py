"""What streams of JPEG XL and WebP claim to unpack to, read from their first bytes."""

from __future__ import annotations

import struct
from typing import Final

_XL_STREAM: Final = b"\xff\x0a"
_XL_CONTAINER: Final = b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a"
#: Bits of a size by its two-bit selector (ISO/IEC 18181-1, SizeHeader), and width over height by its ratio.
_XL_BITS: Final = (9, 13, 18, 30)
_XL_RATIOS: Final = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
#: The headers looked at are shorter.
_XL_HEAD_BYTES: Final = 32


def jpegxl_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG XL stream claims; None where there is no such header.

    Raises:
        ValueError: more than one picture, which a tile never is: an animation, a preview, a size for display.
    """
    stream = _xl_stream(data)
    if stream is None:
        return None
    bits = _Bits(stream[2 : 2 + _XL_HEAD_BYTES])
    eighths = bits.take(1)
    height = _xl_side(bits, eighths)
    ratio = bits.take(3)
    if ratio:
        over, under = _XL_RATIOS[ratio - 1]
        width = height * over // under
    else:
        width = _xl_side(bits, eighths)
    plain = bits.take(1)
    if not plain and bits.take(1) and bits.take(6) >> 3:  # after three bits of orientation
        raise ValueError("a JPEG XL stream of more than one picture")
    return width, height


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a WebP file claims (RFC 9649); None where there is no such header."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        sides = int.from_bytes(data[21:25], "little")
        return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _xl_side(bits: _Bits, eighths: int) -> int:
    return 8 * (1 + bits.take(5)) if eighths else 1 + bits.take(_XL_BITS[bits.take(2)])


def _xl_stream(data: bytes) -> bytes | None:
    """The bare stream, out of its container where it is in one."""
    if data[:2] == _XL_STREAM:
        return data
    if not data.startswith(_XL_CONTAINER):
        return None
    position = 0
    while position + 16 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        head = 8
        if length == 1:
            length, head = struct.unpack(">Q", data[position + 8 : position + 16])[0], 16
        if kind in {b"jxlc", b"jxlp"}:
            start = position + head + (4 if kind == b"jxlp" else 0)
            return data[start:] if data[start : start + 2] == _XL_STREAM else None
        if length < head:
            return None
        position += length
    return None


class _Bits:
    """Numbers of some bits each, the lowest bit of the first byte first."""

    def __init__(self, data: bytes) -> None:
        self._rest = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        """The next number; zeros follow the end."""
        value = self._rest & (1 << count) - 1
        self._rest >>= count
        return value
