"""Which parts of a tile the network computes when its margin is not wanted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mupd_wsi.model.config import NetworkConfig
from mupd_wsi.model.extents import Extent, needs
from mupd_wsi.model.network import MuPDNetwork

PLAIN = NetworkConfig(targets=18, stage_depths=(2, 2))
MINI = replace(PLAIN, pixel_width=24, density_squares=(1, 3, 7, 15, 31, 47), decoder_width=96, decoder_depth=6)


def test_nothing_is_left_out_without_a_margin():
    for part in (needs(MINI, 736, 48, Extent(0, 736)), needs(MINI, 256, 0, Extent(0, 256))):
        length = part.features.stop
        assert {*part.down, *part.up, part.features} == {Extent(0, length)}


@pytest.mark.parametrize(
    ("config", "features", "up"),
    [
        (PLAIN, Extent(112, 624), (Extent(96, 640), Extent(64, 672))),  # 16 and 32 px of convolutions
        (MINI, Extent(108, 628), (Extent(88, 648), Extent(48, 688))),  # and 2 of the head, to whole patches
    ],
)
def test_shipped_tile_needs_five_whole_windows(config, features, up):
    part = needs(config, 736, 48, Extent(112, 624))
    assert part.features == features
    assert part.up == up
    assert part.down == (Extent(0, 736), Extent(16, 720), Extent(48, 688))  # the trunk sees 640 px


@pytest.mark.parametrize(
    ("lead", "rows", "columns"),
    [
        (0, (128, 256), (128, 288)),
        (3, (112, 272), (112, 304)),
        (5, (20, 24), (100, 404)),
        (0, (4, 380), (4, 412)),
        (1, (0, 384), (412, 416)),
    ],
)
def test_what_is_wanted_comes_out_as_if_all_were_computed(lead, rows, columns):
    image, t, noisy = torch.randn(1, 6, 384, 416), torch.tensor([0.4]), torch.randn(1, 2, 384, 416)
    extents = (Extent(*rows), Extent(*columns))
    for network, stain in (
        (small_network(), noisy),
        (small_network(pixel_width=4, density_squares=(1, 3), decoder_width=8, decoder_depth=1), None),
    ):
        with torch.inference_mode():
            whole = network(image, t, stain, lead=lead)
            inner = network(image, t, stain, lead=lead, wanted=extents)
        torch.testing.assert_close(inner, whole[:, :, slice(*rows), slice(*columns)], rtol=1e-4, atol=1e-4)


def small_network(**heads) -> MuPDNetwork:
    """Random in all its parts, also in those that begin as zeros."""
    torch.manual_seed(0)
    config = NetworkConfig(
        targets=2,
        stage_widths=(8, 16),
        stage_depths=(1, 1),
        trunk_width=16,
        trunk_depth=2,
        trunk_heads=2,
        window=6,
        kernel=5,
        context_width=8,
        **heads,
    )
    network = MuPDNetwork(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network
