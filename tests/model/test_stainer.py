"""The shipped model on real tissue: deterministic, halo wide enough, damaged bundles refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import openslide
import pytest
import torch

from mupd_wsi.errors import BundleError, UsageError
from mupd_wsi.model import SampleOptions, find_bundle, load_model, read_info
from mupd_wsi.model.bundle import CARD_FILE, WEIGHTS_FILE
from mupd_wsi.model.devices import computes_in_bf16
from mupd_wsi.model.features import features_of, image_features
from mupd_wsi.rendering import to_planes


@pytest.fixture(scope="module")
def tissue(cmu_slide):
    """896 x 896 px of real H&E at about 1.25 um/px."""
    with openslide.OpenSlide(str(cmu_slide)) as slide:
        level0 = np.asarray(slide.read_region((0, 0), 0, (2220, 2240)).convert("RGB"))
    small = level0[: 2240 // 5 * 5, :2220].reshape(448, 5, 444, 5, 3).mean(axis=(1, 3))
    return np.ascontiguousarray(np.pad(small, ((0, 448), (0, 452), (0, 0)), mode="reflect").round().astype(np.uint8))


@pytest.fixture(scope="module")
def stainer():
    loaded = load_model("mupd-mini", device="cpu", precision="fp32", batch_size=2)
    yield loaded
    loaded.close()


def _tiles(tissue, side, corners):
    return np.stack([tissue[y : y + side, x : x + side] for x, y in corners])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("readout", ["mean", "sample"])
def test_result_does_not_depend_on_threads_or_batch(tissue, readout, precision):
    options = SampleOptions(readout=readout, steps=2, seed=5)
    corners = [(0, 0), (128, 0), (0, 128)]
    several, single = (load_model("mupd-mini", device="cpu", precision=precision, batch_size=n) for n in (2, 1))
    together = several.stain(_tiles(tissue, 256, corners), corners, options)
    alone = [single.stain(_tiles(tissue, 256, [c]), [c], options) for c in corners]
    several.close()
    single.close()
    np.testing.assert_array_equal(together, np.concatenate(alone))
    assert together.shape == (3, 18, 256, 256)
    assert together.min() >= 0
    assert together.max() <= 255


def test_a_tile_with_its_halo_equals_the_same_place_in_one_run(tissue, stainer):
    """Nothing beyond the halo is seen, so that tiles join without a seam; a thinner halo would not do."""
    info, core = stainer.info, 256
    side = core + 2 * info.halo
    offset = 128
    whole = stainer.stain(tissue[None, :768, :768], [(-info.halo, -info.halo)], SampleOptions())[0]
    window = np.s_[offset : offset + side, offset : offset + side]
    part = stainer.stain(tissue[None][:, *window], [(offset - info.halo,) * 2], SampleOptions())[0]
    difference = np.abs(part - whole[:, *window])
    inner = np.s_[:, info.halo : -info.halo, info.halo : -info.halo]
    thinner = np.s_[:, info.halo - 48 : 48 - info.halo, info.halo - 48 : 48 - info.halo]
    assert difference[inner].max() < 1e-3
    assert difference[thinner].max() > 1e-2


@pytest.mark.parametrize("readout", ["mean", "sample"])
def test_leaving_the_halo_out_changes_nothing_inside_it(tissue, stainer, readout):
    """What is not needed for the core is not computed, and the core comes out the same."""
    tile, options, halo = tissue[None, : stainer.info.tile, : stainer.info.tile], SampleOptions(readout, 2), 112
    assert stainer.info.halo == halo
    whole = stainer.stain(tile, [(0, 0)], options)[:, :, halo:-halo, halo:-halo]
    core = stainer.stain(tile, [(0, 0)], options, margin=halo)
    np.testing.assert_allclose(core, whole, atol=1e-3)


def test_channels_can_be_chosen_and_keep_their_order(tissue, stainer):
    tile, origin = tissue[None, :256, :256], [(0, 0)]
    everything = stainer.stain(tile, origin, SampleOptions())
    chosen = stainer.stain(tile, origin, SampleOptions(), channels=(7, 0))
    np.testing.assert_array_equal(chosen, everything[:, [7, 0]])


def test_bf16_stays_within_its_stated_bound(tissue, stainer):
    """docs/decisions/0004: in grey levels of the written channels, on real tissue."""
    info, halo = stainer.info, stainer.info.halo
    tile = tissue[None, : 256 + 2 * halo, : 256 + 2 * halo]
    rough = load_model("mupd-mini", device="cpu", precision="bf16", batch_size=1)
    windows = np.array(info.display_window["mean"], np.float32) * (0, 1)
    levels = [
        to_planes(s.stain(tile, [(0, 0)], SampleOptions(), margin=halo)[0], windows.astype(np.float32)).astype(int)
        for s in (stainer, rough)
    ]
    rough.close()
    difference = np.abs(levels[0] - levels[1])
    assert difference.mean() < 0.2
    assert (difference > 1).mean() < 0.01
    assert difference.max() <= 8


@pytest.mark.parametrize(
    ("flags", "expected"), [("avx512f avx512_bf16", False), ("avx512_bf16 amx_bf16 amx_tile", True), ("", False)]
)
def test_bf16_is_taken_where_it_is_the_faster(monkeypatch, flags, expected):
    monkeypatch.setattr("mupd_wsi.model.devices._cpu_flags", lambda: flags)
    assert computes_in_bf16("cpu") is expected


def test_looked_up_features_are_the_computed_ones():
    rgb = np.random.default_rng(0).integers(0, 256, (2, 17, 23, 3), dtype=np.uint8)
    computed = image_features(torch.from_numpy(rgb).permute(0, 3, 1, 2).float())
    assert torch.equal(features_of(rgb), computed)


def test_seed_changes_the_sample_and_not_the_mean(tissue, stainer):
    tile, origin = tissue[None, :256, :256], [(0, 0)]

    def draw(readout, seed):
        return stainer.stain(tile, origin, SampleOptions(readout=readout, steps=2, seed=seed))

    np.testing.assert_array_equal(draw("mean", 1), draw("mean", 2))
    np.testing.assert_array_equal(draw("sample", 1), draw("sample", 1))
    assert np.abs(draw("sample", 1) - draw("sample", 2)).mean() > 1e-3


def test_haematoxylin_drives_the_nuclear_channel(tissue, stainer):
    """Dark blue nuclei are where Hoechst is bright: on CMU-1, a slide from another scanner than the training's."""
    tile = tissue[:384, :384]
    hoechst = stainer.stain(tile[None], [(0, 0)], SampleOptions(), channels=(0,))[0, 0]
    red = tile[..., 0].astype(float)
    assert np.corrcoef(255 - red.ravel(), hoechst.ravel())[0, 1] > 0.4


