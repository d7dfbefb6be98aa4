"""``mupd-wsi train`` from start to bundle: what it shows first, how it goes on, fine-tuning, and the adapters."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from pairs import recipe_values

from mupd_wsi import StainOptions, stain_slide
from mupd_wsi.cli.app import run
from mupd_wsi.errors import UsageError
from mupd_wsi.model import find_bundle, load_model, read_info
from mupd_wsi.model.network import MuPDNetwork
from mupd_wsi.training.adapters import add_adapters, merged
from mupd_wsi.training.finished import tile_shape
from mupd_wsi.training.recipe import load_recipe
from mupd_wsi.training.session import TrainOptions, train
from mupd_wsi.training.trainer import Trainer, autocast


def _options(folder, **changes):
    return TrainOptions(run=folder, device="cpu", **changes)


def test_training_shows_what_it_found_learns_and_makes_a_bundle_that_stains(recipe_file, tmp_path, cmu_slide, capsys):
    path = recipe_file(steps=60, validate_every=30, splits_within_slide=True)
    command = ["train", str(path), "--run", str(tmp_path / "run"), "--threads", "2", "--device", "cpu"]
    assert run([*command, "--json", "--tensorboard"]) == 0
    shown = capsys.readouterr()
    values = json.loads(shown.out)
    assert "registration: correlation 0.9" in shown.err
    assert "dev figures say nothing about other slides" in shown.err
    assert values["last_loss"] < 0.9 * values["first_loss"]  # running means, so the fall itself is larger
    assert values["metrics"]["dev"]["Hoechst"]["pearson_1px"] > 0.5
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    assert [int(row["step"]) for row in rows] == [10, 20, 30, 40, 50, 60]
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == ["step-000030.png", "step-000060.png"]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    stained = stain_slide(
        cmu_slide, ["Hoechst", "CD8"], model=tmp_path / "run" / "bundle", output=tmp_path / "x.ome.tiff",
        options=StainOptions(device="cpu"),
    )  # fmt: skip
    assert stained.output.is_file()
    assert run(command) == 2
    assert "--resume" in capsys.readouterr().err


def test_splits_that_share_a_slide_are_refused_unless_that_is_meant(recipe_file, tmp_path, capsys):
    assert run(["train", str(recipe_file()), "--run", str(tmp_path / "run")]) == 2
    assert "train and dev share pairs" in capsys.readouterr().err
    assert run(["train", str(recipe_file(splits_within_slide=True)), "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tiles"] == {"train": 2, "dev": 1}
    assert found["registration"]["train"]["correlation"] > 0.9
    assert found["registration"]["train"]["shift"] < 1


def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file(steps=12, validate_every=20, generative_from=0.3, color_jitter=0.5))
    whole = Trainer(recipe, tmp_path / "whole")
    whole.run(lambda _: None)
    first = Trainer(recipe, tmp_path / "parts")

    def stop(progress):
        if progress.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(stop)
    first.save()
    second = Trainer(recipe, tmp_path / "parts")
    second.resume()
    second.run(lambda _: None)
    for name, weight in whole.average.state_dict().items():
        torch.testing.assert_close(second.average.state_dict()[name], weight, rtol=0, atol=0)


@pytest.fixture(scope="module")
def base(paired_folder, tmp_path_factory):
    """A model of two markers; CD8a was left out of its training."""
    folder = tmp_path_factory.mktemp("base")
    settings = {"markers": ["Hoechst", "Pan-CK"], "steps": 100, "validate_every": 100}
    values = recipe_values(paired_folder, name="base", splits_within_slide=True, **settings)
    (folder / "base.yaml").write_text(yaml.safe_dump(values))
    train(load_recipe(folder / "base.yaml"), _options(folder / "run"))
    return folder / "run" / "bundle"


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_marker_is_added_from_few_tiles(base, recipe_file, tmp_path, tune):
    """CD8a was left out of the base; two tiles bring it in, and the others stay as good as they were."""
    settings = {"markers": ["Pan-CK", "CD8a", "Hoechst"], "network": {}, "splits_within_slide": True}
    recipe = load_recipe(recipe_file(**settings, tune=tune, start_from=str(base), steps=60, learning_rate=0.004))
    result = train(recipe, _options(tmp_path / "tuned"))
    before, after = read_info(base).metrics["dev"], result.info.metrics["dev"]
    assert result.info.panel.names == ("Pan-CK", "CD8a", "Hoechst")
    assert after["CD8a"]["pearson_1px"] > 0.25
    assert after["Hoechst"]["pearson_1px"] > before["Hoechst"]["pearson_1px"] - 0.05
    assert result.info.network == replace(read_info(base).network, targets=3)
    load_model(result.bundle, device="cpu").close()  # a plain network again, adapters merged


def test_a_start_keeps_the_trunk_and_gives_known_markers_their_old_answers(base, recipe_file, tmp_path):
    recipe = load_recipe(recipe_file(markers=["Pan-CK", "CD8a", "Hoechst"], network={}, start_from=str(base)))
    trainer = Trainer(recipe, tmp_path / "run")
    stainer = load_model(base, device="cpu", precision="fp32")
    old, new = stainer._network, trainer.network
    torch.testing.assert_close(new.trunk[0].query_key_value.weight, old.trunk[0].query_key_value.weight)
    image = torch.randn(1, 6, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        known = stainer.info.transform.roots(old(image, torch.ones(1)))
        started = trainer.transform.roots(new(image, torch.ones(1)))
    torch.testing.assert_close(started[:, [2, 0]], known, rtol=1e-2, atol=1e-2)
    stainer.close()


def test_adapters_change_nothing_at_first_train_little_and_merge(recipe_file):
    torch.manual_seed(0)
    config = load_recipe(recipe_file()).network_config
    network = MuPDNetwork(config)
    image, t = torch.randn(1, 6, 128, 128), torch.ones(1)
    before = network(image, t).detach()
    add_adapters(network, 2)
    torch.testing.assert_close(network(image, t).detach(), before)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert all(
        ".parametrizations." in name or name.split(".")[0] in ("head", "head_norm", "embed_noisy") for name in trained
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(".up"):
                parameter.normal_()
    plain = MuPDNetwork(config)
    plain.load_state_dict(merged(network.state_dict()))
    torch.testing.assert_close(plain(image, t), network(image, t), rtol=1e-4, atol=1e-4)
    assert (plain(image, t) - before).abs().max() > 1e-3


def test_another_shape_or_scale_cannot_be_started_from(base, recipe_file, tmp_path):
    with pytest.raises(UsageError, match="another shape"):
        Trainer(load_recipe(recipe_file(start_from=str(base), network={"trunk_width": 64})), tmp_path / "a")
    with pytest.raises(UsageError, match="um/px"):
        Trainer(load_recipe(recipe_file(start_from=str(base), network={}, mpp=0.5)), tmp_path / "b")


def test_tiles_of_the_shipped_shape_are_the_shipped_ones():
    info = read_info(find_bundle("mupd-mini"))
    assert tile_shape(info.network) == (info.tile, info.halo, info.lead)


def test_bf16_is_used_where_it_is_computed_and_nowhere_else(monkeypatch):
    for there in (True, False):
        monkeypatch.setattr("mupd_wsi.training.trainer.computes_in_bf16", lambda _, there=there: there)
        with autocast("cpu"):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if there else torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": "lora"}, "lora needs start_from"),
        ({"data": None}, "data .* or slides"),
        ({"stain": "ihc"}, "stain ihc"),
        ({"markers": ["CD8", "CD8a"]}, "different names"),
        ({"slides": [{"he": "a.svs"}]}, "without split, target"),
        ({"slides": [{"he": "a", "target": "b", "split": "test"}]}, "train or dev"),
        ({"slides": [{"he": "a", "target": "b", "split": "dev", "mpp": 1}]}, "unknown mpp"),
        ({"slides": [{"he": "a", "target": "b", "split": "dev", "affine": [[1, 0], [0, 1]]}]}, "two rows of three"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(recipe_file, changes, message):
    with pytest.raises(UsageError, match=message):
        load_recipe(recipe_file(**changes))


def test_recipe_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("a: [1")
    with pytest.raises(UsageError, match="not YAML"):
        load_recipe(tmp_path / "x.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")


def test_threads_have_to_divide_the_batch(recipe_file, tmp_path):
    with pytest.raises(UsageError, match="must divide"):
        train(load_recipe(recipe_file()), _options(tmp_path / "run", threads=3))
    assert not np.any([p.suffix == ".pt" for p in tmp_path.rglob("*")])
