"""Finished tiles on disk, one record each, appended as they come: what a killed run has done is not done again.

A log is a head and records. The head binds it to the request it was made for. A record is a fixed header (kind, tile,
positivity, flags, length of the payload, CRC-32C of all that) and the payload: the tile's rendered core as one LZ4
block. A record that was torn by a crash, or never reached the disk, ends the log: what comes before it holds.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import google_crc32c
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from mupd_wsi.errors import OutputError
from mupd_wsi.layout import as_picture, as_planes, lies_by_pixel
from mupd_wsi.writers.spec import ImageSpec

#: Before the key in a log's head; the number grows when the format changes.
MAGIC: Final = b"mupdlog2"
#: Kind, index, positivity, flags, bytes of the payload; then the CRC-32C of these and the payload.
_FIELDS: Final = struct.Struct("<4sQdII")
_CRC: Final = struct.Struct("<I")
_TILE: Final = b"tile"
_NOTE: Final = b"note"
#: What a tile's flags say; where its pixels lie one by one, the payload holds (h, w, samples) in place of planes.
_ON_DAMAGE: Final = 1
_BY_PIXEL: Final = 2
#: LZ4's acceleration. At 8 it took a third of the time of zstd's fastest on H&E and on marker images, and up to half as
#: much disk again; at 32 it takes three fifths to four fifths of that time, and a sixth to a quarter more disk.
ACCELERATION: Final = 32
#: Bytes of a record per sample of tissue, above what real stains need.
BYTES_PER_SAMPLE: Final = 0.9


@dataclass(frozen=True, slots=True)
class Core:
    """A finished tile.

    Attributes:
        index: of the tile in its grid.
        pixels: uint8 (samples, h, w), what is written of its core.
        positivity: how strongly it is stained, 0-255.
        on_damage: whether a part of the slide that it was made from could not be read.
        packed: the pixels as the log holds them (:func:`packed`), where that was made ahead; empty: not yet.
    """

    index: int
    pixels: NDArray[np.uint8]
    positivity: float
    on_damage: bool = False
    packed: bytes = b""


@dataclass(frozen=True, slots=True)
class _Place:
    offset: int
    length: int
    positivity: float
    flags: int


class Journal:
    """The log of one output.

    A record is handed to the system whole as soon as it is made, so killing the process loses none; :meth:`sync` has
    them on the disk itself, against a loss of power.

    Tiles may be kept and replayed in several threads. Memory bound: a few numbers a tile.

    Args:
        path: of the log; made where it is missing, cut off after its last whole record.
        key: 32 bytes that stand for the request; a log with another one is begun anew.

    Raises:
        OSError: the log cannot be read or made.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self._places: dict[int, _Place] = {}
        self._notes: list[bytes] = []
        self._lock: Final = threading.Lock()
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._stream: Final[BinaryIO] = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        end = self._scan(MAGIC + key)
        self._stream.truncate(end)
        self._stream.seek(end)
        if end == 0:
            self._append(MAGIC + key)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._stream.closed

    @property
    def notes(self) -> tuple[bytes, ...]:
        """What was noted, in order."""
        return tuple(self._notes)

    def keep(self, core: Core) -> None:
        """Append a finished tile."""
        frame = core.packed or packed(core.pixels)
        flags = (_ON_DAMAGE if core.on_damage else 0) | (_BY_PIXEL if lies_by_pixel(core.pixels) else 0)
        record = _record(_TILE, core.index, core.positivity, flags, frame)
        with self._lock:
            start = self._stream.tell() + len(record) - len(frame)
            self._append(record)
            self._places[core.index] = _Place(start, len(frame), core.positivity, flags)

    def note(self, text: bytes) -> None:
        """Append something to be remembered beside the tiles."""
        with self._lock:
            self._append(_record(_NOTE, 0, 0.0, 0, text))
            self._notes.append(text)

    def forget_damaged(self) -> None:
        """Leave out the tiles that were made from damaged parts of the slide."""
        self._places = {index: place for index, place in self._places.items() if not place.flags & _ON_DAMAGE}

    def replay(self, core: tuple[int, int, int], index: int) -> Core:
        """A kept tile.

        Args:
            core: shape of its pixels, (samples, h, w).
            index: of the tile.

        Raises:
            OutputError: the log was changed since it was opened, or its disk fails.
        """
        place = self._places[index]
        with self._lock:
            here = self._stream.tell()
            try:
                self._stream.seek(place.offset)
                frame = self._read(place.length)
            finally:
                self._stream.seek(here)
        try:
            content = np.frombuffer(imagecodecs.lz4_decode(frame, out=int(np.prod(core))), np.uint8)
            by_pixel = place.flags & _BY_PIXEL
            pixels = as_planes(content.reshape(*core[1:], core[0])) if by_pixel else content.reshape(core)
        except (RuntimeError, ValueError) as error:
            raise OutputError(
                f"the work kept for tile {index} cannot be read ({error}); begin anew with --restart"
            ) from error
        return Core(index, pixels, place.positivity, bool(place.flags & _ON_DAMAGE))

    def indices(self) -> frozenset[int]:
        """The kept tiles."""
        return frozenset(self._places)

    def sync(self) -> None:
        """Have all records on the disk itself. May be called from another thread."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        self._stream.close()

    def _append(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[self._stream.write(view) :]

    def _scan(self, head: bytes) -> int:
        """Take note of all whole records; returns where they end, 0 for a log that is none or another's."""
        size = os.fstat(self._stream.fileno()).st_size
        if self._read(len(head)) != head:
            return 0
        end = len(head)
        for record in self._records(end, size):
            self._take(record)
            end = record.end
        return end

    def _records(self, start: int, size: int) -> Iterator[_Record]:
        position = start
        while len(header := self._read(_FIELDS.size + _CRC.size)) == _FIELDS.size + _CRC.size:
            record = _Record(position, header)
            if record.end > size:
                return
            payload = self._read(record.length)
            if not record.holds(payload):
                return
            record.payload = payload
            yield record
            position = record.end

    def _take(self, record: _Record) -> None:
        if record.kind == _NOTE:
            self._notes.append(record.payload)
        elif record.kind == _TILE:
            self._places[record.index] = _Place(record.offset, record.length, record.positivity, record.flags)

    def _read(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count and (part := self._stream.read(count - len(parts))):
            parts += part
        return bytes(parts)


class _Record:
    """A record's header, as it lies in the log."""

    def __init__(self, position: int, header: bytes) -> None:
        self.kind, self.index, self.positivity, self.flags, self.length = _FIELDS.unpack(header[: _FIELDS.size])
        self._crc: int = _CRC.unpack(header[_FIELDS.size :])[0]
        self._fields = header[: _FIELDS.size]
        self.offset = position + len(header)
        self.end: int = self.offset + self.length
        self.payload = b""

    def holds(self, payload: bytes) -> bool:
        """Whether header and payload are the ones that were written."""
        return len(payload) == self.length and _checksum(self._fields, payload) == self._crc


def packed(pixels: NDArray[np.uint8]) -> bytes:
    """A core's pixels, uint8 (samples, h, w), as one LZ4 block, in the order in which they lie in memory."""
    ordered = as_picture(pixels) if lies_by_pixel(pixels) else pixels
    content = np.ascontiguousarray(ordered)  # a buffer, which is not copied as its bytes would be
    return bytes(imagecodecs.lz4_encode(content, ACCELERATION))  # type: ignore[arg-type]


def journal_bytes(spec: ImageSpec, tissue_fraction: float) -> int:
    """Disk that the log of an image needs; more than real stains take.

    Args:
        spec: of the image.
        tissue_fraction: of the image's area, 0-1.
    """
    return round(spec.size.area * spec.samples * tissue_fraction * BYTES_PER_SAMPLE)


def _record(kind: bytes, index: int, positivity: float, flags: int, payload: bytes) -> bytes:
    fields = _FIELDS.pack(kind, index, positivity, flags, len(payload))
    return fields + _CRC.pack(_checksum(fields, payload)) + payload


def _checksum(fields: bytes, payload: bytes) -> int:
    return int(google_crc32c.extend(google_crc32c.value(fields), payload))
