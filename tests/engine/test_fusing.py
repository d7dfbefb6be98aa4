"""Joining overlaps on whole runs: exact where tiles agree, smooth where they do not, and bounded in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from standins import StandInStainer, he_texture, save_slide
from torch import Tensor, nn

from mupd_wsi.engine.draws import draw_seeds
from mupd_wsi.engine.fusing import JointFlow
from mupd_wsi.engine.overlap import Stopwatch
from mupd_wsi.engine.resources import opened_job
from mupd_wsi.engine.staining import stained_tiles
from mupd_wsi.errors import BundleError, UsageError
from mupd_wsi.geometry import Region
from mupd_wsi.model import SampleOptions, Stainer, find_bundle, read_info
from mupd_wsi.model.bundle import ModelInfo
from mupd_wsi.model.config import NetworkConfig
from mupd_wsi.model.extents import Extent
from mupd_wsi.model.noise import slide_noise
from mupd_wsi.pipeline import StainOptions, stain_slide
from mupd_wsi.stitching.mosaic import fading_weights
from mupd_wsi.tiling import Tile

TILE, HALO = 96, 16


def info(tile: int = TILE, halo: int = HALO) -> ModelInfo:
    """The shipped model's card, for small tiles."""
    shipped = read_info(find_bundle("mupd-mini"))
    network = NetworkConfig(targets=18, stage_widths=(8,), stage_depths=(1,), window=4, patch=4)
    plain = {"draw_moments": None, "noise_blurs": (), "noise_gains": (), "time_shift": 1.0}
    return replace(shipped, tile=tile, halo=halo, lead=0, network=network, steps=3, **plain)


