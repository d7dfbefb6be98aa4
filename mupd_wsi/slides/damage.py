"""Parts of a slide that cannot be decoded: which, and when they are too many to go on."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from mupd_wsi.errors import SlideError
from mupd_wsi.geometry import Region

#: A slide of which a larger share is damaged is not worth staining.
MAX_DAMAGED_SHARE: Final = 0.01


@dataclass(frozen=True, slots=True, order=True)
class DamagedTile:
    """A tile of the slide's file whose bytes are no picture.

    Attributes:
        level: of the pyramid.
        row: of tiles.
        column: of tiles.
        region: what it covers, level-0 pixels.
        reason: one line.
    """

    level: int
    row: int
    column: int
    region: tuple[int, int, int, int]
    reason: str

    @property
    def is_lost(self) -> bool:
        """Whether its pixels are gone: those of a coarser level are computed from the finer one instead."""
        return self.level == 0

    @property
    def place(self) -> Region:
        """What it covers, level-0 pixels."""
        return Region(*self.region)


class DamageLog:
    """What was found to be damaged so far. Safe to use from many threads.

    Args:
        name: of the slide.
        total: tiles of level 0.
    """

    def __init__(self, name: str, total: int) -> None:
        self._name: Final = name
        self.total: Final = total
        self._found: dict[tuple[int, int, int], DamagedTile] = {}
        self._lock: Final = threading.Lock()

    @property
    def tiles(self) -> tuple[DamagedTile, ...]:
        """All of them, by level, row, column."""
        with self._lock:
            return tuple(sorted(self._found.values()))

    def add(self, tile: DamagedTile) -> None:
        """Take note of one; the same one may come again.

        Raises:
            SlideError: more than 1 % of level 0 is lost.
        """
        with self._lock:
            self._found.setdefault((tile.level, tile.row, tile.column), tile)
            lost = sum(one.is_lost for one in self._found.values())
        if lost > self.total * MAX_DAMAGED_SHARE:
            raise SlideError(
                f"{self._name}: {lost} of {self.total} tiles are damaged, more than {MAX_DAMAGED_SHARE:.0%} "
                f"(the last one: {tile.reason}); fetch the slide again"
            )
