"""Colour augmentation in stain space: other laboratories' haematoxylin and eosin, not other hues."""

from __future__ import annotations

import torch
from torch import Tensor

#: Optical density (R, G, B) of haematoxylin, eosin and the residual, rows of unit length:
#: Ruifrok and Johnston, Anal Quant Cytol Histol 23 (2001) 291-299.
HE_VECTORS = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])


def jitter_stains(rgb: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Scale and shift each dye's concentration, turn its colour a little, and shift the lamp's white.

    Args:
        rgb: float (B, 3, H, W), 0-255.
        strength: 0 gives the input back; 1 spans the slides we know (pale biopsies to thick, dark sections).
        generator: source of randomness.

    Returns:
        float (B, 3, H, W), 0-255.
    """
    if strength == 0:
        return rgb
    b = len(rgb)

    def spread(*shape: int, by: float) -> Tensor:
        return (2 * torch.rand(b, *shape, generator=generator) - 1) * by * strength

    density = -torch.log((rgb + 1) / 256)
    concentrations = torch.einsum("bchw,cs->bshw", density, torch.linalg.inv(HE_VECTORS))
    gain = torch.exp(spread(3, 1, 1, by=0.45)) * torch.exp(spread(1, 1, 1, by=0.25))
    vectors = HE_VECTORS + spread(3, 3, by=0.06)
    lamp = spread(3, 1, 1, by=0.04)
    jittered = torch.einsum("bshw,bsc->bchw", concentrations * gain, vectors) + lamp
    return (256 * torch.exp(-jittered) - 1).clamp(0, 255)
