"""Seams of a whole run, with networks that join well, drift from tile to tile, or see where the tile begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from standins import StandInStainer, he_texture, save_slide

from mupd_wsi.cli.console import Console
from mupd_wsi.cli.seams import judge_seams
from mupd_wsi.geometry import Region
from mupd_wsi.pipeline import StainOptions, stain_slide


class Drifting(StandInStainer):
    """A network that comes out brighter by some grey levels in every second tile of the slide, as a chessboard."""

    def __init__(self, drift: float, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.drift = drift

    def stain(self, rgb: NDArray[np.uint8], origins: Any, *rest: Any) -> NDArray[np.float32]:
        planes = super().stain(rgb // 2 + 64, origins, *rest)
        core = self.info.tile - 2 * self.info.halo
        odd = [sum((v + self.info.halo) // core for v in origin) % 2 for origin in origins]
        return planes + self.drift * np.array(odd, np.float32)[:, None, None, None]


def seams_of(stainer: StandInStainer, folder: Path, size: tuple[int, int] = (900, 1200), **options: Any) -> Any:
    slide = folder / f"{size}.png"
    if not slide.exists():
        save_slide(slide, he_texture(*size))
    result = stain_slide(
        slide,
        "all",
        model=stainer,
        output=folder / "o.ome.tiff",
        options=StainOptions(**{"mpp": 1.3, "tissue_mask": False, "overwrite": True} | options),
    )
    assert json.loads(result.record.read_text())["seams"] == result.details["seams"]
    return result.details["seams"]


@pytest.mark.parametrize("masked", [True, False])
def test_a_network_that_sees_nothing_beyond_its_halo_has_no_seams(masked: bool, tmp_path: Path) -> None:
    seams = seams_of(Drifting(0), tmp_path, tissue_mask=masked)
    assert seams["grid_shift"]["mean"] == seams["grid_shift"]["max"] == 0
    assert seams["grid_shift"]["pixels"] > 0
    assert seams["edge_step"]["ratio"] == pytest.approx(1, abs=0.05)


def test_a_drift_of_one_grey_level_is_seen_by_the_run(tmp_path: Path) -> None:
    """Half of a shifted tile lies on tiles of the other colour of the board, whatever its own is."""
    seams = seams_of(Drifting(1), tmp_path)
    assert seams["grid_shift"]["max"] == 1
    assert seams["grid_shift"]["mean"] == pytest.approx(0.5, abs=0.01)


def test_places_and_tiles_of_the_check_are_few(tmp_path: Path) -> None:
    stainer = StandInStainer(tile=96, halo=16)
    seams = seams_of(stainer, tmp_path)
    assert seams["grid_shift"]["places"] == 4
    again = [origin for origin in stainer.origins if (origin[0] + 16) % 64]
    assert len(again) == 4
    assert all((x + 16) % 64 == (y + 16) % 64 == 32 for x, y in again)


def test_the_shift_is_whole_attention_windows(tmp_path: Path) -> None:
    stainer = StandInStainer(tile=128, halo=16)
    stainer.info.period = 24  # type: ignore[misc]
    assert seams_of(stainer, tmp_path)["grid_shift"]["places"] > 0
    assert {((x + 16) % 96, (y + 16) % 96) for x, y in stainer.origins} == {(0, 0), (48, 48)}


@pytest.mark.parametrize(
    ("size", "expected"), [((40, 50), None), ((40, 200), {(32, 0)}), ((200, 40), {(0, 32)}), ((1, 300), {(32, 0)})]
)
def test_slides_of_one_tile_or_one_row(size: tuple[int, int], expected: set[Any] | None, tmp_path: Path) -> None:
    stainer = StandInStainer()
    seams = seams_of(stainer, tmp_path, size)
    shifts = {((x + 16) % 64, (y + 16) % 64) for x, y in stainer.origins} - {(0, 0)}
    if expected is None:
        assert seams == {"grid_shift": None, "edge_step": None}
        assert shifts == set()
        return
    assert shifts == expected
    assert seams["grid_shift"]["max"] == 0


def test_a_region_is_checked_inside_itself(tmp_path: Path) -> None:
    stainer = StandInStainer()
    seams = seams_of(stainer, tmp_path, roi=Region(100, 90, 300, 200))
    assert seams["grid_shift"]["max"] == 0
    assert seams["edge_step"]["pixels"] > 0


def test_glass_has_no_seams_to_measure(tmp_path: Path) -> None:
    slide = save_slide(tmp_path / "blank.png", np.full((300, 400, 3), 243, np.uint8))
    options = StainOptions(mpp=1.3)
    result = stain_slide(slide, "CD8", model=StandInStainer(), output=tmp_path / "o.ome.tiff", options=options)
    assert result.details["seams"] == {"grid_shift": None, "edge_step": None}


# ---------------------------------------------------------------------------------------------- --max-seam

GOOD = {"grid_shift": {"mean": 0.001, "max": 1}, "edge_step": {"ratio": 1.02}}
NONE = {"grid_shift": None, "edge_step": None}


@pytest.mark.parametrize(
    ("seams", "limit", "code", "said"),
    [
        (GOOD, 1.15, 0, ""),
        (GOOD, None, 0, ""),
        (GOOD, 1.01, 1, "1.02 times"),
        (GOOD | {"grid_shift": {"mean": 0.4, "max": 3}}, 1.15, 1, "0.4 grey levels"),
        (GOOD | {"grid_shift": {"mean": 0.4, "max": 3}}, None, 0, ""),
        (NONE, 1.15, 0, "no seam was looked for"),
    ],
)
def test_max_seam(seams: Any, limit: float | None, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge_seams(Console(), seams, limit) == code
    err = capsys.readouterr().err
    assert said in err
    assert ("the output is kept" in err) == (code == 1)
