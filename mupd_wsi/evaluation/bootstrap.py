"""Figures with 95 % intervals, found by drawing tiles anew: pixels of one tile depend on one another, tiles hardly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

DRAWS: Final = 500
INTERVAL: Final = (0.025, 0.975)
#: Drawn in groups of this many, so that memory stays small beside the sums themselves.
_AT_ONCE: Final = 25


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value and its 95 % interval; NaN where it cannot be measured."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    def as_json(self) -> dict[str, float | None]:
        """Rounded values; null for NaN."""
        return {name: _rounded(getattr(self, name)) for name in ("value", "low", "high")}


def figures(
    sums: NDArray[Any], reduce: Callable[[NDArray[np.float64]], NDArray[np.float64]], seed: int = 0
) -> list[Figure]:
    """Reduce sums over all tiles to one value a channel, with the interval that tiles drawn anew give.

    Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7 (1979) 1-26; percentile intervals.

    Args:
        sums: (T, C, ...) of each tile; they must add up.
        reduce: from sums (..., C, ...) of some tiles to values (..., C); leading axes are draws.
        seed: of the draws.
    """
    tiles = len(sums)
    values = reduce(sums.sum(axis=0, dtype=np.float64)[None])[0]
    if tiles < 2:
        return [Figure(float(value)) for value in values]
    rng = np.random.default_rng(seed)
    flat = sums.reshape(tiles, -1).astype(np.float64)
    drawn = []
    for _ in range(0, DRAWS, _AT_ONCE):
        counts = rng.multinomial(tiles, np.full(tiles, 1 / tiles), size=_AT_ONCE).astype(np.float64)
        drawn.append(reduce((counts @ flat).reshape(_AT_ONCE, *sums.shape[1:])))
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(np.concatenate(drawn), INTERVAL, axis=0)
    return [Figure(float(v), float(a), float(b)) for v, a, b in zip(values, low, high, strict=True)]


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
