"""What is known of a model of somebody else. Needs no torch, as little as the rest of a run whose model does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mupd_wsi.errors import UsageError
from mupd_wsi.markers import Panel
from mupd_wsi.request import Fuse

#: What a card of theirs says at least.
LIMIT: Final = "A model of somebody else: its authors say what may be expected of it."


@dataclass(frozen=True, slots=True)
class ForeignCard:
    """What a run wants to know of a model; see :class:`mupd_wsi.model.bundle.ModelInfo` for what is not told here.

    Attributes:
        painted: it gives brightfield pictures: the panel's entries are stains, three planes each.
        period: px by which tiles may be moved without changing the lattice that its strides lay over the slide.

    Raises:
        UsageError: numbers that cannot be meant.
    """

    name: str
    panel: Panel
    mpp: float
    tile: int
    halo: int
    weights_sha256: str
    fuse: Fuse
    version: str = "unknown"
    license: str = "see its authors"
    credit: str = "not stated"
    painted: bool = False
    period: int = 1
    steps: int = 1
    stain_reference: None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    limits: tuple[str, ...] = (LIMIT,)

    def __post_init__(self) -> None:
        if not 0 < self.mpp < math.inf:
            raise UsageError(f"{self.name}: um/px must lie above 0, got {self.mpp:g}")
        if self.tile <= 2 * self.halo or self.halo < 0:
            raise UsageError(f"{self.name}: a tile of {self.tile} px leaves nothing within a halo of {self.halo} px")
        if self.period < 1 or self.halo % self.period or self.tile % self.period:
            raise UsageError(
                f"{self.name}: tile and halo must be multiples of {self.period} px, got {self.tile} and {self.halo}"
            )

    def halo_of(self, steps: int) -> int:
        """px on each side of a tile that are thrown away: of a model of others always the same."""
        del steps
        return self.halo

    @property
    def display_window(self) -> Mapping[str, tuple[tuple[float, float], ...]]:
        """The whole of the model's output range; it is read out, and cannot be drawn from."""
        return {"mean": ((0.0, 255.0),) * len(self.panel)}
