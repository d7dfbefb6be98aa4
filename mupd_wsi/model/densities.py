"""What the read-out's head is told beside the network's features: how much dye there is, near and far."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mupd_wsi.model.features import DENSITIES

#: Values a square: the means of three densities, and their six products.
VIEW_WIDTH = 9


def density_views(image: Tensor, patch: int, squares: tuple[int, ...]) -> Tensor:
    """Mean optical densities of squares around each patch, and their products.

    The network normalises what it sees, and forgets how much dye there was. Where a tissue is unlike any in training,
    as a haemorrhage is, a plain function of the amounts of dye holds further than what the network makes of them.

    Args:
        image: H&E features (B, image_channels, H, W) of :func:`mupd_wsi.model.features.image_features`.
        patch: px.
        squares: sides, in patches, odd.

    Returns:
        fp32 (B, H / patch, W / patch, VIEW_WIDTH * len(squares)). At the image's edges squares are cut off.
    """
    of_patches = F.avg_pool2d(image[:, DENSITIES].float(), patch)
    views = []
    for side in squares:
        rows = F.avg_pool2d(of_patches, (side, 1), 1, (side // 2, 0), count_include_pad=False)
        mean = F.avg_pool2d(rows, (1, side), 1, (0, side // 2), count_include_pad=False)
        products = [mean[:, i] * mean[:, j] for i in range(3) for j in range(i, 3)]
        views.append(torch.cat([mean, torch.stack(products, dim=1)], dim=1))
    return torch.cat(views, dim=1).permute(0, 2, 3, 1)
