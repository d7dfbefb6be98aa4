"""A real, small training: it learns, can be stopped, makes a bundle that stains, and refuses bad recipes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mupd_wsi.errors import UsageError
from mupd_wsi.model import load_model
from mupd_wsi.model.config import NetworkConfig
from mupd_wsi.model.network import MuPDNetwork
from mupd_wsi.model.transform import TargetTransform
from mupd_wsi.training.export import export
from mupd_wsi.training.objective import Objective
from mupd_wsi.training.recipe import load_recipe
from mupd_wsi.training.replicas import Replicas
from mupd_wsi.training.trainer import Trainer, learning_rate


def _train(recipe, folder, until=None, threads=1):
    trainer, log = Trainer(recipe, folder, threads), []
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


def test_shares_of_a_batch_give_the_gradient_of_the_whole():
    torch.manual_seed(0)
    network = MuPDNetwork(NetworkConfig(targets=2, stage_widths=(8,), stage_depths=(1,), trunk_width=16, trunk_heads=2))
    image, real = torch.randn(4, 6, 64, 64), torch.randn(4, 2, 64, 64)

    def loss(net, part):
        return (net(image[part], torch.ones(2)) - real[part]).square().mean()

    value = Replicas(network, 2).backward(loss, [slice(0, 2), slice(2, 4)])
    whole = (network(image, torch.ones(4)) - real).square().mean()
    assert value == pytest.approx(float(whole.detach()), rel=1e-5)
    names = [name for name, parameter in network.named_parameters() if parameter.grad is not None]
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    network.zero_grad()
    whole.backward()
    assert names
    for name in names:
        torch.testing.assert_close(gradients[name], network.get_parameter(name).grad, rtol=1e-3, atol=1e-6)


def test_intensity_loss_is_least_at_the_expected_intensity_and_ignores_dust():
    """The mean of roots is below the root of the mean; intensities pull the read-out up to it."""
    rng = torch.Generator().manual_seed(0)
    real = (torch.rand(64, 1, 32, 32, generator=rng) < 0.05) * 100.0
    transform = TargetTransform((1.0,), (2.0,))
    dusty = real.clone()
    dusty[0, :, :4, :4] = 255
    objective = Objective.from_crops(dusty, transform, 1.0)
    assert float(objective.ceiling) == 100
    levels = torch.linspace(0.1, 30, 300)
    errors = [
        float(objective.readout(transform.standardise(level.expand(real.shape)), transform.standardise(real)))
        for level in levels
    ]
    assert float(levels[int(np.argmin(errors))]) == pytest.approx(float(real.mean()), rel=0.05)
    assert float(real.sqrt().mean() ** 2) < 0.1 * float(real.mean())


def test_training_goes_on_from_a_bundle_of_the_same_shape(recipe_file, tmp_path):
    first = load_recipe(recipe_file(steps=10))
    trainer, _ = _train(first, tmp_path / "first")
    export(first, tmp_path / "first", tmp_path / "bundle")
    second = load_recipe(recipe_file(start_from=str(tmp_path / "bundle"), intensity_share=0.5, generative_share=0.25))
    started = Trainer(second, tmp_path / "second").network.state_dict()
    for name, weight in trainer.average.state_dict().items():
        torch.testing.assert_close(started[name], weight.half().float())
    wider = load_recipe(recipe_file(start_from=str(tmp_path / "bundle"), network={"trunk_width": 64}))
    with pytest.raises(UsageError, match="cannot start from tiny"):
        Trainer(wider, tmp_path / "third")


def test_learning_rate_warms_up_and_decays():
    rates = [learning_rate(1.0, warmup=10, steps=100, step=step) for step in range(101)]
    assert rates[9] == max(rates) == 1.0
    assert rates[0] == pytest.approx(0.1)
    assert rates[100] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stpes": 3}, "unknown setting"),
        ({"crop": 100}, "multiple of 128"),
        ({"generative_share": 1}, "generative_share must lie"),
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
