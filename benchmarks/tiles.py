"""The tiles that the identity network is given, by this engine and by the others alike."""

from __future__ import annotations

from typing import Final

#: Sides of a tile and of what neighbours share, px.
TILE: Final = 1024
OVERLAP: Final = 64
