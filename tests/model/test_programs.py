"""Models of somebody else: programs in folders, painted pictures, and lazyslide-models' zoo."""

from __future__ import annotations

import hashlib
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from runs import image_of
from standins import he_texture, save_slide
from torch import nn

from mupd_wsi.cli.app import run
from mupd_wsi.errors import BundleError, UsageError
from mupd_wsi.model import ForeignStainer, load_model
from mupd_wsi.pipeline import StainOptions, stain_slide

TILE, HALO = 96, 16


class Blur(nn.Module):
    """Two markers: red and blue, blurred."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = nn.Conv2d(3, 3, 5, padding=2, groups=3, bias=False)
        nn.init.constant_(self.blur.weight, 1 / 25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blur(x)[:, [0, 2]]


@pytest.fixture(scope="module")
def program_folder(tmp_path_factory):
    """A folder with a card and a program of a kind."""

    def make(kind, /, **changes):
        folder = tmp_path_factory.mktemp("program")
        example, name = torch.rand(1, 3, TILE, TILE), "net.pt2" if kind == "torch.export" else "net.pt"
        if kind == "torch.export":
            torch.export.save(torch.export.export(Blur().eval(), (example,)), folder / name)
        else:
            torch.jit.save(torch.jit.trace(Blur().eval(), example), folder / name)
        card = {
            "kind": kind,
            "name": "blur",
            "version": "1",
            "license": "MIT",
            "program": name,
            "program_sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "channels": [{"name": "DAPI", "color": [0, 0, 255]}, {"name": "CD8", "color": [0, 255, 0]}],
            "mpp": 1.3,
            "tile": TILE,
            "halo": HALO,
            "output_range": [0, 1],
            "fuse": "crop",
        } | changes
        (folder / "model.json").write_text(json.dumps(card))
        return folder

    return make


@pytest.fixture
def slide(tmp_path):
    return save_slide(tmp_path / "s.png", he_texture(230, 310))


@pytest.mark.parametrize("kind", ["torch.export", "torchscript"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_stains_in_tiles_what_it_makes_of_the_whole(kind, program_folder, slide):
    model = load_model(program_folder(kind), device="cpu", trust=True)
    found = image_of(slide, model)
    rgb = torch.from_numpy(he_texture(230, 310)).permute(2, 0, 1)[None].float()
    padded = nn.functional.pad(rgb, (2, 2, 2, 2), mode="reflect")
    expected = nn.functional.avg_pool2d(padded, 5, 1)[0, [0, 2]].numpy()
    assert np.abs(found - expected).max() <= 0.51


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command_runs_a_program_only_for_those_who_trust_it(program_folder, slide, tmp_path, capsys):
    folder, output = program_folder("torchscript"), tmp_path / "out.ome.tiff"
    command = ["stain", str(slide), "--mpp", "1.3", "--target", "CD8,DAPI", "--model", str(folder), "-o", str(output)]
    assert run([*command, "-q"]) == 3
    assert "add --trust" in capsys.readouterr().err
    assert not output.exists()
    assert run([*command, "-q", "--trust", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["details"]
    assert record["model"]["weights_sha256"] == hashlib.sha256((folder / "net.pt").read_bytes()).hexdigest()
    assert record["seams"] is not None
    assert run(["batch", str(slide), "--mpp", "1.3", "--target", "CD8", "--as", "mif", "--model", str(folder), "-q",
                "--trust", "-o", str(tmp_path / "batch")]) == 0  # fmt: skip
    capsys.readouterr()
    assert run(["models", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["targets"] == ["DAPI", "CD8"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_that_was_changed_is_refused_even_when_trusted(program_folder):
    folder = program_folder("torchscript")
    with (folder / "net.pt").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(BundleError, match="damaged or was changed"):
        load_model(folder, device="cpu", trust=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"program": "../net.pt"}, "same folder"),
        ({"surprise": 1}, "unknown field"),
        ({"kind": "pickle"}, "kind must be"),
        ({"halo": 48}, "leaves nothing"),
        ({"output_range": [1, 1]}, "values that rise"),
        ({"channels": [{"name": "DAPI"}]}, "no card of a program"),
    ],
)
def test_cards_that_cannot_be_meant_are_refused(change, said, program_folder):
    with pytest.raises(BundleError, match=said):
        load_model(program_folder("torchscript", **change), device="cpu", trust=True)


def test_a_file_that_is_no_program_is_one_clear_error(program_folder):
    folder = program_folder("torch.export")
    (folder / "net.pt2").write_bytes(b"no program")
    card = json.loads((folder / "model.json").read_text())
    card["program_sha256"] = hashlib.sha256(b"no program").hexdigest()
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match=r"no torch\.export program"):
        load_model(folder, device="cpu", trust=True)


class Painter:
    """Follows VirtualStainModelProtocol: paints the H&E inverted."""

    stains = ("PAS", "Trichrome")
    output_mpp: float | None = None
    output_range: tuple[float, float] | None = (0.0, 1.0)

    def predict(self, image):
        return torch.cat([1 - image, image], dim=1)

    def get_transform(self):
        return None


@pytest.mark.parametrize(("target", "inverted"), [("PAS", True), ("trichrome", False)])
def test_a_model_of_brightfield_pictures_writes_them_as_rgb(target, inverted, slide, tmp_path):
    model = ForeignStainer(Painter(), mpp=1.3, name="painter", tile=TILE, halo=HALO, fuse="crop", device="cpu")
    options = StainOptions(mpp=1.3, tissue_mask=False, normalise=False)
    result = stain_slide(slide, target, model=model, output=tmp_path / "out.ome.zarr", options=options)
    assert "painted by the model" in result.details["rendering"]
    found = image_of(slide, model, target, style="ihc")
    rgb = he_texture(230, 310).transpose(2, 0, 1)
    assert np.abs(found.astype(int) - (255 - rgb if inverted else rgb)).max() <= 1
    tiff = stain_slide(slide, target, model=model, output=tmp_path / "out.ome.tiff", options=options)
    assert tifffile.imread(tiff.output).shape == (230, 310, 3)


def test_a_painter_has_no_fluorescence(slide):
    model = ForeignStainer(Painter(), mpp=1.3, name="painter", tile=TILE, halo=HALO, device="cpu")
    with pytest.raises(UsageError, match="paints brightfield"):
        stain_slide(slide, "all", model=model, options=StainOptions(mpp=1.3))


class Duo:
    """A stainer as the zoo has them."""

    channel_names = ("DAPI", "CD8")
    output_mpp: float | None = None
    output_range: tuple[float, float] | None = (0.0, 1.0)
    input_constraint = SimpleNamespace(min=64, max=TILE)

    def predict(self, image):
        return image[:, :2]

    def get_transform(self):
        return None


@pytest.fixture
def zoo(monkeypatch):
    """A stand-in for the package, with one stainer and one model that is none."""
    module = ModuleType("lazyslide_models")
    module.MODEL_REGISTRY = {"duo": Duo, "uni": type("Encoder", (), {})}
    monkeypatch.setitem(sys.modules, "lazyslide_models", module)


@pytest.mark.usefixtures("zoo")
def test_a_stainer_of_the_zoo_is_run_by_its_name(slide, tmp_path):
    options = StainOptions(mpp=1.3, device="cpu", style="mif")
    result = stain_slide(slide, "CD8", model="zoo:duo@1.3", output=tmp_path / "z.ome.tiff", options=options)
    assert result.details["model"]["name"] == "duo"
    assert load_model("zoo:duo@1.3", device="cpu").info.tile == TILE


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(
    ("name", "said"),
    [("zoo:duo", "at which um/px"), ("zoo:uni@0.5", "has no stainer 'uni'; it has: duo"), ("zoo:nil@1", "no stainer")],
)
def test_what_the_zoo_does_not_say_or_have_is_asked_for(name, said):
    with pytest.raises(UsageError, match=said):
        load_model(name, device="cpu")


def test_without_the_zoo_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lazyslide_models", None)
    with pytest.raises(UsageError, match=r"pip install 'mupd-wsi\[zoo\]'"):
        load_model("zoo:gigatime@0.5", device="cpu")
