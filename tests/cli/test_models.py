from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mupd_wsi.cli.app import run
from mupd_wsi.cli.models import quality_table
from mupd_wsi.model import find_bundle


def test_list_names_the_shipped_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == 0
    assert "mupd-mini" in capsys.readouterr().out


def test_json_of_the_list_and_of_one_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["models"]
    assert run(["models", "mupd-mini", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one in listed
    assert len(one["targets"]) == 18
    assert one["mpp"] == 1.3


def test_card_shows_targets_quality_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "mupd-mini"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("CD8a", "licence", "SHA-256", "pearson", "limit"))


def test_a_folder_is_a_model_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(find_bundle("mupd-mini"), folder)
    assert run(["models", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "mupd-mini"


@pytest.mark.parametrize("content", [None, "not json", "{}", '{"unknown": 1}'])
def test_a_bad_bundle_is_exit_3(content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    assert run(["models", str(tmp_path)]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_quality_table_leaves_gaps_where_nothing_was_measured() -> None:
    assert quality_table("dev", {"CD8a": {"r": 0.5, "s": 0.25}, "mean": {"r": 1.0}}) == [
        "dev              r             s",
        "CD8a         0.500         0.250",
        "mean         1.000             -",
    ]
