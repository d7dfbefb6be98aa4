"""A cache of decoded tiles that many reader threads share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

import numpy as np
from numpy.typing import NDArray

DEFAULT_CACHE_BYTES: Final = 128 * 2**20


class _Entry:
    """One tile, or the promise of one: whoever holds the lock decodes it."""

    __slots__ = ("lock", "tile")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tile: NDArray[np.uint8] | None = None

    @property
    def nbytes(self) -> int:
        return 0 if self.tile is None else self.tile.nbytes


class TileCache:
    """Keeps the tiles used last; two threads that want the same tile decode it once.

    Memory bound: ``max_bytes`` plus one tile for each thread that is decoding.
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the tiles held now."""
        return self._bytes

    def get(self, key: Hashable, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """The tile under ``key``, decoded if need be. It is read-only; what ``decode`` raises passes through."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            if entry.tile is None:
                tile = decode()
                tile.flags.writeable = False
                entry.tile = tile
                self._account(key, entry)
            return entry.tile

    def clear(self) -> None:
        """Forget every tile."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def _account(self, key: Hashable, entry: _Entry) -> None:
        """Count a new tile and drop the oldest ones until the rest fit."""
        with self._lock:
            if self._entries.get(key) is not entry:
                return  # it was dropped while it was being decoded; its readers still have it
            self._bytes += entry.nbytes
            while self._bytes > self._max_bytes and len(self._entries) > 1:
                _, oldest = self._entries.popitem(last=False)
                self._bytes -= oldest.nbytes
