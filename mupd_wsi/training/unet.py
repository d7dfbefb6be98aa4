"""The baseline that the model has to beat: a plain regression U-Net (Ronneberger et al., arXiv 1505.04597)."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from mupd_wsi.model.features import IMAGE_CHANNELS

#: Pixels on a side that the first layer takes as one place, and the last one gives back: at full resolution a step of
#: training takes many times as long, and the same time would teach it less.
PATCH: Final = 4
#: Halvings of the resolution after that.
LEVELS: Final = 3


class PlainUNet(nn.Module):
    """3 x 3 convolutions, two a level, channels doubling as the resolution halves; H&E features to standardised roots.

    It has no time, no noise, no attention and no normalisation; what it learns is the conditional mean.

    Args:
        targets: channels of the stain.
        width: channels at the finest scale.
    """

    def __init__(self, targets: int, width: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(LEVELS + 1)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([width, *widths], widths, strict=False))
        self.up = nn.ModuleList(_double(a + b, b) for b, a in pairwise(widths))
        self.stem = nn.Conv2d(IMAGE_CHANNELS, width, PATCH, stride=PATCH)
        self.head = nn.Conv2d(width, targets * PATCH**2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, 6, H, W), H and W multiples of 32, to (B, targets, H, W)."""
        x, kept = self.stem(image), []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.avg_pool2d(x, 2))
            kept.append(x)
        for level in reversed(range(LEVELS)):
            coarse = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = self.up[level](torch.cat([coarse, kept[level]], dim=1))
        answer: Tensor = nn.functional.pixel_shuffle(self.head(x), PATCH)
        return answer


def unet_of_size(targets: int, parameters: int) -> PlainUNet:
    """The U-Net whose number of parameters comes nearest to a wanted one."""
    best, distance = 1, float("inf")
    for width in range(1, 129):
        with torch.device("meta"):
            count = sum(p.numel() for p in PlainUNet(targets, width).parameters())
        if abs(count - parameters) < distance:
            best, distance = width, abs(count - parameters)
    return PlainUNet(targets, best)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()
    )
