"""Heads trained on the features of a network that is finished."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from pairs import recipe_values

from mupd_wsi.errors import UsageError
from mupd_wsi.model import load_model
from mupd_wsi.request import SampleOptions
from mupd_wsi.training.finished import least_squares, moved
from mupd_wsi.training.heads import HeadTrainer
from mupd_wsi.training.recipe import HEADS, Damping, load_recipe
from mupd_wsi.training.session import TrainOptions, train
from mupd_wsi.training.sources import open_pairs

SMALL_HEADS = {
    "pixel_width": 8,
    "density_squares": [1, 5],
    "decoder_width": 16,
    "decoder_depth": 1,
    "steps": 30,
    "batch": 2,
    "crop": 128,
    "variants": 2,
    "noise_blurs": [[0.5, 1.0], [3.0, 4.0]],
    "noise_gains": {"CD8a": [0.5, 0.25]},
}


@pytest.fixture(scope="module")
def trained(paired_folder, tmp_path_factory):
    """A recipe with heads, its run folder, and the bundle that came of it."""
    folder = tmp_path_factory.mktemp("heads")
    values = recipe_values(paired_folder, steps=20, validate_every=20, splits_within_slide=True, heads=SMALL_HEADS)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    recipe = load_recipe(folder / "recipe.yaml")
    told = []
    result = train(recipe, TrainOptions(run=folder / "run", device="cpu"), progress=told.append)
    return recipe, folder / "run", result, told


def test_heads_learn_and_leave_the_network_as_it_is(trained):
    recipe, run, result, told = trained
    losses = [one.loss for one in told if one.steps == SMALL_HEADS["steps"]]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    heads = torch.load(run / HEADS, weights_only=True)
    network = torch.load(run / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(heads["average"][name], value) for name, value in network["average"].items())
    assert result.info.network == recipe.finished_config
    assert result.info.noise_gains == ((1.0, 1.0), (0.5, 0.25), (1.0, 1.0))
    stainer = load_model(result.bundle, device="cpu")
    tile = np.full((1, result.info.tile, result.info.tile, 3), (180, 120, 170), np.uint8)
    for readout in ("mean", "sample"):
        stained = stainer.stain(tile, [(0, 0)], SampleOptions(readout, 2 if readout == "sample" else None))
        assert np.isfinite(stained).all()
        assert stained.max() > 0
    stainer.close()


def test_training_of_heads_goes_on_from_its_checkpoint(trained):
    recipe, run, _, _ = trained
    before = torch.load(run / HEADS, weights_only=True)["average"]
    steps = []
    with_more = HeadTrainer(recipe, run, open_pairs(recipe, run / "tiles"))
    with_more.run(steps.append)
    assert steps == []  # nothing was left to do
    after = torch.load(run / HEADS, weights_only=True)["average"]
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_read_out_is_the_best_linear_map_of_the_features(trained):
    """A little of any other head added to it makes the error on what it was fitted to larger."""
    recipe, run, _, _ = trained
    trainer = HeadTrainer(recipe, run, open_pairs(recipe, run / "tiles"))
    squares = trainer.squares()
    plain = [Damping(1e-10, 1e-10)] * len(recipe.markers)
    weights = least_squares(squares, recipe.finished_config.patch, plain)

    def error(head):
        total = 0.0
        for i, markers in enumerate(squares.markers[: squares.plain]):
            own = torch.from_numpy(squares.told(i)[1:-1, 1:-1]) @ head[:-1] + head[-1]
            inner = torch.from_numpy(np.ascontiguousarray(markers))[:, 2:-2, 2:-2].float()
            spoken = inner.unfold(1, 8, 4).unfold(2, 8, 4).permute(1, 2, 3, 4, 0).flatten(2)
            total += float((own - spoken).square().mean())
        return total

    generator = torch.Generator().manual_seed(0)
    best = error(weights)
    for _ in range(3):
        assert error(weights + 0.05 * weights.std() * torch.randn(weights.shape, generator=generator)) > best


def test_what_is_damped_of_a_marker_is_not_used_for_it_and_for_the_others_it_is(trained):
    recipe, run, _, _ = trained
    trainer = HeadTrainer(recipe, run, open_pairs(recipe, run / "tiles"))
    squares, patch, markers = trainer.squares(), recipe.finished_config.patch, len(recipe.markers)
    plain = least_squares(squares, patch, [Damping()] * markers).unflatten(1, (-1, markers))
    dampings = [Damping(views=1e9)] + [Damping()] * (markers - 1)
    damped = least_squares(squares, patch, dampings).unflatten(1, (-1, markers))
    width = squares.features.shape[-1]
    assert damped[width:-1, :, 0].abs().max() < 1e-6 < plain[width:-1, :, 0].abs().max()
    torch.testing.assert_close(damped[..., 1:], plain[..., 1:])


def test_turned_squares_are_views_of_the_same_pixels():
    planes = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(moved(planes, (1, False)), np.rot90(planes, axes=(1, 2)))
    assert np.array_equal(moved(planes, (0, True)), planes[:, :, ::-1])
    assert np.shares_memory(moved(planes, (3, True)), planes)


def test_heads_of_another_network_are_refused(trained, paired_folder):
    recipe, run, _, _ = trained
    values = recipe_values(paired_folder, heads=SMALL_HEADS)
    path = run / "other.yaml"
    path.write_text(yaml.safe_dump(values | {"network": values["network"] | {"trunk_depth": 2}}))
    with pytest.raises(UsageError, match="another network"):
        HeadTrainer(load_recipe(path), run, open_pairs(recipe, run / "tiles"))
