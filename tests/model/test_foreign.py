"""Foreign models: a stand-in that follows lazyslide-models' MarkerMapModelProtocol, in whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import image_of
from standins import he_texture, save_slide
from torch import Tensor, nn

from mupd_wsi.errors import BundleError, UsageError
from mupd_wsi.model import ForeignStainer
from mupd_wsi.pipeline import StainOptions, stain_slide


class MarkerMap:
    """Has the attributes and methods that the protocol names, and a network whose marker c is colour c blurred."""

    channel_names = ("DAPI", "CD8", "CK")
    output_mpp: float | None = None
    output_range: tuple[float, float] | None = (-1.0, 1.0)

    def __init__(self, normalised: bool = True) -> None:
        self.model = nn.Conv2d(3, 3, 5, padding=2, groups=3, bias=False)
        nn.init.constant_(self.model.weight, 1 / 25)
        self.normalised = normalised

    def predict(self, image: Tensor) -> Tensor:
        found: Tensor = self.model(image)
        return found if self.normalised else 2 * found - 1

    def get_transform(self) -> Any:
        return (lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1) / 127.5 - 1) if self.normalised else None


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return save_slide(tmp_path / "s.png", he_texture(230, 310))


def stainer(model: Any = None, **options: Any) -> ForeignStainer:
    chosen = {"mpp": 1.3, "name": "blur", "tile": 96, "halo": 16, "device": "cpu"} | options
    return ForeignStainer(model or MarkerMap(), **chosen)


@pytest.mark.parametrize("fuse", [None, "crop", "blend"])
@pytest.mark.parametrize("normalised", [True, False])
def test_tiles_give_what_the_model_makes_of_the_whole(fuse: Any, normalised: bool, slide: Path) -> None:
    found = image_of(slide, stainer(MarkerMap(normalised)), fuse=fuse)
    rgb = torch.from_numpy(he_texture(230, 310)).permute(2, 0, 1)[None].float()
    padded = nn.functional.pad(rgb, (2, 2, 2, 2), mode="reflect")
    expected = nn.functional.avg_pool2d(padded, 5, 1)[0].numpy()
    assert np.abs(found - expected).max() <= 0.51


def test_a_run_names_the_model_and_its_channels(slide: Path, tmp_path: Path) -> None:
    options = StainOptions(mpp=1.3, tissue_mask=False)
    result = stain_slide(slide, "CD8,ck", model=stainer(), output=tmp_path / "o.ome.tiff", options=options)
    details = result.details
    assert details["output"]["channels"] == ["CD8", "CK"]
    assert details["model"]["name"] == "blur"
    assert len(details["model"]["weights_sha256"]) == 64
    assert details["fuse"] == "blend"
    assert details["seams"]["grid_shift"]["max"] <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [({"steps": 4}, "cannot be drawn from"), ({"fuse": "joint"}, "--fuse blend")],
)
def test_what_it_cannot_do_is_refused(options: Any, words: str, slide: Path) -> None:
    with pytest.raises(UsageError, match=words):
        image_of(slide, stainer(), "CD8", **options)


def test_brightfield_is_painted_where_some_channel_is_nuclear(slide: Path) -> None:
    assert len(image_of(slide, stainer(), "CD8", style="ihc")) == 3  # DAPI
    blind = MarkerMap()
    blind.channel_names = ("CD3", "CD8", "CK")
    with pytest.raises(UsageError, match="--as mif"):
        image_of(slide, stainer(blind), "CD8", style="ihc")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"output_range": None}, "output_range"), ({"output_mpp": 8.0}, "8 um/px"), ({}, "leaves nothing")],
)
def test_models_that_do_not_say_enough_are_refused(changes: Any, words: str) -> None:
    model = MarkerMap()
    for name, value in changes.items():
        setattr(model, name, value)
    with pytest.raises(UsageError, match=words):
        stainer(model, halo=16 if changes else 48)


def test_a_wrong_shape_is_told(slide: Path) -> None:
    model = MarkerMap()
    model.model = nn.Conv2d(3, 3, 2, stride=2)  # type: ignore[assignment]
    with pytest.raises(BundleError, match="expected"):
        image_of(slide, stainer(model))
