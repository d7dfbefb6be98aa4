"""A draw of a network with a decoder: a walk along the flow of how the stain deviates from what the read-out tells."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from mupd_wsi.model.bundle import ModelInfo
from mupd_wsi.model.extents import Area, area_around, cut, cut_planes, whole_area
from mupd_wsi.model.flow import euler_step, euler_times
from mupd_wsi.model.network import MuPDNetwork

#: Noise of a part of the tiles: (B, panel, rows, columns).
NoiseOf = Callable[[Area], Tensor]


def draw(network: MuPDNetwork, info: ModelInfo, image: Tensor, noise_of: NoiseOf, steps: int, part: Area) -> Tensor:
    """A draw of what is wanted of tiles.

    Each step is worked out on what the later ones see of it, and no more. The network behind the decoder runs once.

    Args:
        network: one with ``config.pixel_width``.
        info: its card.
        image: H&E features of the tiles, (B, image_channels, H, W).
        noise_of: what the draw begins with.
        steps: evaluations of the decoder, at least 1.
        part: what is wanted, in multiples of the network's patch.

    Returns:
        Roots of intensities, fp32 (B, panel, rows, columns).
    """
    config, tile = network.config, whole_area(image)
    seen = [part]
    for _ in range(steps):
        seen.insert(0, area_around(seen[0], config.decoder_reach, config.patch, tile))
    at_once = torch.ones(len(image), device=image.device)
    features = network.features(image, at_once, lead=info.lead // config.trunk_stride, wanted=seen[0])
    covered = area_around(seen[0], config.head_reach, config.patch, tile)
    x = noise_of(seen[0])
    times = pairwise(euler_times(steps, info.time_shift).tolist())
    for given, kept, (t, t_next) in zip(seen[:-1], seen[1:], times, strict=True):
        own = cut(features, covered, given, config.patch)
        x0 = network.decode(own, cut_planes(image, tile, given), t * at_once, x)
        x = euler_step(cut_planes(x, given, kept), cut_planes(x0.float(), given, kept), t, t_next)
    around = area_around(part, config.head_reach, config.patch, tile)
    readout = network.read_out(cut(features, covered, around, config.patch), image, part, tile)
    assert info.draw_moments is not None  # a card has them where the network has a decoder
    return info.draw_moments.roots(x, readout.float())
