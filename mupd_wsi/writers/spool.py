"""Compressed tiles of a pyramid, kept in one temporary file until the final file can be assembled in its own order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.geometry import Size
from mupd_wsi.writers.cascade import TILE

MAX_ENCODERS: Final = 4


class TileEncoder(Protocol):
    """Compresses a tile. Thread-safe."""

    def __call__(self, tile: NDArray[np.uint8]) -> bytes:
        """``tile`` is uint8 (TILE, TILE), or (TILE, TILE, 3) for RGB."""


class TileSpool:
    """A temporary file of encoded tiles, one plane after the other within each strip, and where each of them lies.

    Memory bound: 16 bytes a tile, and the encoded tiles of one strip.

    Args:
        path: of the temporary file; made anew.
        sizes: of the levels.
        planes: separately stored planes: 1 for RGB, else one a channel.
        background: grey level of blank tiles, which are encoded once and shared.
    """

    def __init__(self, path: Path, sizes: tuple[Size, ...], planes: int, background: int, encode: TileEncoder) -> None:
        self.path = path
        self._stream = path.open("xb+")
        self._encode = encode
        self._background = background
        self._columns = [-(-s.width // TILE) for s in sizes]
        self._places = [
            np.zeros((planes, -(-s.height // TILE), n, 2), np.int64) for s, n in zip(sizes, self._columns, strict=True)
        ]
        self._threads = ThreadPoolExecutor(min(MAX_ENCODERS, os.cpu_count() or 1), "mupd-encode")
        self._blank: dict[tuple[int, ...], tuple[int, int]] = {}

    def add_strip(self, level: int, y: int, strip: NDArray[np.uint8], *, rgb: bool) -> None:
        """Encode and keep the tiles of a strip, uint8 (samples, h, width), whose first row is ``y``."""
        row = y // TILE
        planes = [np.moveaxis(strip, 0, 2)] if rgb else list(strip)
        jobs = [
            (plane, column, self._threads.submit(self._tile, pixels, column))
            for plane, pixels in enumerate(planes)
            for column in range(self._columns[level])
        ]
        for plane, column, job in jobs:
            self._places[level][plane, row, column] = self._keep(*job.result())

    def tiles(self, level: int) -> Iterator[bytes]:
        """The encoded tiles of a level, plane after plane, each in raster order."""
        for offset, count in self._places[level].reshape(-1, 2).tolist():
            self._stream.seek(offset)
            yield self._stream.read(count)

    @property
    def nbytes(self) -> int:
        """Bytes that the tiles will take in the final file, where blank ones are not shared."""
        return int(sum(places[..., 1].sum() for places in self._places))

    def close(self) -> None:
        """Stop the threads and delete the file. Safe to call twice."""
        self._threads.shutdown(cancel_futures=True)
        self._stream.close()
        self.path.unlink(missing_ok=True)

    def _tile(self, plane: NDArray[np.uint8], column: int) -> tuple[tuple[int, ...] | None, bytes | None]:
        """A tile's encoding; blank ones give the key of their shared encoding instead."""
        part = plane[:, column * TILE : (column + 1) * TILE]
        shape = (TILE, TILE, *part.shape[2:])
        if not (part != self._background).any():
            return shape, None
        if part.shape == shape:
            return None, self._encode(np.ascontiguousarray(part))
        tile = np.full(shape, self._background, np.uint8)
        tile[: part.shape[0], : part.shape[1]] = part
        return None, self._encode(tile)

    def _keep(self, blank: tuple[int, ...] | None, encoded: bytes | None) -> tuple[int, int]:
        if blank is not None:
            if blank not in self._blank:
                self._blank[blank] = self._append(self._encode(np.full(blank, self._background, np.uint8)))
            return self._blank[blank]
        return self._append(encoded or b"")

    def _append(self, encoded: bytes) -> tuple[int, int]:
        offset = self._stream.seek(0, os.SEEK_END)
        self._stream.write(encoded)
        return offset, len(encoded)
