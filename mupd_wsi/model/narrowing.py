"""A network whose read-out gives a few channels alone: of 18 markers most runs want one or two."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from mupd_wsi.model.decoder import OverlapHead
from mupd_wsi.model.network import MuPDNetwork


def narrowed(network: MuPDNetwork, channels: Sequence[int]) -> MuPDNetwork:
    """The same network with another head for its read-out; all other weights are shared, and draws stay whole.

    Args:
        network: one with ``config.pixel_width``, without gradients.
        channels: that its read-out gives, in this order, instead of all.
    """
    twin = copy.copy(network)
    twin._modules = dict(network._modules)
    twin.readout_head = _narrowed_head(network.readout_head, list(channels))
    return twin


def _narrowed_head(head: OverlapHead, channels: list[int]) -> OverlapHead:
    twin = copy.copy(head)
    twin._modules = dict(head._modules)
    twin.outputs = len(channels)
    twin.linear = copy.copy(head.linear)
    twin.linear._parameters = {
        name: _chosen(values, head.outputs, channels)
        for name, values in head.linear._parameters.items()
        if values is not None
    }
    return twin


def _chosen(values: Tensor, outputs: int, channels: list[int]) -> nn.Parameter:
    """Rows of a weight or bias whose channel, innermost among a pixel's, is one of these."""
    by_pixel = values.detach().reshape(-1, outputs, *values.shape[1:])
    kept = by_pixel[:, channels].flatten(0, 1)
    return nn.Parameter(kept.contiguous(), requires_grad=False)
