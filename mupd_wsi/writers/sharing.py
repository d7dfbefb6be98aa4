"""Level 0 of one OME-Zarr image, written by several writers at once, each its own rows."""

from __future__ import annotations

import io
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.errors import OutputError
from mupd_wsi.writers.ngff import MISSING, encode_chunk, shard_index, shard_path
from mupd_wsi.writers.pyramid import TILE, filled_up
from mupd_wsi.writers.staging import move_file, sync_folder

#: What the name of the folder beside the image's ends in, for rows of shards that two writers share.
FRAGMENTS: Final = ".rows"


@dataclass(frozen=True, slots=True)
class SharedImage:
    """The image that is written.

    Attributes:
        folder: of the image; its metadata is there already.
        height: rows of level 0.
        background: grey level of chunks that are left out.
    """

    folder: Path
    height: int
    background: int

    def fragments(self, row: int) -> Path:
        """Where writers leave their parts of a shard that they share."""
        return self.folder.with_name(self.folder.name + FRAGMENTS) / str(row)


class RowWriter:
    """Writes some full-width rows: the shards that lie in them whole, and the ends of the others as fragments.

    Whatever is written appears at once and whole, and the same rows always give the same files: they may be written
    again, by another writer, after one has died in the middle.

    Memory bound: one shard, ``samples x 512 x width`` bytes.

    Args:
        image: to be written.
        top: first row.
    """

    def __init__(self, image: SharedImage, top: int) -> None:
        self._image = image
        self._y = top
        self._pieces: list[NDArray[np.uint8]] = []
        self._first = top

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Append rows: uint8 (samples, h, width)."""
        taken = 0
        while taken < pixels.shape[1]:
            end = min((self._y // TILE + 1) * TILE, self._image.height)
            count = min(end - self._y, pixels.shape[1] - taken)
            self._pieces.append(pixels[:, taken : taken + count])
            self._y += count
            taken += count
            if self._y == end:
                self._put()

    def finish(self) -> None:
        """Write the rows of the last shard, which another writer completes."""
        if self._pieces:
            self._put()

    def _put(self) -> None:
        pixels = self._pieces[0] if len(self._pieces) == 1 else np.concatenate(self._pieces, axis=1)
        row = self._first // TILE
        if self._first == row * TILE and self._y == min((row + 1) * TILE, self._image.height):
            write_shard(self._image, row, pixels)
        else:
            _write_fragment(self._image, row, self._first, pixels)
        self._pieces, self._first = [], self._y


def write_shard(image: SharedImage, row: int, pixels: NDArray[np.uint8]) -> None:
    """Write one row of chunks.

    Args:
        image: that it belongs to.
        row: of chunks, from the top.
        pixels: uint8 (samples, h, width).

    Raises:
        OutputError: the image is gone.
        OSError: the disk is full or fails.
    """
    places, parts, end = [], [], 0
    for plane in pixels:
        for x in range(0, plane.shape[1], TILE):
            tile = plane[None, :, x : x + TILE]
            if tile.min() == image.background == tile.max():
                places.append((MISSING, MISSING))
                continue
            parts.append(encode_chunk(filled_up(tile, TILE)))
            places.append((end, len(parts[-1])))
            end += len(parts[-1])
    _replace(image.folder, shard_path(image.folder, 0, row), b"".join([*parts, shard_index(places)]))


def join_fragments(image: SharedImage, row: int) -> None:
    """Make a shard of the fragments that its writers have left.

    Raises:
        OutputError: they are not all there.
        OSError: the disk is full or fails.
    """
    files = sorted(image.fragments(row).glob("*.npy"), key=lambda file: int(file.stem))
    pieces = [np.load(file, allow_pickle=False) for file in files]
    y, bottom = row * TILE, min((row + 1) * TILE, image.height)
    for file, piece in zip(files, pieces, strict=True):
        y = y + piece.shape[1] if int(file.stem) == y else -1
    if y != bottom:
        raise OutputError(f"{image.folder}: rows of shard {row} are missing; do the workers see the same storage?")
    write_shard(image, row, np.concatenate(pieces, axis=1))


def _write_fragment(image: SharedImage, row: int, first: int, pixels: NDArray[np.uint8]) -> None:
    content = io.BytesIO()
    np.save(content, pixels, allow_pickle=False)
    _replace(image.folder, image.fragments(row) / f"{first}.npy", content.getvalue())


def _replace(image: Path, file: Path, content: bytes) -> None:
    """Write a file under a name that no other writer uses, then give it its own; both are then on the disk itself."""
    if not image.is_dir():
        raise OutputError(f"{image} is gone: its run was stopped, or this worker does not see the same storage")
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{os.getpid()}-{secrets.token_hex(6)}")
    try:
        temporary.write_bytes(content)
        move_file(temporary, file)
        sync_folder(file.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
