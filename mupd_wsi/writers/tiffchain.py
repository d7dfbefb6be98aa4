"""One pointer that shows the pyramid of an OME-TIFF to readers that follow a TIFF's main chain of pages only."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from mupd_wsi.errors import OutputError

_SUBIFDS: Final = 330


class _Layout(NamedTuple):
    """How a TIFF spells its structure: formats of a table's entry count and of a pointer, bytes of an entry, and where
    the pointer to the first table lies."""

    entries: str
    pointer: str
    entry: int
    first: int


_CLASSIC: Final = _Layout("<H", "<I", 12, 4)
_BIG: Final = _Layout("<Q", "<Q", 20, 8)


def chain_first_subifd(path: Path) -> None:
    """Make page 0's "next page" its own first SubIFD.

    OME-TIFF keeps the smaller levels in SubIFDs, where OpenSlide does not look. Writers chain the SubIFDs of a page to
    each other, so this one pointer puts all levels into the main chain too. OME readers go by the OME-XML, which
    says that page 0 is the whole image.

    Args:
        path: a little-endian TIFF whose main chain is one page with SubIFDs.

    Raises:
        OutputError: the file is another one.
    """
    with path.open("r+b") as stream:
        version = struct.unpack("<2xH", stream.read(4))[0]
        layout = _BIG if version == 43 else _CLASSIC
        table = _at(stream, layout.first, layout.pointer)
        entries = _at(stream, table, layout.entries)
        entries_start = table + struct.calcsize(layout.entries)
        next_page = entries_start + entries * layout.entry
        if _at(stream, next_page, layout.pointer) != 0:
            raise OutputError(f"{path.name} has more than one page in its main chain; report this as a bug")
        target = _first_subifd(stream, layout, entries_start, entries)
        if target is None:
            raise OutputError(f"{path.name} has no pyramid to show; report this as a bug")
        stream.seek(next_page)
        stream.write(struct.pack(layout.pointer, target))


def _first_subifd(stream: BinaryIO, layout: _Layout, start: int, entries: int) -> int | None:
    """Where the first SubIFD lies: in the entry itself if it is the only one, else in the list that this points to."""
    pointer_bytes = struct.calcsize(layout.pointer)
    for position in range(start, start + entries * layout.entry, layout.entry):
        if _at(stream, position, "<H") == _SUBIFDS:
            count = _at(stream, position + 4, layout.pointer)
            value = _at(stream, position + 4 + pointer_bytes, layout.pointer)
            return value if count == 1 else _at(stream, value, layout.pointer)
    return None


def _at(stream: BinaryIO, position: int, number: str) -> int:
    stream.seek(position)
    return int(struct.unpack(number, stream.read(struct.calcsize(number)))[0])
