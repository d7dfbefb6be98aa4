"""mupd-xl: its size, its streams, its read-out, and the way from picture to picture. Small networks, random weights."""

from __future__ import annotations

import pytest
import torch

from mupd_wsi.errors import BundleError, UsageError
from mupd_wsi.model.flow import euler_states, read_out
from mupd_wsi.model.guidance import guided
from mupd_wsi.model.latents import DiffusersCodec, load_codec, stain_picture
from mupd_wsi.model.network import parameter_count
from mupd_wsi.model.xl import MUPD_XL, MuPDXL, XLConfig, grid_positions

SMALL = XLConfig(width=32, depth=2, heads=4, image_width=12, text_width=10, rna_width=6)


@pytest.fixture
def network():
    """Small, in fp64, with its zero-initialised parts filled."""
    torch.manual_seed(0)
    net = MuPDXL(SMALL).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    net.time.float()
    return net


def _normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def inputs():
    contexts = {"image": _normal(2, 5, 12), "text": _normal(2, 3, 10), "rna": _normal(2, 4, 6)}
    return {"he": _normal(2, 4, 8, 12), "noisy": _normal(2, 4, 8, 12, seed=2), "contexts": contexts}


def _run(network, inputs, **changes):
    return network(t=torch.full((2,), 0.5), **(inputs | changes))


def test_mupd_xl_has_the_paper_s_size():
    with torch.device("meta"):
        network = MuPDXL(MUPD_XL)
        bare = MuPDXL(XLConfig(image_width=0, text_width=0, rna_width=0))
        out = network(torch.empty(1, 4, 64, 64), torch.empty(1), contexts={"text": torch.empty(1, 7, 768)})
    assert 1.35e9 < parameter_count(network) < 1.50e9
    assert parameter_count(bare) == pytest.approx(0.71e9, rel=0.02)  # SiT-XL/2, and queries for streams to come
    assert out.shape == (1, 4, 64, 64)


def test_output_has_the_shape_of_the_latents(network, inputs):
    assert _run(network, inputs).shape == (2, 4, 8, 12)
    with pytest.raises(ValueError, match="needs the H&E's latents or a noisy stain"):
        _run(network, inputs, he=None, noisy=None)


def test_absent_streams_add_exactly_nothing_and_have_no_gradient(network, inputs):
    some = {"image": inputs["contexts"]["image"]}
    _run(network, inputs, contexts=some).sum().backward()
    for block in network.blocks:
        for name, stream in block.streams.items():
            assert all((p.grad is None) == (name != "image") for p in stream.parameters())
    without = _run(network, inputs, contexts=some)
    with torch.no_grad():
        for block in network.blocks:
            for name in ("text", "rna"):
                block.streams[name].attention.out.weight.zero_()
                block.streams[name].attention.out.bias.zero_()
    torch.testing.assert_close(_run(network, inputs), without, rtol=0, atol=0)


def test_a_fresh_network_listens_to_no_stream_yet():
    torch.manual_seed(0)
    block = MuPDXL(SMALL).double().blocks[0]
    x, time = _normal(2, 6, 32), _normal(2, 32, seed=3)
    answered = block(x, time, {"text": _normal(2, 3, 10)})
    torch.testing.assert_close(answered, block(x, time, {}), rtol=0, atol=0)


def test_streams_and_samples_do_not_leak_into_each_other(network, inputs):
    before = _run(network, inputs)
    other = inputs["contexts"]["text"].clone()
    other[1] += 1
    after = _run(network, inputs, contexts=inputs["contexts"] | {"text": other})
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert (after[1] - before[1]).abs().max() > 1e-6
    block, x, time = network.blocks[0], _normal(2, 6, 32), _normal(2, 32, seed=3)
    query = block._heads(block.cross_query(block.norms[1](x)))
    alone = [block.streams[n](query, c, time) for n, c in inputs["contexts"].items()]
    reverse = dict(reversed(inputs["contexts"].items()))
    torch.testing.assert_close(block(x, time, inputs["contexts"]), block(x, time, reverse))
    assert len({float(a.detach().sum()) for a in alone}) == 3


