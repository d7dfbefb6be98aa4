"""Promises of the network's architecture, on small random networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mupd_wsi.errors import BundleError
from mupd_wsi.model import SampleOptions, load_model
from mupd_wsi.model.bundle import find_bundle, read_info, read_weights, write_bundle
from mupd_wsi.model.config import NetworkConfig
from mupd_wsi.model.guidance import guided
from mupd_wsi.model.network import MuPDNetwork, parameter_count

SMALL = NetworkConfig(
    targets=3,
    stage_widths=(16, 24),
    stage_depths=(1, 1),
    trunk_width=32,
    trunk_depth=2,
    trunk_heads=4,
    window=2,
    kernel=3,
    context_width=16,
    text_width=12,
    rna_width=8,
    time_width=16,
)


@pytest.fixture
def network():
    """A small network in fp64 whose zero-initialised parts are filled, so that every path carries signal."""
    torch.manual_seed(0)
    net = MuPDNetwork(SMALL).double()
    net.time.double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.fixture
def conditions():
    generator = torch.Generator().manual_seed(1)
    side = 2 * SMALL.window_px

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "image": normal(2, 6, side, side),
        "noisy": normal(2, 3, side, side),
        "text": normal(2, 5, 12),
        "rna": normal(2, 4, 8),
    }


def _run(network, conditions, **changes):
    # The time embedding is computed in fp32 by design; the rest of this test runs in fp64.
    values = conditions | changes
    network.time.float()
    return network(t=torch.full((2,), 0.5), **values)


def test_output_has_the_shape_of_the_stain(network, conditions):
    assert _run(network, conditions).shape == conditions["noisy"].shape


@pytest.mark.parametrize("t", [0.2, 1.0])
@pytest.mark.parametrize("config", [SMALL, replace(SMALL, pixel_width=4, decoder_width=8, decoder_depth=2)])
def test_folded_inference_equals_the_plain_sum(t, config):
    """Without gradients modulation, gain and biases are folded; with them nothing is."""
    torch.manual_seed(0)
    net = MuPDNetwork(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    image, noisy, at = torch.randn(1, 6, 96, 64), torch.randn(1, 3, 96, 64), torch.tensor([t])
    plain = net(image, at, noisy)
    with torch.inference_mode():
        folded = net(image, at, noisy)
    torch.testing.assert_close(folded, plain.detach(), rtol=1e-4, atol=1e-4)


def test_absent_stream_adds_exactly_nothing_and_has_no_gradient(network, conditions):
    _run(network, conditions, text=None).sum().backward()
    for block in network.trunk:
        assert all(p.grad is None for p in block.streams["text"].parameters())
        assert all(p.grad is not None for p in block.streams["rna"].parameters())
    silenced = _run(network, conditions, text=None)
    with torch.no_grad():
        for block in network.trunk:
            block.streams["text"].out.weight.zero_()
            block.streams["text"].out.bias.zero_()
    torch.testing.assert_close(_run(network, conditions), silenced, rtol=0, atol=0)


def test_streams_and_samples_do_not_leak_into_each_other(network, conditions):
    before = _run(network, conditions)
    other_text = conditions["text"].clone()
    other_text[1] += 1
    after = _run(network, conditions, text=other_text)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert (after[1] - before[1]).abs().max() > 1e-6


def test_unconditional_case_runs_without_an_image_and_needs_something(network, conditions):
    assert _run(network, conditions, image=None).isfinite().all()
    with pytest.raises(ValueError, match="needs the H&E image or a noisy stain"):
        _run(network, conditions, image=None, noisy=None)


def test_windows_do_not_depend_on_which_tile_holds_them(network):
    """Shifting the input by whole windows shifts the output: nothing is relative to the tile."""
    side = 8 * SMALL.window_px
    image = torch.randn(1, 6, side, side, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    shift = 2 * SMALL.window_px
    network.time.float()
    whole = network(image, torch.ones(1))
    part = network(image[..., shift:, shift:], torch.ones(1))
    margin = 2 * SMALL.window_px
    torch.testing.assert_close(part[..., margin:, margin:], whole[..., shift + margin :, shift + margin :])


def test_parameter_count_of_the_shipped_model_is_within_its_budget():
    info = read_info(find_bundle("mupd-mini"))
    with torch.device("meta"):
        count = parameter_count(MuPDNetwork(info.network))
    assert 2 * count < 15_000_000


def test_config_survives_json_and_refuses_unknown_fields():
    assert NetworkConfig.from_json(SMALL.as_json()) == SMALL
    with pytest.raises(BundleError, match="unknown network field"):
        NetworkConfig.from_json(SMALL.as_json() | {"wings": 2})
    with pytest.raises(BundleError, match="incomplete"):
        NetworkConfig.from_json({})


def test_bf16_agrees_with_fp32_on_the_shipped_weights():
    stainers = [load_model("mupd-mini", device="cpu", precision=p) for p in ("fp32", "bf16")]
    rng = np.random.default_rng(0)
    tile = np.repeat(np.repeat(rng.integers(90, 240, (1, 32, 32, 3), np.uint8), 8, axis=1), 8, axis=2)
    exact, rough = (s.stain(tile, [(0, 0)], SampleOptions()) for s in stainers)
    for stainer in stainers:
        stainer.close()
    difference = np.sqrt(np.square(exact - rough).mean(axis=(0, 2, 3)))
    assert (difference < 0.1 * exact.std(axis=(0, 2, 3)) + 0.05).all()


def test_bundle_keeps_weights_and_hash(tmp_path):
    info = read_info(find_bundle("mupd-mini"))
    weights = read_weights(find_bundle("mupd-mini"), info)
    hashes = {write_bundle(tmp_path / str(i), info, weights).weights_sha256 for i in range(8)}
    assert len(hashes) == 1
    written = read_info(tmp_path / "0")
    assert replace(written, weights_sha256="") == replace(info, weights_sha256="")
    again = read_weights(tmp_path / "0", written)
    assert set(again) == set(weights)
    assert all((again[name] == weights[name]).all() for name in weights)


def test_guidance_leans_on_the_image(network, conditions):
    """Classifier-free guidance with the H&E as the condition: between and beyond the two predictions."""
    network.time.float()
    x, t = conditions["noisy"], torch.full((2,), 0.5)
    with_, without = network(conditions["image"], t, x), network(None, t, x)

    def predict(scale):
        return guided(lambda x, t: network(conditions["image"], t, x), lambda x, t: network(None, t, x), scale)(x, t)

    torch.testing.assert_close(predict(1.0), with_, rtol=0, atol=0)
    torch.testing.assert_close(predict(0.0), without)
    torch.testing.assert_close(predict(2.5), without + 2.5 * (with_ - without))