class GlobalAttention(nn.Module):
    """A random network that sees its whole tile: what it makes of a place depends on where the tile's edges lie."""

    def __init__(self, reach: float = 6.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Parameter(torch.randn(64 * (6 + 18), 32, generator=generator) / 40)
        self.key = nn.Parameter(torch.randn(32, 32, generator=generator) / 3)
        self.back = nn.Parameter(torch.randn(32, 64 * 18, generator=generator) / 3)
        self.reach = reach

    def as_precision(self, dtype: torch.dtype) -> GlobalAttention:
        return self.to(dtype)

    def forward(
        self, image: Tensor, t: Tensor, noisy: Tensor | None = None, lead: int = 0, wanted: Any = None
    ) -> Tensor:
        del lead
        b, _, h, w = image.shape
        x = torch.cat([image, torch.zeros(b, 18, h, w) if noisy is None else noisy], dim=1)
        tokens = nn.functional.unfold(x, 8, stride=8).transpose(1, 2) @ self.embed
        tokens = tokens + self.reach * nn.functional.scaled_dot_product_attention(tokens @ self.key, tokens, tokens)
        patches = (tokens.tanh() @ self.back).transpose(1, 2)
        smooth = nn.functional.fold(patches, (h, w), 8, stride=8) * (0.5 + 0.5 * t[:, None, None, None])
        for kernel, padding in (((17, 1), (8, 0)), ((1, 17), (0, 8))):
            smooth = nn.functional.avg_pool2d(smooth, kernel, 1, padding, count_include_pad=False)
        rows, columns = wanted or (Extent(0, h), Extent(0, w))
        return 6 * smooth[:, :, rows.start : rows.stop, columns.start : columns.stop]


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return save_slide(tmp_path / "s.png", uneven_tissue(220, 260))


@pytest.fixture(scope="module")
def attentive() -> Iterator[Stainer]:
    stainer = Stainer(info(), GlobalAttention(), "cpu", "fp32", 2)  # type: ignore[arg-type]
    yield stainer
    stainer.close()


def uneven_tissue(height: int, width: int) -> NDArray[np.uint8]:
    """Tissue that is darker here and there, so that tiles differ as wholes."""
    y, x = np.mgrid[:height, :width]
    shade = 0.7 + 0.3 * np.sin(x / 35) * np.sin(y / 45)
    return (he_texture(height, width) * shade[..., None]).astype(np.uint8)


def planes_of(slide: Path, stainer: Any, **options: Any) -> NDArray[np.float32]:
    """Intensities of the region that is stained, (channels, h, w); 0 where no tile is written."""
    chosen = StainOptions(**{"mpp": 1.3, "tissue_mask": False, "normalise": False} | options)
    with opened_job(slide, "all", stainer, slide.with_name("never.ome.tiff"), chosen, Stopwatch()) as job:
        region = job.grid.region
        canvas = np.zeros((len(job.windows), region.height, region.width), np.float32)
        read = ((tile, job.read(tile)) for tile in job.tiles())
        expected = list(job.cores())
        for tiles, intensities in stained_tiles(job, read, Stopwatch()):
            for tile, planes in zip(tiles, intensities, strict=True):
                assert tile == expected.pop(0)
                y, x = tile.core.y - region.y, tile.core.x - region.x
                canvas[:, y : y + tile.core.height, x : x + tile.core.width] = tile.crop(planes)
        assert expected == []
    return canvas


@pytest.mark.parametrize("sampling", [{"readout": "mean"}, {"steps": 3, "seed": 3}])
def test_joint_mends_the_seams_of_global_attention(sampling: Any, slide: Path, attentive: Stainer) -> None:
    found = {}
    for fuse in ("crop", "blend", "joint"):
        options = StainOptions(mpp=1.3, tissue_mask=False, overwrite=True, normalise=False, fuse=fuse, **sampling)
        output = slide.with_name("o.ome.tiff")
        found[fuse] = stain_slide(slide, "all", model=attentive, output=output, options=options).details["seams"]
        assert stain_facts(output)["fuse"] == fuse
    ratios = {fuse: seams["edge_step"]["ratio"] for fuse, seams in found.items()}
    assert ratios["crop"] > 1.2, ratios
    assert ratios["blend"] < 1.15, ratios
    assert ratios["joint"] < 1.15, ratios


def stain_facts(output: Path) -> Any:
    return json.loads(output.with_name(f"{output.name}.json").read_text())


def whole_canvas(slide: Path, stainer: Stainer, sampling: SampleOptions) -> NDArray[np.float32]:
    """Joint denoising of all tiles at once on one canvas of the whole slide: simple, and not bounded in memory."""
    options = StainOptions(mpp=1.3, tissue_mask=False, normalise=False)
    with opened_job(slide, "all", stainer, slide.with_name("never.ome.tiff"), options, Stopwatch()) as job:
        tiles = list(job.tiles())
        size, side, halo = job.grid.image, job.grid.side, job.grid.halo
        rgb = {tile.origin: job.read(tile) for tile in tiles}
        height, width = size.height + 2 * side, size.width + 2 * side  # from (-halo, -halo) on
        state = slide_noise(sampling.seed, -halo, -halo, 18, height, width)
        if sampling.readout == "mean":
            state[:] = 0
        weights = fading_weights(side, halo)
        times = stainer.times(sampling)
        for t, t_next in pairwise(times):
            total, weight = np.zeros_like(state), np.zeros(state.shape[1:], np.float32)
            for tile in tiles:
                x, y = (v + halo for v in tile.origin)
                window = np.s_[y : y + side, x : x + side]
                noisy = None if sampling.readout == "mean" else state[:, *window][None]
                total[:, *window] += weights * stainer.predict(rgb[tile.origin][None], noisy, t)[0]
                weight[window] += weights
            x0 = total / np.maximum(weight, 1e-30)
            state = x0 + (t_next / t) * (state - x0)
        inner = state[None, :, halo : halo + size.height, halo : halo + size.width]
        return stainer.intensities(np.ascontiguousarray(inner), sampling.readout, job.channels)[0]


@pytest.mark.parametrize(
    ("tile", "halo", "options"),
    [
        (TILE, HALO, {"readout": "mean"}),
        (TILE, HALO, {"steps": 4, "seed": 1}),
        (96, 32, {"steps": 3, "seed": 5}),  # halos wider than cores
        (128, 0, {"steps": 2, "seed": 2}),
    ],
)
def test_a_moving_band_gives_what_a_whole_canvas_gives(tile: int, halo: int, options: Any, slide: Path) -> None:
    stainer = Stainer(info(tile, halo), GlobalAttention(), "cpu", "fp32", 2)  # type: ignore[arg-type]
    sampling = SampleOptions(options.get("readout", "sample"), options.get("steps"), options.get("seed", 0))
    expected = whole_canvas(slide, stainer, sampling)
    found = planes_of(slide, stainer, fuse="joint", **options)
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert np.ptp(expected) > 10
    stainer.close()


@pytest.mark.parametrize("fuse", ["blend", "joint"])
@pytest.mark.parametrize("options", [{}, {"steps": 2}])
def test_a_region_is_the_crop_of_the_whole(fuse: str, options: Any, slide: Path, attentive: Stainer) -> None:
    whole = planes_of(slide, attentive, fuse=fuse, **options)
    for roi in (Region(100, 70, 80, 90), Region(0, 150, 30, 70), Region(259, 219, 1, 1)):
        part = planes_of(slide, attentive, fuse=fuse, roi=roi, **options)
        assert np.array_equal(part, whole[:, roi.y : roi.bottom, roi.x : roi.right])


def test_blending_is_the_same_with_and_without_a_mask_inside_tissue(tmp_path: Path, attentive: Stainer) -> None:
    pixels = np.full((500, 600, 3), 243, np.uint8)
    pixels[40:300, 60:330] = he_texture(260, 270)
    slide = save_slide(tmp_path / "s.png", pixels)
    every = planes_of(slide, attentive, fuse="blend")
    masked = planes_of(slide, attentive, fuse="blend", tissue_mask=True)
    inside = np.s_[:, 60:280, 80:310]
    assert np.array_equal(masked[inside], every[inside])
    assert (masked[:, 400:, 450:] == 0).all()


def test_tiles_that_agree_are_not_changed_by_joining_them(slide: Path) -> None:
    stainer = StandInStainer(tile=96, halo=16)
    cropped = planes_of(slide, stainer, fuse="crop")
    np.testing.assert_allclose(planes_of(slide, stainer, fuse="blend"), cropped, atol=1e-3)


def test_several_samples_run_side_by_side(slide: Path, attentive: Stainer) -> None:
    roi = Region(100, 100, 60, 60)
    both = planes_of(slide, attentive, fuse="joint", steps=2, samples=2, seed=4, roi=roi)
    single = [planes_of(slide, attentive, fuse="joint", steps=2, seed=s, roi=roi) for s in draw_seeds(4, 2)]
    np.testing.assert_allclose(both[:18], np.mean(single, axis=0), atol=1e-3)
    np.testing.assert_allclose(both[18:], np.std(single, axis=0, ddof=1), atol=1e-2)


@pytest.mark.parametrize("steps", [2, 4])
def test_memory_does_not_grow_with_height(steps: int, tmp_path: Path, attentive: Stainer) -> None:
    most = {}
    for height in (448, 896):
        slide = save_slide(tmp_path / f"{height}.png", he_texture(height, 100))
        options = StainOptions(mpp=1.3, tissue_mask=False, normalise=False, fuse="joint", steps=steps)
        with opened_job(slide, "all", attentive, tmp_path / "never.ome.tiff", options, Stopwatch()) as job:
            flow = JointFlow(job, job.sampling)
            held = []
            rows = {row: [(t, job.read(t)) for t in tiles] for row, tiles in groupby(job.tiles(), _row)}
            for row in range(max(rows) + 1 + flow.delay + 1):
                flow.advance(row, rows.get(row, []))
                flow.forget(row - flow.delay)
                held.append(flow.cells_held)
            most[height] = max(held)
            width = len({tile.origin[0] for tiles in rows.values() for tile, _ in tiles}) + 1
    assert most[448] == most[896] <= (steps + 1) * 2 * 2 * width


def _row(tile: Tile) -> int:
    return (tile.origin[1] + HALO) // (TILE - 2 * HALO)


def test_what_cannot_be_joined_step_by_step_is_refused(slide: Path) -> None:
    with pytest.raises(UsageError, match="--fuse blend"):
        planes_of(slide, StandInStainer(), fuse="joint")


def test_a_model_says_how_its_tiles_are_joined(slide: Path, attentive: Stainer) -> None:
    assert read_info(find_bundle("mupd-mini")).fuse == "crop"
    own = Stainer(replace(info(), fuse="blend"), GlobalAttention(), "cpu", "fp32", 2)  # type: ignore[arg-type]
    assert np.array_equal(planes_of(slide, own), planes_of(slide, attentive, fuse="blend"))
    own.close()
    with pytest.raises(BundleError, match="fuse must be one of"):
        replace(info(), fuse="glue")
