"""What the network sees of an H&E image."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGE_CHANNELS = 6
#: Which of them are the optical densities.
DENSITIES = slice(3, 6)


def image_features(rgb: Tensor) -> Tensor:
    """RGB and optical densities, both scaled to about -1..1.

    Optical density is linear in the amount of dye (Beer-Lambert), colour is what the eye sees; the network gets both.

    Args:
        rgb: float (B, 3, H, W), 0-255.

    Returns:
        float (B, 6, H, W).
    """
    density = -torch.log10((rgb + 1) / 256)  # 0 (glass) .. 2.4 (black)
    return torch.cat([rgb / 127.5 - 1, 2 * density - 0.5], dim=1)
