"""What the shipped network sees: its halo is its measured receptive field, neither thinner nor wider."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mupd_wsi.engine.overlap import Stopwatch
from mupd_wsi.engine.resources import opened_job
from mupd_wsi.geometry import Region
from mupd_wsi.model import load_model
from mupd_wsi.model.features import image_features
from mupd_wsi.pipeline import StainOptions
from mupd_wsi.rendering import to_planes

#: A core of one window in the middle of an image, so that there is something beyond the halo on every side.
CORE, BEYOND = 128, 128


@pytest.fixture(scope="module")
def stainer():
    loaded = load_model("mupd-mini", device="cpu", precision="fp32", batch_size=2)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def core_of(stainer):
    """The network in fp64 on an image whose core lies ``BEYOND + halo`` px from its edges: x0 of the core."""
    network = load_model("mupd-mini", device="cpu", precision="fp32", batch_size=1)._network.double()
    network.time.float()
    halo, stride = stainer.info.halo, stainer.info.network.trunk_stride
    assert BEYOND % stainer.info.network.window_px == 0  # so that windows lie to the core as they do in a tile

    def run(rgb):
        pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None].double()
        with torch.inference_mode():
            x0 = network(image_features(pixels), torch.ones(1), lead=stainer.info.lead // stride)
        inner = slice(BEYOND + halo, -BEYOND - halo)
        return x0[0, :, inner, inner].numpy()

    return run


def test_the_halo_is_the_measured_receptive_field(stainer, core_of):
    """Blacken one pixel on each side: just outside the halo the core does not change, just inside it does."""
    halo = stainer.info.halo
    side = CORE + 2 * (halo + BEYOND)
    rng = np.random.default_rng(0)
    rgb = rng.integers(100, 240, (side, side, 3)).astype(np.uint8)
    before = core_of(rgb)
    first, last, middle = BEYOND, side - BEYOND - 1, side // 2
    outside = rgb.copy()
    for y, x in ((middle, first - 1), (middle, last + 1), (first - 1, middle), (last + 1, middle)):
        outside[y, x] = 0
    assert np.abs(core_of(outside) - before).max() < 1e-12
    for y, x in ((middle, first), (last, middle)):
        inside = rgb.copy()
        inside[y, x] = 0
        assert np.abs(core_of(inside) - before).max() > 1e-9


@pytest.mark.parametrize("steps", [None, 3])
def test_tiles_give_what_one_piece_gives(steps, stainer, cmu_slide, tmp_path):
    """A place where four tiles meet, cut out of them, and stained in one run of the network: within a grey level.

    A draw looks further than the halo with every step, and with less and less weight: within a grey level all the same.
    """
    info, options = stainer.info, StainOptions(steps=steps, style="mif")
    core, halo = info.tile - 2 * info.halo, info.halo
    with opened_job(cmu_slide, "all", stainer, tmp_path / "o.ome.tiff", options, Stopwatch()) as job:
        place = Region(core - 128, core - 128, 256, 256)
        tiles = [tile for tile in job.grid.tiles() if tile.core.intersection(place) is not None]
        assert len(tiles) == 4
        joined = np.zeros((len(job.channels), 256, 256), np.float32)
        for tile, planes in zip(tiles, job.stain(tiles, [job.read(tile) for tile in tiles]), strict=True):
            shared = tile.core.intersection(place)
            there = planes[:, shared.y - tile.core.y :, shared.x - tile.core.x :][:, : shared.height, : shared.width]
            joined[:, shared.y - place.y :, shared.x - place.x :][:, : shared.height, : shared.width] = there
        seen = place.grown(halo)
        assert (seen.x + info.lead) % info.network.window_px == (info.lead - halo) % info.network.window_px
        rgb = job.slide.read(seen, job.mpp)
        rgb = rgb if job.recolor is None else job.recolor.apply(rgb)
        whole = stainer.stain(rgb[None], [(seen.x, seen.y)], job.sampling, job.channels, halo)[0]
        difference = to_planes(joined, job.windows).astype(int) - to_planes(whole, job.windows)
    assert np.abs(difference).max() <= 1
    assert np.abs(difference).mean() < 0.01
    assert joined.std() > 1
