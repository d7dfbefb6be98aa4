"""Heads that see over the edges of patches, and the decoder that makes draws."""

from __future__ import annotations

import pytest
import torch

from mupd_wsi.model.calibration import Calibration, RootMoments
from mupd_wsi.model.config import NetworkConfig
from mupd_wsi.model.decoder import OverlapHead, flow_scales, with_ring
from mupd_wsi.model.densities import density_views
from mupd_wsi.model.extents import Extent
from mupd_wsi.model.flow import euler_states
from mupd_wsi.model.network import MuPDNetwork

CONFIG = NetworkConfig(
    targets=3,
    stage_widths=(16, 24),
    stage_depths=(1, 1),
    trunk_width=32,
    trunk_depth=1,
    trunk_heads=4,
    window=2,
    context_width=16,
    pixel_width=6,
    density_squares=(1, 5),
    decoder_width=16,
    decoder_depth=2,
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = MuPDNetwork(CONFIG).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


@pytest.fixture
def tile():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 6, 64, 64, generator=generator), torch.randn(1, 3, 64, 64, generator=generator)


def test_read_out_and_draw_come_from_heads_of_their_own(network, tile):
    image, noisy = tile
    network(image, torch.ones(1)).sum().backward()
    assert network.readout_head.linear.weight.grad is not None
    assert network.decoder.head.out.weight.grad is None
    network.zero_grad(set_to_none=True)
    network(image, torch.tensor([0.5]), noisy).sum().backward()
    assert network.decoder.head.out.weight.grad is not None
    assert network.readout_head.linear.weight.grad is None
    assert network.head.weight.grad is None


def test_features_of_the_tissue_serve_every_step(network, tile):
    """The network behind the decoder runs once a draw, and the draw is the same as if it ran at every step."""
    image, noise = tile
    with torch.inference_mode():
        features = network.features(image, torch.ones(1))
        *_, once = euler_states(lambda x, t: network.decode(features, image, t, x), noise, 3)
        *_, each = euler_states(lambda x, t: network(image, t, x), noise, 3)
    torch.testing.assert_close(once, each, rtol=0, atol=0)


def test_where_patches_meet_there_is_no_edge():
    """Of features that change smoothly a head gives values that do, too, whatever its weights."""
    torch.manual_seed(0)
    head = OverlapHead(5, 2, patch=4)
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    features = torch.stack([torch.sin(rows / 9 + k) * torch.cos(columns / 11 - k) for k in range(5)], dim=-1)[None]
    with torch.no_grad():
        head.linear.weight.copy_(head.linear.weight.view(64, 2, 5).mean(dim=0).repeat(64, 1))  # all phases alike
        head.linear.bias.zero_()
        pixels = head(with_ring(features))[0]
    steps = pixels.diff(dim=1).abs()
    by_phase = torch.stack([steps[:, phase::4].mean() for phase in range(4)])
    assert by_phase.max() < 1.1 * by_phase.min()


def test_overlapping_answers_are_weighted_to_one():
    head = OverlapHead(3, 2, patch=4)
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.fill_(2.5)
        pixels = head(torch.randn(1, 6, 7, 3))
    assert pixels.shape == (1, 16, 20, 2)
    torch.testing.assert_close(pixels, torch.full_like(pixels, 2.5))


def test_a_patch_speaks_for_half_a_patch_beyond_its_edges(network, tile):
    image, _ = tile
    with torch.inference_mode():
        features = network.features(image, torch.ones(1))
        whole = [Extent(0, 64), Extent(0, 64)]
        before = network.read_out(features, image, whole, whole)
        features[:, 8, 8] += 1
        moved = (network.read_out(features, image, whole, whole) != before).any(dim=1)[0]
    rows, columns = torch.where(moved)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 37, 30, 37)


def test_at_the_end_of_the_flow_a_draw_is_what_it_was_given(network, tile):
    image, stain = tile
    with torch.inference_mode():
        torch.testing.assert_close(network(image, torch.zeros(1), stain), stain)


