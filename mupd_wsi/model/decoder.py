"""From the features of a network to pixels: heads that see over the edges of patches, and the flow's decoder."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mupd_wsi.model.blocks import ConvBlock, affine, depth_to_space, space_to_depth
from mupd_wsi.model.config import NetworkConfig

#: Side of the square that a patch speaks for, in patches: half a patch beyond its own edges.
SPREAD: Final = 2
#: Side of the convolutions of the flow's decoder, in patches: each widens what it sees by one patch.
DECODER_KERNEL: Final = 3


class OverlapHead(nn.Module):
    """From one vector a patch to values a pixel, linear, and without edges where patches meet.

    Each patch speaks for a square of twice its side. Where four of them overlap their answers are blended by weights
    that fall off evenly to the square's own edges, so between two patches no pixel steps further than another.

    Args:
        features: width of what it is given a patch.
        outputs: channels.
        patch: px, even.
    """

    def __init__(self, features: int, outputs: int, patch: int) -> None:
        super().__init__()
        self.patch, self.outputs = patch, outputs
        self.linear = nn.Linear(features, (SPREAD * patch) ** 2 * outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Of ``features`` (B, h + 2, w + 2, F), with a ring around what is wanted: (B, h * patch, w * patch, C)."""
        b, rows, columns, width = features.shape
        half = self.patch // 2
        # Blocks that lie half a patch up and left of the patches: each is what four squares say of it, in one sum.
        total = (
            self._parts(self.linear.bias[:, None])
            .sum(dim=(0, 1))
            .view(1, -1)
            .expand(b * (rows - 1) * (columns - 1), -1)
        )
        weights = self._parts(self.linear.weight)
        for y in range(SPREAD):
            for x in range(SPREAD):
                part = features[:, 1 - y : rows - y, 1 - x : columns - x].reshape(-1, width)
                total = torch.addmm(total, part, weights[y, x].t())
        pixels = depth_to_space(total.view(b, rows - 1, columns - 1, -1), self.patch)
        return pixels[:, half:-half, half:-half]

    def _parts(self, values: Tensor) -> Tensor:
        """Weight or bias by quarter of a square, blended: (SPREAD, SPREAD, patch * patch * C, F)."""
        patch = self.patch
        rising = (torch.arange(patch, device=values.device, dtype=values.dtype) + 0.5) / patch
        window = torch.stack([rising, 1 - rising])  # of the first half of a square, and of the second
        split = values.view(SPREAD, patch, SPREAD, patch, self.outputs, -1).permute(0, 2, 1, 3, 4, 5)
        blended = split * window[:, None, :, None, None, None] * window[None, :, None, :, None, None]
        return blended.reshape(SPREAD, SPREAD, patch * patch * self.outputs, -1)


def with_ring(features: Tensor) -> Tensor:
    """``features`` (B, h, w, F) with one more patch on every side, the same as the outermost."""
    ringed: Tensor = F.pad(features.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate")
    return ringed.permute(0, 2, 3, 1)


class PixelHead(nn.Module):
    """The decoder's way from patches to pixels: a convolution at full resolution sees over the edges of patches.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.pixel_width
        self.expand = OverlapHead(config.decoder_width, width, config.patch)
        self.embed = nn.Linear(config.image_channels + config.targets, width, bias=False)
        self.block = ConvBlock(width, config.time_width, config.kernel)
        self.out = nn.Linear(width, config.targets)

    def forward(self, features: Tensor, pixels: Tensor, time: Tensor) -> Tensor:
        """Of ``features`` (B, h, w, F) and ``pixels`` (B, H, W, P), H = h * patch: (B, H, W, outputs)."""
        x = self.expand(with_ring(features)) + affine(pixels, self.embed)
        return affine(self.block(x, time), self.out)


class FlowDecoder(nn.Module):
    """Predicts x0 from a noisy stain and what a network that has not seen the noise knows of the tissue.

    Convolutions at patch size, then at single pixels. They see ``config.decoder_reach`` px around a place and no more,
    so a draw of a few steps sees no more than the halo: further away only the features look. The network behind
    them runs once a draw, not once a step. What comes out is joined with x_t so that the predicted quantity F has unit
    variance at every flow time (Karras et al., arXiv 2206.00364, for the path of :mod:`mupd_wsi.model.flow`)::

        x0 = c_skip x_t + c_out F    c_skip = (1 - t) / s^2    c_out = t / s    s^2 = (1 - t)^2 + t^2

    Args:
        config: shape of the network.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.patch = config.patch
        self.embed_features = nn.Linear(config.stage_widths[0], width)
        self.embed_noisy = nn.Linear(config.patch**2 * config.targets, width, bias=False)
        self.blocks = nn.ModuleList(
            ConvBlock(width, config.time_width, DECODER_KERNEL) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = PixelHead(config)

    def forward(self, features: Tensor, image: Tensor, noisy: Tensor, t: Tensor, time: Tensor) -> Tensor:
        """Predict x0, (B, H, W, targets).

        Args:
            features: (B, H / patch, W / patch, F).
            image: H&E features (B, H, W, image).
            noisy: x_t (B, H, W, targets), H and W multiples of the patch.
            t: (B,).
            time: its embedding, (B, T).
        """
        dtype = self.norm.weight.dtype
        folded = space_to_depth(noisy, self.patch).to(dtype)
        x = affine(features.to(dtype), self.embed_features) + affine(folded, self.embed_noisy)
        for block in self.blocks:
            x = block(x, time)
        answer = self.head(self.norm(x), torch.cat([image.to(dtype), noisy.to(dtype)], dim=-1), time)
        kept, added = flow_scales(t[:, None, None, None])
        x0: Tensor = kept * noisy + added * answer.float()
        return x0


def flow_scales(t: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of :class:`FlowDecoder` at flow times, any shape."""
    power = (1 - t) ** 2 + t**2
    return (1 - t) / power, t / power.sqrt()