def test_the_read_out_is_minus_v_and_one_euler_step(network, inputs):
    def predict(x, t):
        return network(inputs["he"], t, x, inputs["contexts"])

    out = read_out(predict, 2, torch.device("cpu"))
    (stepped,) = euler_states(predict, torch.zeros_like(inputs["he"]), 1)
    torch.testing.assert_close(stepped, out)
    velocity = {}
    network.head.register_forward_hook(lambda _m, _i, o: velocity.update(v=o))
    predict(None, torch.ones(2))
    assert float(velocity["v"].detach().abs().sum()) == pytest.approx(float(out.detach().abs().sum()))


def test_guidance_is_linear_and_one_is_the_conditional_alone(network, inputs):
    calls = []

    def conditional(x, t):
        calls.append("with")
        return network(inputs["he"], t, x, inputs["contexts"])

    def unconditional(x, t):
        calls.append("without")
        return network(None, t, x)

    x, t = inputs["noisy"], torch.full((2,), 0.7)
    with_, without = conditional(x, t), unconditional(x, t)
    calls.clear()
    torch.testing.assert_close(guided(conditional, unconditional, 1.0)(x, t), with_, rtol=0, atol=0)
    assert calls == ["with"]
    torch.testing.assert_close(guided(conditional, unconditional, 0.0)(x, t), without)
    torch.testing.assert_close(guided(conditional, unconditional, 3.0)(x, t), 3 * with_ - 2 * without)


def test_positions_tell_rows_from_columns():
    places = grid_positions(5, 7, 16)[0]
    assert len(torch.unique(places, dim=0)) == 35
    wide, tall = grid_positions(1, 3, 16)[0], grid_positions(3, 1, 16)[0]
    torch.testing.assert_close(wide, tall.roll(8, dims=1))


def test_bf16_agrees_with_fp32(inputs):
    torch.manual_seed(0)
    network = MuPDXL(SMALL)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    he, t = inputs["he"].float(), torch.ones(2)
    exact = network(he, t)
    rough = network.as_precision(torch.bfloat16)(he.bfloat16(), t)
    assert rough.dtype == torch.float32
    assert (rough - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()


class _Pooling:
    """Stands in for an autoencoder: means over 8 x 8 px, and back."""

    def encode(self, rgb):
        pooled = torch.nn.functional.avg_pool2d(rgb / 127.5 - 1, 8)
        return torch.cat([pooled, pooled[:, :1]], dim=1)

    def decode(self, latents):
        wide = torch.nn.functional.interpolate(latents[:, :3], scale_factor=8)
        return ((wide + 1) * 127.5).clamp(0, 255)


def test_a_picture_becomes_a_picture_of_its_size(inputs):
    torch.manual_seed(0)
    network, rgb = MuPDXL(SMALL), torch.rand(2, 3, 64, 96) * 255
    contexts = {name: c.float() for name, c in inputs["contexts"].items()}
    grey = stain_picture(network, _Pooling(), rgb, contexts)
    torch.testing.assert_close(grey, torch.full_like(rgb, 127.5))  # a fresh head says v = 0, so x0 = 0
    noise = torch.randn(2, 4, 8, 12)
    drawn = stain_picture(network, _Pooling(), rgb, contexts, noise=noise, steps=3, guidance=2.0)
    torch.testing.assert_close(drawn, _Pooling().decode(noise))


def test_without_an_autoencoder_one_is_told_what_to_do(tmp_path):
    with pytest.raises((UsageError, BundleError), match=r"mupd-wsi\[xl\]|no autoencoder"):
        load_codec(tmp_path)


def test_diffusers_autoencoder_takes_the_mean_and_comes_back(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="the extra mupd-wsi[xl]")
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "latent_channels": 4, "layers_per_block": 1}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    diffusers.AutoencoderKL(**sizes, **kinds).save_pretrained(tmp_path)
    codec = load_codec(tmp_path)
    assert isinstance(codec, DiffusersCodec)
    rgb = torch.rand(1, 3, 64, 64) * 255
    latents = codec.encode(rgb)
    assert latents.shape == (1, 4, 8, 8)
    torch.testing.assert_close(codec.encode(rgb), latents, rtol=0, atol=0)
    assert codec.decode(latents).shape == rgb.shape
