"""What training makes small: the errors of the read-out and of the flow, each marker weighted alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mupd_wsi.model.transform import TargetTransform

#: Sides of the squares, px, over whose means intensities are compared. A sparse marker says little about a single pixel
#: and much about a neighbourhood, so the coarser errors teach more a step.
SCALES = (1, 8, 32)
CEILING_QUANTILE = 0.998  # of the pixels of drawn crops


@dataclass(frozen=True, slots=True)
class Objective:
    """Mean squared errors of predicted x0, (B, C, H, W).

    Attributes:
        transform: between intensities and x0.
        root_weights: (C, 1, 1); one over the mean square of each channel's x0.
        ceiling: (C, 1, 1); the intensity part of the loss cuts real intensities off there. Dust and folds outshine
            every cell, and a handful of such crops would otherwise make nearly all of the loss of a sparse channel.
        intensity_weights: by scale, (C, 1, 1); one over the variance of each channel's intensity means.
        intensity_share: of the read-out's loss, 0-1.
    """

    transform: TargetTransform
    root_weights: Tensor
    ceiling: Tensor
    intensity_weights: dict[int, Tensor]
    intensity_share: float

    @classmethod
    def from_crops(cls, intensities: Iterable[Tensor], transform: TargetTransform, intensity_share: float) -> Objective:
        """Weights that give every channel the same share of the loss of a blank prediction.

        Args:
            intensities: crops (C, H, W), 0-255, drawn as training draws them.
            transform: between intensities and x0.
            intensity_share: of the read-out's loss, 0-1.
        """
        crops = torch.stack([crop.to(torch.uint8) for crop in intensities])
        power = torch.stack([transform.standardise(crop.float()).square().mean(dim=(1, 2)) for crop in crops]).mean(
            dim=0
        )
        sorted_values = crops.transpose(0, 1).flatten(1).sort(dim=1).values
        ceiling = sorted_values[:, int(CEILING_QUANTILE * sorted_values.shape[1])].float().clamp_min(1)[:, None, None]
        kept = torch.minimum(crops, ceiling)
        variances = {scale: _means(kept, scale).var(dim=(0, 2, 3)) for scale in SCALES}
        weights = {scale: (1 / variance)[:, None, None] for scale, variance in variances.items()}
        return cls(transform, (1 / power)[:, None, None], ceiling, weights, intensity_share)

    def to(self, device: str) -> Objective:
        """The same on a device."""
        weights = {scale: weight.to(device) for scale, weight in self.intensity_weights.items()}
        return replace(
            self,
            root_weights=self.root_weights.to(device),
            ceiling=self.ceiling.to(device),
            intensity_weights=weights,
        )

    def readout(self, predicted: Tensor, x0: Tensor) -> Tensor:
        """Error of the one-pass read-out.

        Its intensity part is smallest where the predicted intensity is the expected one, which the root part alone
        leaves too low.
        """
        error = self.flow(predicted, x0)
        if self.intensity_share == 0:
            return error
        virtual, real = (self.transform.roots(x.float()).square() for x in (predicted, x0))
        real = torch.minimum(real, self.ceiling)
        parts = [
            ((_means(virtual, scale) - _means(real, scale)).square() * weight).mean()
            for scale, weight in self.intensity_weights.items()
        ]
        return (1 - self.intensity_share) * error + self.intensity_share * sum(parts) / len(parts)

    def flow(self, predicted: Tensor, x0: Tensor) -> Tensor:
        """Error at any flow time."""
        return ((predicted - x0).square() * self.root_weights).mean()


def _means(intensities: Tensor, scale: int) -> Tensor:
    return F.avg_pool2d(intensities, scale) if scale > 1 else intensities
