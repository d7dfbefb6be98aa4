"""Stainers of lazyslide-models: a stand-in for the package, and the package itself where it can be imported."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in_zoo
import torch
from runs import image_of
from standins import he_texture, save_slide

from mupd_wsi.cli.app import run
from mupd_wsi.errors import UsageError
from mupd_wsi.model import load_model
from mupd_wsi.model.zoo import KNOWN
from mupd_wsi.pipeline import StainOptions, stain_slide


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stand-in under the package's name, in this process and in those that it starts."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "lazyslide_models.py").write_text("from stand_in_zoo import MODEL_REGISTRY\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "lazyslide_models", stand_in_zoo)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return save_slide(tmp_path / "s.png", he_texture(230, 310))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Of a Duo that answers with red and with blue."""
    path = tmp_path / "duo.pth"
    torch.save({"weight": torch.eye(3)[[0, 2], :, None, None]}, path)
    return path


@pytest.mark.usefixtures("zoo")
def test_a_stainer_runs_by_its_name_with_weights_of_a_file(slide: Path, weights: Path, tmp_path: Path) -> None:
    name = f"zoo:duo@1.3={weights}"
    found = image_of(slide, load_model(name, device="cpu"))
    assert np.abs(found - he_texture(230, 310)[..., [0, 2]].transpose(2, 0, 1).astype(float)).max() <= 0.51
    options = StainOptions(mpp=1.3, device="cpu", style="mif")
    details = stain_slide(slide, "CD3", model=name, output=tmp_path / "z.ome.tiff", options=options).details
    assert details["model"]["name"] == "duo"
    assert details["model"]["license"] == "CC-BY-4.0"
    assert len(details["model"]["weights_sha256"]) == 64
    assert details["targets"] == ["CD3"]  # without its antibody's dilution
    assert details["tiles"]["side"] == stand_in_zoo.TILE


@pytest.mark.usefixtures("zoo")
def test_a_batch_by_name_knows_what_is_done(
    slide: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["batch", str(slide), "--mpp", "1.3", "--target", "CD3", "--as", "mif", "-q", "--json"]
    for done, skipped in ((1, 0), (0, 1)):
        capsys.readouterr()
        assert run([*command, "--model", f"zoo:duo@1.3={weights}", "-o", str(tmp_path / "batch")]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["done"], told["skipped"]) == (done, skipped)


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(("target", "inverted"), [("PAS", False), ("trichrome", True)])
def test_a_painter_gives_the_picture_of_the_stain_asked_for(target: str, inverted: bool, slide: Path) -> None:
    found = image_of(slide, load_model("zoo:picture@1.3", device="cpu"), target, style="ihc")
    rgb = he_texture(230, 310).transpose(2, 0, 1)
    assert np.abs(found.astype(int) - (255 - rgb if inverted else rgb)).max() <= 1


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("options", [{"style": "mif"}, {}])
def test_a_painter_gives_one_picture_and_no_fluorescence(options: Any, slide: Path) -> None:
    with pytest.raises(UsageError, match="paints brightfield"):
        stain_slide(slide, "all", model="zoo:picture@1.3", options=StainOptions(mpp=1.3, device="cpu", **options))


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("zoo:duo", r"nobody says at which um/px.*zoo:duo@0\.5"),
        ("zoo:duo@x", "'x' is no um/px"),
        ("zoo:duo@0", "must lie above 0"),
        ("zoo:duo@0.5", "cannot be had: the hub cannot be reached$"),
        ("zoo:duo@0.5=/nowhere/x.pth", "cannot be had"),
        ("zoo:uni@0.5", "has no stainer 'uni'; it has: duo, picture"),
        ("zoo:nil@1", "no stainer 'nil'"),
    ],
)
def test_what_the_zoo_does_not_say_or_have_is_asked_for(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_model(name, device="cpu")


@pytest.mark.usefixtures("zoo")
def test_a_card_is_shown_without_fetching_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "zoo:duo@0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mpp"] == 0.5


def test_without_the_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lazyslide_models", None)
    assert run(["stain", str(slide), "--mpp", "1.3", "--target", "CD8", "--model", "zoo:gigatime", "-q"]) == 2
    said = capsys.readouterr().err
    assert "pip install 'mupd-wsi[zoo]'" in said
    assert said.count("\n") == 1


def test_a_torchvision_of_another_build_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    own = builtins.__import__

    def failing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "lazyslide_models":
            raise RuntimeError("operator torchvision::nms does not exist")
        return own(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", failing)
    with pytest.raises(UsageError, match=r"nms does not exist\): torchvision has to be of the same build"):
        load_model("zoo:gigatime", device="cpu")


def real_zoo() -> Any:
    """The package, or None where it or what it needs cannot be imported."""
    try:
        import lazyslide_models
    except (ImportError, OSError, RuntimeError):
        return None
    return lazyslide_models


@pytest.mark.skipif(real_zoo() is None, reason="needs the extra zoo, in an environment of its own")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", sorted(KNOWN))
def test_real_stainers_with_weights_made_here(key: str, tmp_path: Path) -> None:
    from lazyslide_models import MODEL_REGISTRY
    from lazyslide_models.style_transfer import gigatime

    torch.manual_seed(0)
    network = {"gigatime": gigatime.GigaTIMEModel, "gigatime-flash": gigatime.GigaTIMEFlashModel}[key](num_classes=23)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    rgb = he_texture(110, 120)
    slide = save_slide(tmp_path / "s.png", rgb)
    stainer = load_model(f"zoo:{key}={tmp_path / 'w.pth'}", device="cpu")
    side, halo = stainer.info.tile, stainer.info.halo
    whole = np.pad(rgb, ((halo, side - halo - 110), (halo, side - halo - 120), (0, 0)), mode="reflect")
    model = MODEL_REGISTRY[key](model_path=tmp_path / "w.pth")
    predicted = model.predict(model.get_transform()(whole)[None])[0, :, halo : halo + 110, halo : halo + 120]
    found = image_of(slide, stainer, "CD8,CD3,PD-L1", mpp=0.25, fuse="crop")
    assert np.abs(found - 255 * predicted[[14, 13, 15]].numpy()).max() <= 0.51
    options = StainOptions(mpp=0.25, tissue_mask=False)
    details = stain_slide(slide, "CD8,CD3", model=stainer, output=tmp_path / "o.ome.tiff", options=options).details
    assert details["output"]["channels"] == ["CD8", "CD3"]
    assert details["mpp"] == 0.25
    assert details["fuse"] == "blend"
