"""Models of somebody else as a card and a program: real ones, written by torch.export and TorchScript here."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from runs import image_of
from standins import he_texture, save_slide
from torch import Tensor, nn

from mupd_wsi.cli.app import run
from mupd_wsi.errors import BundleError
from mupd_wsi.model import load_model

TILE, HALO = 96, 16
KINDS = ["torch.export", "torchscript"]
MakeFolder = Callable[..., Path]


class Blur(nn.Module):
    """Two markers: red and blue, blurred."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = nn.Conv2d(3, 3, 5, padding=2, groups=3, bias=False)
        nn.init.constant_(self.blur.weight, 1 / 25)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.blur(x)[:, [0, 2]]
        return found


class Halved(nn.Module):
    """Red and blue, at twice the um/px."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x[:, [0, 2]], 2)


class Inverted(nn.Module):
    """A picture: the H&E's colours inverted."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 - x


def written(folder: Path, network: nn.Module, kind: str) -> Path:
    """A program's file."""
    example, path = torch.rand(1, 3, TILE, TILE), folder / ("net.pt2" if kind == "torch.export" else "net.pt")
    if kind == "torch.export":
        torch.export.save(torch.export.export(network.eval(), (example,)), path)
        return path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as such
        torch.jit.save(torch.jit.trace(network.eval(), example), path)
    return path


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    """A folder with a card and a program."""

    def make(kind: str = "torch.export", network: nn.Module | None = None, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("program")
        program = written(folder, network or Blur(), kind)
        card = {
            "kind": kind,
            "name": "blur",
            "version": "1",
            "license": "MIT",
            "program": program.name,
            "program_sha256": hashlib.sha256(program.read_bytes()).hexdigest(),
            "channels": [{"name": "DAPI", "color": [0, 0, 255]}, {"name": "CD8", "color": [0, 255, 0]}],
            "mpp": 1.3,
            "tile": TILE,
            "halo": HALO,
            "output_range": [0, 1],
            "fuse": "crop",
        } | changes
        card = {name: value for name, value in card.items() if value != "left out"}
        (folder / "model.json").write_text(json.dumps(card))
        return folder

    return make


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return save_slide(tmp_path / "s.png", he_texture(230, 310))


def he() -> Tensor:
    """The slide, (1, 3, H, W), 0-255."""
    return torch.from_numpy(he_texture(230, 310)).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("fuse", ["crop", "blend"])
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_give_what_the_program_makes_of_the_whole(
    kind: str, fuse: Any, folder_of: MakeFolder, slide: Path
) -> None:
    found = image_of(slide, load_model(folder_of(kind), device="cpu", trust=True), fuse=fuse)
    padded = nn.functional.pad(he(), (2, 2, 2, 2), mode="reflect")
    assert np.abs(found - nn.functional.avg_pool2d(padded, 5, 1)[0, [0, 2]].numpy()).max() <= 0.51


def test_colours_are_scaled_and_standardised_as_the_card_says(folder_of: MakeFolder, slide: Path) -> None:
    given = {"scale": 1.0, "mean": [1.0, 101.0, 251.0], "std": [50, 100, 200], "output_range": [-5, 5]}
    folder = folder_of(network=Inverted(), stains=["PAS"], channels="left out", **given)
    found = image_of(slide, load_model(folder, device="cpu", trust=True), style="ihc")
    mean, std = (torch.tensor(v)[:, None, None] for v in ([1.0, 101.0, 251.0], [50.0, 100.0, 200.0]))
    expected = ((1 - (he()[0] - mean) / std) + 5) * 25.5
    assert np.abs(found - expected.clamp(0, 255).numpy()).max() <= 0.51


@pytest.mark.parametrize("fuse", ["crop", "blend"])
def test_a_coarser_prediction_is_written_on_the_grid_of_its_input(
    fuse: Any, folder_of: MakeFolder, slide: Path
) -> None:
    found = image_of(
        slide, load_model(folder_of(network=Halved(), output_mpp=2.6), device="cpu", trust=True), fuse=fuse
    )
    expected = nn.functional.avg_pool2d(he(), 2)[0, [0, 2]].numpy().repeat(2, axis=1).repeat(2, axis=2)
    assert np.abs(found - expected).max() <= 0.51


def test_a_painter_is_written_as_rgb_and_is_said_to_be_one(folder_of: MakeFolder, slide: Path, tmp_path: Path) -> None:
    folder = folder_of(network=Inverted(), stains=["PAS"], channels="left out")
    output = tmp_path / "out.ome.tiff"
    command = ["stain", str(slide), "--mpp", "1.3", "--model", str(folder), "--trust", "-q", "--no-tissue-mask"]
    assert run([*command, "--target", "pas", "-o", str(output)]) == 0
    written = tifffile.imread(output)
    assert written.shape == (230, 310, 3)
    assert abs(written.mean() - (255 - he_texture(230, 310)).mean()) < 2  # JPEG
    record = json.loads(output.with_name(output.name + ".json").read_text())
    assert "painted by the model" in record["rendering"]
    assert record["targets"] == ["PAS"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_runs_a_program_only_for_those_who_trust_it(
    kind: str, folder_of: MakeFolder, slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = folder_of(kind), tmp_path / "out.ome.tiff"
    command = ["stain", str(slide), "--mpp", "1.3", "--target", "CD8,DAPI", "--model", str(folder), "-o", str(output)]
    assert run([*command, "-q"]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{kind} program" in said
    assert "add --trust" in said
    assert not output.exists()
    assert run([*command, "-q", "--trust", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["details"]
    card = json.loads((folder / "model.json").read_text())
    assert record["model"]["weights_sha256"] == card["program_sha256"]
    assert record["fuse"] == "crop"
    assert record["seams"]["grid_shift"]["max"] <= 1


def test_a_batch_refuses_before_it_begins_and_knows_what_is_done(
    folder_of: MakeFolder, slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["batch", str(slide), "--mpp", "1.3", "--target", "CD8", "--as", "mif", "--model", str(folder_of())]
    command += ["-q", "--json", "-o", str(tmp_path / "batch")]
    assert run(command) == 3
    assert not list(tmp_path.glob("batch/*"))
    for done, skipped in ((1, 0), (0, 1)):
        capsys.readouterr()
        assert run([*command, "--trust"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["done"], told["skipped"]) == (done, skipped)


def test_the_card_is_shown_and_nothing_is_opened(folder_of: MakeFolder, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of()
    (folder / "net.pt2").unlink()
    assert run(["models", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["targets"] == ["DAPI", "CD8"]
    assert any("--trust" in text for text in told["limits"])
    assert run(["models", str(folder)]) == 0
    assert "torch.export program" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_that_was_changed_is_refused_even_when_trusted(
    kind: str, folder_of: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(kind)
    with next(folder.glob("net.*")).open("ab") as stream:
        stream.write(b"more")
    for loader in (torch.jit, torch.export):
        monkeypatch.setattr(loader, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(BundleError, match="damaged or was changed"):
        load_model(folder, device="cpu", trust=True)
    with pytest.raises(BundleError, match="add --trust"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"program": "../net.pt2"}, "same folder"),
        ({"surprise": 1}, r"unknown field\(s\) surprise"),
        ({"license": "left out"}, r"field\(s\) license missing"),
        ({"mpp": "1.3"}, "field mpp must be float, got '1.3'"),
        ({"tile": 96.5}, "field tile must be int"),
        ({"mpp": 0}, "must lie above 0"),
        ({"kind": "pickle"}, "kind must be"),
        ({"halo": 48}, "leaves nothing"),
        ({"period": 7}, "multiples of 7 px"),
        ({"fuse": "joint"}, "fuse must be"),
        ({"output_range": [1, 1]}, "values that rise"),
        ({"output_range": [0, float("inf")]}, "values that rise"),
        ({"mpp": float("nan")}, "must lie above 0"),
        ({"std": [1, 1]}, "three values"),
        ({"std": [1, 1, float("nan")]}, "three values"),
        ({"channels": [{"name": "DAPI"}]}, "no card of a program"),
        ({"channels": [{"name": "CD8", "color": [0, 0, 0]}, {"name": "cd-8", "color": [0, 0, 0]}]}, "must differ"),
        ({"stains": ["PAS"]}, "not both"),
    ],
)
def test_cards_that_cannot_be_meant_are_refused(
    change: dict[str, Any], said: str, folder_of: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(**change)
    with pytest.raises(BundleError, match=said):
        load_model(folder, device="cpu", trust=True)
    assert run(["models", str(folder)]) == 3
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tile": 64}, r"does not run on tiles of 64 px"),
        ({"channels": [{"name": "DAPI", "color": [0, 0, 255]}]}, "one plane a channel"),
        ({"output_mpp": 2.6}, "expected"),
        ({"output_mpp": 2.0}, "whole multiple"),
    ],
)
def test_programs_that_do_something_else_are_found_out_when_they_are_loaded(
    change: dict[str, Any], said: str, folder_of: MakeFolder
) -> None:
    with pytest.raises(ValueError, match=said):
        load_model(folder_of(**change), device="cpu", trust=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_program_is_one_clear_error(kind: str, folder_of: MakeFolder) -> None:
    folder = folder_of(kind, program="net.bin", program_sha256=hashlib.sha256(b"no program").hexdigest())
    (folder / "net.bin").write_bytes(b"no program")
    with pytest.raises(BundleError, match=f"no {kind} program"):
        load_model(folder, device="cpu", trust=True)
