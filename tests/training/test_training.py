"""A real, small training: it learns, can be stopped, makes a bundle that stains, and refuses bad recipes."""

from __future__ import annotations

import pytest

from mupd_wsi.errors import UsageError
from mupd_wsi.model import load_model
from mupd_wsi.training.export import export
from mupd_wsi.training.recipe import load_recipe
from mupd_wsi.training.trainer import Trainer, learning_rate


def _train(recipe, folder, until=None):
    trainer, log = Trainer(recipe, folder), []
    trainer.resume()

    def report(progress):
        log.append(progress)
        if until is not None and progress.step >= until:
            raise KeyboardInterrupt

    try:
        trainer.run(report)
    except KeyboardInterrupt:
        trainer.save()
    return trainer, log


def test_training_learns_and_its_bundle_stains(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file())
    trainer, log = _train(recipe, tmp_path / "run")
    assert log[-1].step == 60
    assert log[-1].loss < 0.9 * log[0].loss  # running means, so the fall itself is larger
    assert trainer.dev_pearson()[0] > 0.5
    info = export(recipe, tmp_path / "run", tmp_path / "bundle")
    assert info.panel.names == recipe.markers
    assert info.metrics["dev"]["Hoechst"]["pearson_1px"] > 0.5
    assert info.metrics["dev"]["Hoechst"]["mean_ratio"] == pytest.approx(1, abs=0.3)
    stainer = load_model(tmp_path / "bundle", device="cpu")
    assert stainer.info == info
    stainer.close()
    lines = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert len(lines) == 1 + len(log)


def test_stopped_training_goes_on_where_it_was(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file(steps=20, validate_every=20))
    _, first = _train(recipe, tmp_path / "run", until=10)
    trainer, second = _train(recipe, tmp_path / "run")
    assert [p.step for p in first] == [10]
    assert [p.step for p in second] == [20]
    assert trainer.step == 20


def test_same_seed_gives_the_same_weights(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file(steps=10, generative_from=0.5))
    weights = [_train(recipe, tmp_path / name)[0].network.state_dict() for name in ("a", "b")]
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])


def test_learning_rate_warms_up_and_decays(recipe_file):
    recipe = load_recipe(recipe_file(steps=100, warmup=10, learning_rate=1.0))
    rates = [learning_rate(recipe, step) for step in range(101)]
    assert rates[9] == max(rates) == 1.0
    assert rates[0] == pytest.approx(0.1)
    assert rates[100] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stpes": 3}, "unknown setting"),
        ({"crop": 100}, "multiple of 128"),
        ({"network": {"wings": 2}}, "unknown network field"),
    ],
)
def test_bad_recipes_are_refused(recipe_file, changes, message):
    with pytest.raises((UsageError, ValueError), match=message):
        load_recipe(recipe_file(**changes))


def test_file_that_is_no_recipe_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("- just\n- a list\n")
    with pytest.raises(UsageError, match="not a recipe"):
        load_recipe(path)
    path.write_text("name: x\n")
    with pytest.raises(UsageError, match="incomplete"):
        load_recipe(path)
