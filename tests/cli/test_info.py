from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mupd_wsi.cli.app import run


def info_of(slide: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(["info", str(slide), "--json"]) == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def test_info_of_a_real_slide(cmu_slide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = info_of(cmu_slide, capsys)
    assert values["format"] == "Aperio SVS"
    assert (values["width"], values["height"]) == (2220, 2967)
    assert values["mpp"]["x"] == pytest.approx(0.499)
    assert values["mpp_problem"] is None
    assert values["magnification"] == 20
    assert values["levels"][0] == {"width": 2220, "height": 2967, "downsample": 1.0, "um_per_px": 0.499}
    assert values["stain"]["label"] == "H&E"


def test_missing_pixel_size_is_told_and_no_error(tcga_slide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = info_of(tcga_slide, capsys)
    assert values["mpp"] is None
    assert "--mpp" in values["mpp_problem"]
    assert [level["um_per_px"] for level in values["levels"]] == [None, None]


def test_absurd_pixel_size_is_shown(wrong_mpp_slide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "1000" in info_of(wrong_mpp_slide, capsys)["mpp_problem"]


@pytest.mark.parametrize("fixture", ["cmu_slide", "tcga_slide", "fluorescence_slide"])
def test_text_tells_the_same(fixture: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    slide = request.getfixturevalue(fixture)
    values = info_of(slide, capsys)
    assert run(["info", str(slide)]) == 0
    shown = capsys.readouterr().out
    assert values["format"] in shown
    assert values["stain"]["label"] in shown
    assert f"{values['width']} x {values['height']} px" in shown
    assert len(shown.splitlines()) == 7 + len(values["levels"])


def test_what_is_no_slide_is_exit_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "note.svs").write_text("no slide")
    for bad in (tmp_path / "note.svs", tmp_path / "missing.svs", tmp_path):
        assert run(["info", str(bad)]) == 3
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("mupd-wsi: error: ")
        assert shown.err.count("\n") == 1
