"""Pairs of whole slides: read as staining reads them, registered, scaled, and their splits kept apart."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing

import numpy as np
import pytest
import tifffile
import yaml
from pairs import paired_pixels, write_channels, write_rgb

from mupd_wsi.cli.app import run
from mupd_wsi.errors import UsageError
from mupd_wsi.geometry import Mpp
from mupd_wsi.rendering import to_brightfield
from mupd_wsi.training.manifest import affine_of_landmarks, find_leakage
from mupd_wsi.training.preflight import look_before
from mupd_wsi.training.recipe import load_recipe
from mupd_wsi.training.registration import measure_registration
from mupd_wsi.training.sources import open_pairs


def _recipe(folder, slides, **changes):
    values = {"name": "pairs", "mpp": 1.3, "markers": ["Hoechst", "CD8a"], "crop": 128, "slides": slides} | changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return load_recipe(folder / "recipe.yaml")


@pytest.fixture
def opened():
    """Opens pairs, and closes them after the test."""
    with ExitStack() as stack:
        yield lambda recipe, cache: stack.enter_context(closing(open_pairs(recipe, cache)))


@pytest.fixture
def slides(tmp_path):
    """Two pairs, of 1024 x 1100 px at 0.65 um/px: 512 x 550 at the recipe's."""
    entries = []
    for number, split in enumerate(("train", "dev")):
        he, planes = paired_pixels(number, 1100, 1024)
        write_rgb(tmp_path / f"he{number}.tif", he, 0.65)
        write_channels(tmp_path / f"mif{number}.ome.tiff", planes, ("CD8", "DAPI"), 0.65)
        entries.append(
            {"he": f"he{number}.tif", "target": f"mif{number}.ome.tiff", "split": split, "patient": f"P{number}"}
        )
    return entries


def test_tiles_of_slides_are_the_pixels_that_staining_reads(slides, tmp_path, opened):
    pairs = opened(_recipe(tmp_path, slides), tmp_path / "cache")
    train = pairs.tiles("train")
    he, planes = paired_pixels(0, 1100, 1024)
    assert train.he.shape == (1, 512, 512, 3)
    halved = he[:1024].reshape(512, 2, 512, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(train.he[0].astype(float), halved, atol=0.51)
    means = planes[:, :1024].reshape(2, 512, 2, 512, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(train.markers[0].astype(float), means[::-1], atol=0.51)  # asked for in another order
    place = train.places[0]
    around = pairs.around().read(place.x * 512 - 32, place.y * 512, 544)
    np.testing.assert_array_equal(around[:512, 32:], train.he[0])
    assert (around[:, :32] == 245).all()
    assert pairs.tiles("dev").places[0].x >= 4  # beside the first slide, on the same raster


def test_kept_tiles_are_used_again_and_made_anew_when_the_recipe_changes(slides, tmp_path, opened):
    recipe = _recipe(tmp_path, slides)
    first = opened(recipe, tmp_path / "cache").tiles("train").markers[0].copy()
    kept = tmp_path / "cache" / "train-markers.npy"
    stored = np.lib.format.open_memmap(kept, mode="r+")
    stored[:] = 7
    stored.flush()
    assert (opened(recipe, tmp_path / "cache").tiles("train").markers == 7).all()
    other = _recipe(tmp_path, slides, markers=["CD8a", "Hoechst"])
    np.testing.assert_array_equal(opened(other, tmp_path / "cache").tiles("train").markers[0], first[::-1])


def test_sixteen_bits_become_grey_levels_by_the_train_slides(slides, tmp_path, opened):
    _, planes = paired_pixels(0, 1100, 1024)
    write_channels(tmp_path / "mif0.ome.tiff", planes.astype(np.uint16) * 200, ("CD8", "DAPI"), 0.65)
    pairs = opened(_recipe(tmp_path, slides), tmp_path / "cache")
    tile = pairs.tiles("train").markers[0]
    assert np.quantile(tile, 0.999, axis=(1, 2)) == pytest.approx([255, 255], abs=8)
    assert pairs.described()["grey_255"]["Hoechst"] > 10_000


def test_a_shifted_target_is_brought_back_by_affine_or_landmarks(slides, tmp_path, opened):
    _, planes = paired_pixels(0, 1100, 1024)
    straight = opened(_recipe(tmp_path, slides), tmp_path / "a").tiles("train").markers[0]
    moved = np.roll(planes, (20, 12), axis=(1, 2))  # 13 um down, 7.8 um to the right
    write_channels(tmp_path / "mif0.ome.tiff", moved, ("CD8", "DAPI"), 0.65)
    badly = opened(_recipe(tmp_path, slides), tmp_path / "b").tiles("train")
    assert measure_registration(badly, ("Hoechst", "CD8a")).shift == pytest.approx(np.hypot(10, 6), abs=0.5)
    affine = [dict(slides[0], affine=[[1, 0, 7.8], [0, 1, 13.0]]), slides[1]]
    (tmp_path / "marks.csv").write_text(
        "he_x,he_y,target_x,target_y\n0,0,12,20\n900,10,912,30\n50,800,62,820\n700,700,712,720\n"
    )
    marks = [dict(slides[0], landmarks="marks.csv"), slides[1]]
    for number, entries in enumerate((affine, marks)):
        tile = opened(_recipe(tmp_path, entries), tmp_path / f"c{number}").tiles("train").markers[0]
        inner = np.s_[:, 16:-16, 16:-16]
        assert np.abs(tile[inner].astype(int) - straight[inner].astype(int)).mean() < 0.5


def test_landmarks_find_turn_and_scale(tmp_path):
    rng = np.random.default_rng(0)
    he = rng.uniform(0, 1000, (8, 2))
    turn = np.array([[0.9, -0.2], [0.2, 0.9]])
    target = (he * 0.5 @ turn.T + (30, -40)) / 0.25
    rows = ["he_x,he_y,target_x,target_y", *(",".join(map(str, (*a, *b))) for a, b in zip(he, target, strict=True))]
    (tmp_path / "m.csv").write_text("\n".join(rows))
    found = affine_of_landmarks(tmp_path / "m.csv", Mpp(0.5, 0.5, "x"), Mpp(0.25, 0.25, "x"))
    np.testing.assert_allclose(found, np.column_stack([turn, (30, -40)]), atol=1e-6)
    (tmp_path / "m.csv").write_text("\n".join(rows[:3]))
    with pytest.raises(UsageError, match="at least 3"):
        affine_of_landmarks(tmp_path / "m.csv", Mpp(0.5, 0.5, "x"), Mpp(0.25, 0.25, "x"))
    with pytest.raises(UsageError, match="no table of landmarks"):
        affine_of_landmarks(tmp_path / "none.csv", Mpp(0.5, 0.5, "x"), Mpp(0.25, 0.25, "x"))


def test_brightfield_targets_are_optical_densities(slides, tmp_path, opened):
    _, planes = paired_pixels(0, 1100, 1024)
    for number in (0, 1):
        write_rgb(tmp_path / f"ihc{number}.tif", to_brightfield(planes[1], planes[0]).transpose(1, 2, 0), 0.65)
    entries = [dict(entry, target=f"ihc{number}.tif") for number, entry in enumerate(slides)]
    recipe = _recipe(tmp_path, entries, stain="ihc", markers=["Haematoxylin", "CD8a"])
    pairs = opened(recipe, tmp_path / "cache")
    tile = pairs.tiles("train").markers[0].astype(float)
    means = planes[:, :1024].reshape(2, 512, 2, 512, 2).mean(axis=(2, 4))
    assert np.corrcoef(tile[1].ravel(), means[0].ravel())[0, 1] > 0.9  # DAB
    assert tile[0].max() > 20
    assert look_before(recipe, pairs).registration["train"].correlation > 0.4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient": "P1"}, "share patient P1"),
        ({"he": "he1.tif", "target": "mif1.ome.tiff"}, r"share he1\.tif"),
    ],
)
def test_a_slide_or_patient_in_two_splits_is_an_error(slides, tmp_path, change, message, opened):
    recipe = _recipe(tmp_path, [slides[0] | change, slides[1]])
    with pytest.raises(UsageError, match=message):
        look_before(recipe, opened(recipe, tmp_path / "cache"))


