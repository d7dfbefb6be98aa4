"""Foreign weights become a bundle when every key has its place; what became of each is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mupd_wsi.cli.app import run
from mupd_wsi.model import find_bundle, read_info
from mupd_wsi.model.bundle import CARD_FILE, read_weights
from mupd_wsi.model.network import MuPDNetwork

LINEAR = "trunk.0.attention_out.weight"


class Foreign:
    """Somebody else's file of mupd-mini's weights: other names, one matrix the other way round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        source = find_bundle("mupd-mini")
        self.card = json.loads((source / CARD_FILE).read_text())
        del self.card["weights_sha256"]
        self.weights = read_weights(source, read_info(source))
        self.tensors = {f"net.{name}": value.clone() for name, value in self.weights.items()}
        self.tensors[f"net.{LINEAR}"] = self.tensors[f"net.{LINEAR}"].T.contiguous()
        self.map: dict[str, Any] = {name: f"net.{name}" for name in self.weights}
        self.map[LINEAR] = {"key": f"net.{LINEAR}", "transpose": True}

    def run(self) -> int:
        save_file(self.tensors, self.folder / "theirs.safetensors")
        (self.folder / "map.json").write_text(json.dumps(self.map))
        (self.folder / "card.json").write_text(json.dumps(self.card))
        files = {"--weights": "theirs.safetensors", "--key-map": "map.json", "--config": "card.json", "-o": "bundle"}
        options = [part for name, file in files.items() for part in (name, str(self.folder / file))]
        return run(["models", "import", *options, "--json"])


@pytest.fixture
def foreign(tmp_path: Path) -> Foreign:
    return Foreign(tmp_path)


def test_a_complete_map_makes_a_bundle_with_the_same_values(
    foreign: Foreign, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.tensors["net.optimiser"] = torch.zeros(2)
    assert foreign.run() == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["unused"] == ["net.optimiser"]
    assert len(report["used"]) == len(foreign.weights)
    info = read_info(tmp_path / "bundle")
    came = read_weights(tmp_path / "bundle", info)
    assert all((came[name] == weight).all() for name, weight in foreign.weights.items())
    MuPDNetwork(info.network).load_state_dict({k: v.float() for k, v in came.items()})


def test_each_key_that_is_off_is_named_and_nothing_is_written(
    foreign: Foreign, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.map["head.bias"] = "net.no_such"
    del foreign.map["head.weight"]
    foreign.map["wings"] = "net.head.weight"
    foreign.tensors["net.merges.0.weight"] = torch.zeros(3, 4)
    foreign.tensors["net.merges.0.bias"][0] = float("nan")
    assert foreign.run() == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert report["bundle"] is None
    assert report["missing"] == {"head.bias": "the file has no net.no_such", "head.weight": "not in the map"}
    assert report["wrong_shape"]["merges.0.weight"][1] == [3, 4]
    assert report["unknown"] == ["wings"]
    assert report["not_finite"] == ["merges.0.bias"]
    assert "net.head.bias" in report["unused"]
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("map", {"head.bias": 3}, "must map to a key"),
        ("map", [1], "not a map of keys"),
        ("card", {"name": "x"}, "not a model card"),
        ("card", {"wings": 2}, "unknown model field"),
    ],
)
def test_files_that_cannot_be_meant_are_exit_3(
    foreign: Foreign, name: str, value: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    setattr(foreign, name, value)
    assert foreign.run() == 3
    assert message in capsys.readouterr().err


def test_show_need_not_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "show", "mupd-mini"]) == 0
    said = capsys.readouterr().out
    assert run(["models", "mupd-mini"]) == 0
    assert capsys.readouterr().out == said