@pytest.fixture
def copied_bundle(tmp_path):
    return shutil.copytree(find_bundle("mupd-mini"), tmp_path / "bundle")


def test_bundle_folder_loads_like_the_name(copied_bundle):
    assert read_info(copied_bundle) == read_info(find_bundle("mupd-mini"))


def test_tampered_weights_are_refused(copied_bundle):
    weights = copied_bundle / WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match="damaged or was changed"):
        load_model(copied_bundle, device="cpu")


def _rewrite_card(bundle, **changes):
    card = json.loads((bundle / CARD_FILE).read_text()) | changes
    (bundle / CARD_FILE).write_text(json.dumps({k: v for k, v in card.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, "unknown model field"),
        ({"mpp": None}, "not a model card"),
        ({"panel": [{"name": "CD8a", "color": [0, 255, 0]}]}, "1 markers, but"),
        ({"tile": 600}, "must be a multiple of"),
        ({"calibration": {"low": [0], "high": [0], "intensities": [[0, 1]]}}, "must end above"),
    ],
)
def test_damaged_cards_are_refused(copied_bundle, changes, message):
    _rewrite_card(copied_bundle, **changes)
    with pytest.raises(BundleError, match=message):
        read_info(copied_bundle)


def test_card_that_is_no_json_and_missing_bundles_are_refused(copied_bundle, tmp_path):
    (copied_bundle / CARD_FILE).write_bytes(b"\xff\x00")
    with pytest.raises(BundleError, match="not a model card"):
        read_info(copied_bundle)
    with pytest.raises(BundleError, match="or name: mupd-mini"):
        find_bundle(tmp_path / "nowhere")
    (copied_bundle / WEIGHTS_FILE).unlink()


def test_missing_weights_are_refused(copied_bundle):
    (copied_bundle / WEIGHTS_FILE).unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        load_model(copied_bundle, device="cpu")


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cuda:x"])
def test_devices_that_are_not_there_are_refused(device):
    with pytest.raises(UsageError, match="device"):
        load_model("mupd-mini", device=device)


@pytest.mark.parametrize(("steps", "seed"), [(0, 0), (4, -1), (4, 2**64)])
def test_options_check_themselves(steps, seed):
    with pytest.raises(UsageError):
        SampleOptions(steps=steps, seed=seed)


def test_every_public_name_can_be_imported() -> None:
    from mupd_wsi import model

    assert all(getattr(model, name) is not None for name in model.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = model.no_such_name
