"""The baselines are what they claim to be, and are measured as the model is."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from mupd_wsi.training import baselines
from mupd_wsi.training.neighbours import SlideOfTiles
from mupd_wsi.training.recipe import load_recipe
from mupd_wsi.training.tiles import PairedTiles, load_tiles
from mupd_wsi.training.unet import PlainUNet, unet_of_size

MARKERS = ("Hoechst", "CD8a", "Pan-CK")


@pytest.mark.parametrize(("of_roots", "amounts"), [(False, (60, 30, 5)), (True, (8, 4, 2))])
def test_linear_map_finds_a_stain_that_is_linear_in_density(paired_folder, of_roots, amounts):
    train = load_tiles(paired_folder, "train", MARKERS)
    around = SlideOfTiles(paired_folder)
    truth = np.zeros((19, 1))
    truth[[0, 4, 18], 0] = amounts
    made = []
    for place in train.places:
        rgb = around.read(place.x * 512 - 64, place.y * 512 - 64, 640)
        made.append(baselines.linear_prediction(truth, of_roots=of_roots)(rgb))
    stained = PairedTiles(train.places, train.he, np.clip(np.stack(made).round(), 0, 255).astype(np.uint8))
    found = baselines.linear_prediction(baselines.fit_linear(stained, around, of_roots=of_roots), of_roots=of_roots)
    rgb = around.read(-64, -64, 640)
    np.testing.assert_allclose(found(rgb), made[0], atol=1.0)


def test_unet_has_the_wanted_size_and_gives_the_stain_s_shape():
    network = unet_of_size(18, 6_440_000)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(6_440_000, rel=0.05)
    assert PlainUNet(3, 4)(torch.zeros(2, 6, 64, 96)).shape == (2, 3, 64, 96)


def test_all_are_measured_in_one_table(recipe_file, tmp_path, monkeypatch, capsys):
    recipe = recipe_file(batch=2, warmup=2)
    monkeypatch.setattr(
        sys, "argv", ["x", str(recipe), "--run", str(tmp_path / "run"), "--seconds", "6", "--device", "cpu"]
    )
    assert baselines.main() == 0
    shown = capsys.readouterr().out
    assert shown.startswith("| marker | mean stain | linear map | linear map of roots | U-Net (")
    assert [line.split(" |")[0] for line in shown.splitlines()[2:]] == [f"| {name}" for name in (*MARKERS, "mean")]
    tables = json.loads((tmp_path / "run" / "baselines.json").read_text())
    assert set(tables["mean stain"]["Hoechst"]) == {"mean_ratio"}  # it does not vary, so it correlates with nothing
    assert tables["mean stain"]["Hoechst"]["mean_ratio"] == pytest.approx(1, abs=0.1)
    assert tables["linear map"]["Hoechst"]["pearson_1px"] > 0.6


def test_unet_learns(recipe_file):
    recipe = load_recipe(recipe_file(warmup=2))
    train = load_tiles(recipe.data, "train", recipe.markers)
    network, steps = baselines.train_unet(recipe, train, 600.0, "cpu", steps=30)
    assert steps == 30
    around = SlideOfTiles(recipe.data)
    predict = baselines.unet_prediction(network, train, around, "cpu")
    table = baselines.predicted_table(predict, load_tiles(recipe.data, "dev", recipe.markers), around, recipe.markers)
    assert table["Hoechst"]["pearson_1px"] > 0.5
