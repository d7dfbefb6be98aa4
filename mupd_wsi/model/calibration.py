"""Curves from what the network predicts to intensities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Calibration:
    """One rising curve a channel: predicted root -> expected intensity, linear between even knots, flat beyond them.

    For the read-out: the network predicts the mean of a root; what a user wants is the mean intensity given that
    prediction. The square of a mean root lies below it, and for sparse markers far below. For a draw: a small
    network draws too dim; the curve gives its intensities the distribution of the real ones.

    Attributes:
        low: root at the first knot, one a channel.
        high: root at the last knot, above ``low``.
        intensities: expected intensity (0-255) at each knot, one rising list a channel.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    intensities: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not len(self.low) == len(self.high) == len(self.intensities):
            raise ValueError("a calibration needs low, high and intensities for every channel")
        if any(len(values) < 2 for values in self.intensities):
            raise ValueError("a calibration curve needs at least 2 knots")
        if any(high <= low for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("a calibration curve must end above where it starts")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """From a card's fields.

        Raises:
            KeyError: one is missing.
            ValueError: they do not fit together.
        """
        curves = tuple(tuple(curve) for curve in values["intensities"])
        return cls(tuple(values["low"]), tuple(values["high"]), curves)

    def apply(self, root: Tensor, channel: int) -> Tensor:
        """Predicted roots of one channel, any shape, to expected intensities of the same shape."""
        values = torch.tensor(self.intensities[channel], dtype=root.dtype, device=root.device)
        low, high, last = self.low[channel], self.high[channel], len(values) - 1
        place = ((root - low) * (last / (high - low))).clamp_(0, last)
        knot = place.to(torch.int32).clamp_max_(last - 1)
        return torch.lerp(values[knot], values[knot + 1], place - knot)
