"""Several draws: their seeds, their mean and their spread, from the sums to the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from standins import StandInStainer, he_texture, save_slide

from mupd_wsi.engine.draws import draw_seeds, mean_and_spread
from mupd_wsi.errors import UsageError
from mupd_wsi.model.noise import slide_noise
from mupd_wsi.pipeline import StainOptions, plan_stain, stain_slide


def test_seeds_begin_with_the_runs_own_and_never_meet() -> None:
    assert draw_seeds(7, 1) == (7,)
    seeds = [seed for start in (0, 1, 2, 2**64 - 1) for seed in draw_seeds(start, 64)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert draw_seeds(7, 3) == draw_seeds(7, 5)[:3]


@pytest.mark.parametrize("count", [2, 3, 17])
def test_mean_and_spread_are_numpys(count: int) -> None:
    draws = np.random.default_rng(0).normal(50, 20, (count, 2, 3, 8, 9)).astype(np.float32)
    found = mean_and_spread(iter(draws))
    assert found.shape == (2, 6, 8, 9)
    np.testing.assert_allclose(found[:, :3], draws.astype(np.float64).mean(0), rtol=1e-5)
    np.testing.assert_allclose(found[:, 3:], draws.astype(np.float64).std(0, ddof=1), rtol=1e-4, atol=1e-4)


def test_equal_draws_do_not_spread() -> None:
    assert (mean_and_spread([np.full((1, 4, 4), 7.3, np.float32)] * 5)[1] == 0).all()


class Drawing(StandInStainer):
    """A network whose draws are the darkness of the slide plus ten times the noise of the place."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def stain(
        self,
        rgb: NDArray[np.uint8],
        origins: Any,
        options: Any,
        channels: Sequence[int],
        margin: int,
        parts: Any = None,
    ) -> NDArray[np.float32]:
        del parts
        self.seen.append(options)
        planes = super().stain(rgb, origins, options, channels, margin)
        side = planes.shape[-1]
        noise = [slide_noise(options.seed, x + margin, y + margin, len(channels), side, side) for x, y in origins]
        return np.clip(planes + 10 * np.stack(noise), 0, 255).astype(np.float32)


def written(slide: Path, output: Path, targets: str, **options: Any) -> tuple[NDArray[np.uint8], Any, Drawing]:
    stainer = Drawing()
    options = {"mpp": 1.3, "tissue_mask": False, "overwrite": True} | options
    result = stain_slide(slide, targets, model=stainer, output=output, options=StainOptions(**options))
    with tifffile.TiffFile(result.output) as file:
        return file.series[0].levels[0].asarray(), result.details, stainer


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return save_slide(tmp_path / "s.png", he_texture(150, 170))


def test_the_file_holds_means_and_then_standard_deviations(slide: Path, tmp_path: Path) -> None:
    planes, details, stainer = written(slide, tmp_path / "o.ome.tiff", "CD8,Pan-CK", samples=6, steps=3, seed=5)
    assert details["output"]["channels"] == ["CD8a", "Pan-CK", "CD8a SD", "Pan-CK SD"]
    assert (details["readout"], details["samples"], details["steps"], details["seed"]) == ("sample", 6, 3, 5)
    assert "standard deviation" in details["spread"]
    assert {options.seed for options in stainer.seen} == set(draw_seeds(5, 6))
    single = [written(slide, tmp_path / "1.ome.tiff", "CD8,Pan-CK", steps=3, seed=s)[0] for s in draw_seeds(5, 6)]
    draws = np.stack(single).astype(np.float64)
    assert np.abs(planes[:2] - draws.mean(0)).max() <= 1
    assert np.abs(planes[2:] - draws.std(0, ddof=1)).max() <= 1.5
    assert 7 < planes[2:].mean() < 11
    assert details["seams"]["grid_shift"]["max"] == 0


def test_one_target_with_several_samples_is_fluorescence(slide: Path, tmp_path: Path) -> None:
    planes, details, _ = written(slide, tmp_path / "o.ome.tiff", "CD8", samples=2)
    assert planes.shape == (2, 150, 170)
    assert details["output"]["channels"] == ["CD8a", "CD8a SD"]
    plan = plan_stain(
        slide, "CD8", model=Drawing(), output=tmp_path / "p.ome.tiff", options=StainOptions(mpp=1.3, samples=2)
    )
    assert plan.style == "mif"


def test_one_sample_is_the_draw_of_its_seed(slide: Path, tmp_path: Path) -> None:
    one, details, _ = written(slide, tmp_path / "o.ome.tiff", "all", readout="sample", samples=1, seed=3)
    assert details["output"]["channels"] == ["Hoechst", "CD8a", "Pan-CK"]
    assert details["spread"] is None
    assert np.array_equal(one, written(slide, tmp_path / "o.ome.tiff", "all", readout="sample", seed=3)[0])


@pytest.mark.parametrize(
    ("options", "readout"),
    [({}, "mean"), ({"steps": 2}, "sample"), ({"samples": 2}, "sample"), ({"seed": 4}, "mean")],
)
def test_steps_and_samples_ask_for_a_draw(options: Any, readout: str) -> None:
    assert StainOptions(**options).reads_out == readout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"readout": "mean", "steps": 4}, "--readout sample"),
        ({"readout": "mean", "samples": 4}, "--readout sample"),
        ({"style": "ihc", "samples": 4}, "--as mif"),
        ({"samples": 0}, "at least 1"),
    ],
)
def test_contradictions_are_refused(options: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        StainOptions(**options)