def test_a_copy_under_another_name_does_not_hide_leakage():
    found = find_leakage({"train": {("a", "P1"), ("b", None)}, "dev": {("a", None), ("c", "P1")}})
    assert (found.slides, found.patients, found.groups) == (("a",), ("P1",), {"train": 2, "dev": 2})


def test_parts_of_one_slide_can_be_split_when_that_is_meant(tmp_path, opened):
    he, planes = paired_pixels(0, 1024, 2048)
    write_rgb(tmp_path / "he.tif", he, 1.3)
    write_channels(tmp_path / "mif.ome.tiff", planes, ("CD8", "DAPI"), 1.3)
    pair = {"he": "he.tif", "target": "mif.ome.tiff"}
    entries = [
        pair | {"split": "train", "roi": [0, 0, 1536, 1024]},
        pair | {"split": "dev", "roi": [1536, 0, 512, 1024]},
    ]
    recipe = _recipe(tmp_path, entries, splits_within_slide=True)
    found = look_before(recipe, opened(recipe, tmp_path / "cache"))
    assert found.tiles == {"train": 6, "dev": 2}
    assert "say nothing about other slides" in found.warnings[0]


def test_a_channel_that_is_not_there_is_named(slides, tmp_path, opened):
    with pytest.raises(UsageError, match="no channel CD31; it has: CD8, DAPI"):
        opened(_recipe(tmp_path, slides, markers=["DAPI", "CD31"]), tmp_path / "cache")


def test_slides_train_to_a_bundle(slides, tmp_path, capsys):
    network = {"stage_widths": [8], "stage_depths": [1], "trunk_width": 16, "trunk_depth": 1, "trunk_heads": 2}
    settings = {"network": network, "steps": 10, "batch": 2, "warmup": 1, "validate_every": 10, "sample_steps": 1}
    _recipe(tmp_path, slides, **settings)
    command = [
        "train",
        str(tmp_path / "recipe.yaml"),
        "--run",
        str(tmp_path / "run"),
        "--device",
        "cpu",
        "--json",
        "-q",
    ]
    assert run(command) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["preflight"]["leakage"]["groups"] == {"train": 1, "dev": 1}
    card = json.loads((tmp_path / "run" / "bundle" / "model.json").read_text())
    assert card["training"]["data"] == "he0.tif"
    assert tifffile.imread(tmp_path / "he0.tif").shape == (1100, 1024, 3)