def test_the_predicted_quantity_has_unit_variance_at_every_time():
    """Of unit variance and independent of the noise, x0 less its best linear guess from x_t has variance c_out ** 2."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(200_000, generator=generator) for _ in range(2))
    for t in (0.05, 0.3, 0.5, 0.8, 1.0):
        kept, added = flow_scales(torch.tensor(t))
        rest = (x0 - kept * ((1 - t) * x0 + t * noise)) / added
        assert float(rest.var()) == pytest.approx(1.0, abs=0.02)


def test_without_the_tissue_a_stain_is_still_predicted(network, tile):
    _, noisy = tile
    with torch.inference_mode():
        assert network(None, torch.tensor([0.7]), noisy).shape == noisy.shape
        with pytest.raises(ValueError, match="got neither"):
            network(None, torch.ones(1))


def test_a_step_of_a_draw_sees_its_reach_and_no_more(network):
    """What is further away than ``decoder_reach``, of noise, tissue or features, changes nothing."""
    side, reach = 96, CONFIG.decoder_reach
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(1, side // 4, side // 4, 16, generator=generator)
    image, noisy = (torch.randn(1, c, side, side, generator=generator) for c in (6, 3))
    place = slice(44, 48)  # a patch
    inside = slice(place.start - reach, place.stop + reach)
    with torch.inference_mode():
        before = network.decode(features, image, torch.tensor([0.6]), noisy)[..., place, place]
        for given in (image, noisy):
            given_there = given[..., inside, inside].clone()
            given += 1
            given[..., inside, inside] = given_there
        kept = features[:, inside.start // 4 : inside.stop // 4, inside.start // 4 : inside.stop // 4].clone()
        features += 1
        features[:, inside.start // 4 : inside.stop // 4, inside.start // 4 : inside.stop // 4] = kept
        after = network.decode(features, image, torch.tensor([0.6]), noisy)[..., place, place]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_deviation_is_counted_from_what_the_read_out_tells_and_in_its_spread():
    rising = Calibration((0.0, 0.0), (16.0, 16.0), ((0.0, 8.0), (0.0, 16.0)))  # the mean root: half of the read-out's
    power = Calibration((0.0, 0.0), (16.0, 16.0), ((4.0, 68.0 + 4.0 * 12), (0.0, 0.0)))
    moments = RootMoments(rising, power, (0.5, 0.25))
    readout = torch.full((1, 2, 1, 1), 64.0)  # its root is 8
    away = moments.deviations(torch.tensor([6.0, 9.0]).view(1, 2, 1, 1), readout).flatten()
    spread = (4.0 + (68.0 + 48.0 - 4.0) / 2 - 16.0) ** 0.5
    torch.testing.assert_close(away, torch.tensor([(6.0 - 4.0) / spread, (9.0 - 8.0) / 0.25]))
    back = moments.roots(away.view(1, 2, 1, 1), readout).flatten()
    torch.testing.assert_close(back, torch.tensor([6.0, 9.0]))
    assert moments.roots(torch.full((1, 2, 1, 1), -100.0), readout).max() == 0


def test_density_views_are_means_of_squares_and_their_products():
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(2, 6, 40, 32, generator=generator)
    views = density_views(image, 4, (1, 3))
    of_patches = image[:, 3:].unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(-2, -1))
    near = of_patches[1, :, 4:7, 2:5].mean(dim=(-2, -1))  # around the patch at 5, 3
    torch.testing.assert_close(views[1, 5, 3, :3], of_patches[1, :, 5, 3])
    torch.testing.assert_close(views[1, 5, 3, 9:12], near)
    a, b, c = near
    torch.testing.assert_close(views[1, 5, 3, 12:], torch.stack([a * a, a * b, a * c, b * b, b * c, c * c]))
    corner = of_patches[0, :, :2, :2].mean(dim=(-2, -1))  # what lies beyond the edge is left out
    torch.testing.assert_close(views[0, 0, 0, 9:12], corner)
