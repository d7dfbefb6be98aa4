"""From marker intensities to the standardised values that the network predicts, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TargetTransform:
    """Standardised square root: z = (sqrt(intensity) - mean) / std, a channel at a time.

    The square root tames the long tail of sparse markers. Its price: the square of a mean root lies below the mean,
    which :class:`mupd_wsi.model.calibration.Calibration` mends for the read-out.

    Attributes:
        mean: of sqrt(intensity) on the training tissue, one a channel.
        std: likewise, above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or any(s <= 0 for s in self.std):
            raise ValueError("a target transform needs as many means as standard deviations, those above 0")

    def standardise(self, intensity: Tensor) -> Tensor:
        """Intensities (B, C, H, W) in 0-255 to standardised values."""
        return (intensity.sqrt() - self._column(self.mean, intensity)) / self._column(self.std, intensity)

    def root(self, standardised: Tensor, channel: int) -> Tensor:
        """Square roots of one channel's intensities, any shape, from standardised values; those below 0 give 0."""
        return (standardised * self.std[channel] + self.mean[channel]).clamp_(min=0)

    def roots(self, standardised: Tensor) -> Tensor:
        """The same for all channels (B, C, H, W) at once."""
        root = standardised * self._column(self.std, standardised) + self._column(self.mean, standardised)
        return root.clamp_min(0)

    @staticmethod
    def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
