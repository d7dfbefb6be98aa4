"""The check measures anew, and sees a wrong figure, a wrong page and damaged weights."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from pairs import recipe_values

from mupd_wsi.model.bundle import CARD_FILE, WEIGHTS_FILE
from mupd_wsi.training import weights_check
from mupd_wsi.training.measure import markdown_table
from mupd_wsi.training.recipe import load_recipe
from mupd_wsi.training.session import TrainOptions, train


@pytest.fixture(scope="module")
def trained(paired_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked")
    network = {"stage_widths": [8], "stage_depths": [1], "trunk_width": 16, "trunk_depth": 1, "trunk_heads": 2}
    settings = {"network": network, "steps": 10, "batch": 2, "warmup": 1, "sample_steps": 1, "validate_every": 10}
    recipe = recipe_values(paired_folder, markers=["Hoechst", "CD8a"], splits_within_slide=True, **settings)
    (folder / "r.yaml").write_text(json.dumps(recipe))
    result = train(load_recipe(folder / "r.yaml"), TrainOptions(run=folder / "run", device="cpu"))
    tables = "\n\n".join(markdown_table(result.info.metrics[split]) for split in ("dev", "dev_sample"))
    (folder / "page.md").write_text(f"# tiny 0.1.0\n\n{result.info.weights_sha256}\n\n{tables}")
    return folder


@pytest.fixture
def check(trained, tmp_path, paired_folder, monkeypatch, capsys):
    bundle = shutil.copytree(trained / "run" / "bundle", tmp_path / "bundle")
    page = shutil.copy(trained / "page.md", tmp_path / "page.md")

    def run():
        arguments = ["x", str(bundle), "--data", str(paired_folder), "--page", str(page)]
        monkeypatch.setattr(sys, "argv", arguments)
        code = weights_check.main()
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return bundle, page, run


def test_a_true_card_passes_and_shows_what_was_compared(check):
    code, shown = check[2]()
    assert code == 0, shown
    for text in ("SHA-256", "size 0.", "card, mean: mean ", "card, sample", "page, mean", "page, sample"):
        assert text in shown
    assert "OFF" not in shown


def test_a_wrong_figure_on_the_card_is_named(check):
    bundle, _, run = check
    card = json.loads((bundle / CARD_FILE).read_text())
    card["metrics"]["dev"]["CD8a"]["pearson_8px"] += 0.1
    (bundle / CARD_FILE).write_text(json.dumps(card))
    code, shown = run()
    assert code == 1
    assert "card, mean: CD8a pearson_8px is " in shown


@pytest.mark.parametrize(("old", "new"), [("# tiny 0.1.0", "# tiny 0.0.9"), ("| Hoechst | ", "| Hoechst | 9")])
def test_a_wrong_page_is_seen(check, old, new):
    _, page, run = check
    page.write_text(page.read_text().replace(old, new))
    assert run()[0] == 1


def test_damaged_weights_are_an_error(check):
    bundle, _, run = check
    content = bytearray((bundle / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (bundle / WEIGHTS_FILE).write_bytes(content)
    code, shown = run()
    assert code == 3
    assert "damaged" in shown
