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


@dataclass(frozen=True, slots=True)
class RootMoments:
    """What the read-out tells of the root of the real intensity at a pixel: its mean and its spread.

    A draw is a flow of how far the root lies from that mean, in units of that spread. Where the read-out is sure little
    is drawn, and what it knows already need not be learned again.

    Attributes:
        mean: from the root of the read-out to the mean root of the real stain.
        power: from the same to the mean intensity, which is the mean square of the root.
        floor: least spread, one a channel, above 0: grey levels are whole, and no pixel is certain.
    """

    mean: Calibration
    power: Calibration
    floor: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.mean.low) == len(self.power.low) == len(self.floor) or min(self.floor) <= 0:
            raise ValueError("moments of roots need both curves and a spread above 0 for every channel")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RootMoments:
        """From a card's fields; raises as :meth:`Calibration.from_json` does."""
        mean, power = (Calibration.from_json(values[name]) for name in ("mean", "power"))
        return cls(mean, power, tuple(values["floor"]))

    def deviations(self, roots: Tensor, readout: Tensor) -> Tensor:
        """How far roots lie from what the read-out tells, in spreads; all (B, channels, H, W)."""
        mean, spread = self._told(readout)
        return (roots - mean) / spread

    def roots(self, deviations: Tensor, readout: Tensor) -> Tensor:
        """The roots that deviate so, cut at 0; all (B, channels, H, W)."""
        mean, spread = self._told(readout)
        return (mean + spread * deviations).clamp_min(0)

    def _told(self, readout: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of the root where the read-out gives these intensities."""
        planes = [self._of_channel(plane, channel) for channel, plane in enumerate(readout.unbind(1))]
        mean, spread = (torch.stack(parts, dim=1) for parts in zip(*planes, strict=True))
        return mean, spread

    def _of_channel(self, readout: Tensor, channel: int) -> tuple[Tensor, Tensor]:
        given = readout.clamp_min(0).sqrt()
        mean = self.mean.apply(given, channel)
        variance = self.power.apply(given, channel) - mean.square()
        return mean, variance.clamp_min(self.floor[channel] ** 2).sqrt()
