"""Makes a bundle of a training run: fits what is not learnt by descent, measures it on the dev split, and writes it.

``python -m mupd_wsi.training.export RECIPE --run FOLDER -o BUNDLE``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mupd_wsi.markers import Marker, Panel
from mupd_wsi.model.bundle import ModelInfo, write_bundle
from mupd_wsi.model.calibration import Calibration, RootMoments
from mupd_wsi.model.loading import load_model
from mupd_wsi.model.noise import Gains
from mupd_wsi.model.protocol import TileStainer
from mupd_wsi.model.transform import TargetTransform
from mupd_wsi.request import SampleOptions
from mupd_wsi.training.adapters import merged
from mupd_wsi.training.finished import tile_shape
from mupd_wsi.training.fitting import SHOWN_AREA, CurveCounts, display_windows, fit_stain_reference
from mupd_wsi.training.measure import markdown_table, measure_tiles
from mupd_wsi.training.neighbours import SquareReader, stain_tiles
from mupd_wsi.training.recipe import CHECKPOINT, HEADS, Recipe, load_recipe
from mupd_wsi.training.sources import PairSource, open_pairs
from mupd_wsi.training.telling import told_in_a_line
from mupd_wsi.training.tiles import PairedTiles, TilePlace

SAMPLED_TILES = 19  # dev tiles at most that the curves and windows of the draws are taken from

COLORS: dict[str, tuple[int, int, int]] = {
    "Hoechst": (64, 96, 255),
    "Autofluorescence": (128, 128, 128),
    "CD31": (255, 128, 0),
    "CD45": (255, 255, 0),
    "CD68": (255, 0, 128),
    "CD4": (0, 255, 128),
    "FOXP3": (255, 64, 255),
    "CD8a": (0, 255, 0),
    "CD45RO": (192, 255, 0),
    "CD20": (255, 0, 255),
    "PD-L1": (255, 192, 64),
    "CD3e": (255, 80, 60),
    "CD163": (255, 96, 96),
    "E-cadherin": (0, 192, 255),
    "PD-1": (160, 96, 255),
    "Ki67": (255, 0, 0),
    "Pan-CK": (0, 255, 255),
    "alpha-SMA": (255, 160, 0),
}


#: Colours of markers that COLORS does not know, in turn.
OTHER_COLORS = ((255, 255, 255), (0, 255, 160), (255, 128, 192), (128, 192, 255), (255, 224, 128), (192, 128, 255))


def export(
    recipe: Recipe, run: Path, folder: Path, *, calibrate_on: int | None = None, pairs: PairSource | None = None
) -> ModelInfo:
    """Write the bundle of a run's averaged weights.

    Args:
        recipe: of the run.
        run: its folder, with a checkpoint.
        folder: of the bundle.
        calibrate_on: train tiles to fit the curves on, spread evenly; None takes all.
        pairs: where the tiles come from; None opens what the recipe names.
    """
    state = torch.load(run / (CHECKPOINT if recipe.heads is None else HEADS), weights_only=True, map_location="cpu")
    weights = merged(state["average"])
    source = pairs or open_pairs(recipe, run / "tiles")
    info = _raw_info(
        recipe,
        TargetTransform(**{k: tuple(v) for k, v in state["transform"].items()}),
        state["step"],
        source.described(),
        state.get("moments"),
    )
    write_bundle(folder, info, weights)
    slide, train = source.around(), source.tiles("train")
    chosen = np.linspace(0, len(train.places) - 1, calibrate_on or len(train.places)).astype(int)
    raw = load_model(folder)
    counts = CurveCounts.empty(len(recipe.markers))
    for i, roots in zip(chosen, stain_tiles(raw, slide, _at(train, chosen), SampleOptions("mean")), strict=True):
        counts.add(roots, train.markers[i])
    calibration = counts.fit()
    dev = source.tiles("dev")
    draw_calibration, drawn = match_draws(raw, slide, dev)
    display = {
        "mean": display_windows(counts.pixels, calibration, train.markers, SHOWN_AREA["mean"]),
        "sample": display_windows(drawn, draw_calibration, dev.markers, SHOWN_AREA["sample"]),
    }
    reference = fit_stain_reference(train.he, train.patch_tissue)
    info = replace(
        info,
        calibration=calibration,
        draw_calibration=draw_calibration,
        display_window=display,
        stain_reference=reference,
    )
    write_bundle(folder, info, weights)
    stainer = load_model(folder)
    metrics = {
        "dev": measure_tiles(stainer, dev, slide, SampleOptions("mean")),
        "dev_sample": measure_tiles(stainer, dev, slide, SampleOptions("sample")),
    }
    return write_bundle(folder, replace(info, metrics=metrics), weights)


def match_draws(raw: TileStainer, slide: SquareReader, tiles: PairedTiles) -> tuple[Calibration, NDArray[np.int64]]:
    """Curves that give draws the real stain's distribution, and how often each root was drawn.

    Args:
        raw: draws roots as they come.
        slide: the H&E around the tiles.
        tiles: that training has not seen. What it has seen is drawn too faithfully, and the curves would be too steep.
    """
    channels = len(raw.info.panel)
    drawn, levels = CurveCounts.empty(channels), np.zeros((channels, 256), np.int64)
    some = np.unique(np.linspace(0, len(tiles.places) - 1, SAMPLED_TILES).astype(int))
    for i, roots in zip(some, stain_tiles(raw, slide, _at(tiles, some), SampleOptions("sample")), strict=True):
        drawn.add(roots, tiles.markers[i])
        levels += np.stack([np.bincount(plane.ravel(), minlength=256) for plane in tiles.markers[i]])
    return drawn.match(levels), drawn.pixels


def _raw_info(
    recipe: Recipe,
    transform: TargetTransform,
    steps: int,
    described: Mapping[str, object],
    moments: Mapping[str, Any] | None,
) -> ModelInfo:
    """A card whose calibration returns the predicted roots themselves."""
    channels = len(recipe.markers)
    others = cycle(OTHER_COLORS)
    panel = Panel(tuple(Marker(name, COLORS.get(name) or next(others)) for name in recipe.markers))
    network = recipe.finished_config
    tile, halo, lead = tile_shape(network)
    identity = Calibration((0.0,) * channels, (16.0,) * channels, ((0.0, 16.0),) * channels)
    return ModelInfo(
        name=recipe.name,
        version=recipe.version,
        license=recipe.license,
        credit=recipe.credit,
        panel=panel,
        mpp=recipe.mpp,
        tile=tile,
        halo=halo,
        lead=lead,
        network=network,
        transform=transform,
        calibration=identity,
        draw_calibration=identity,
        display_window={"mean": ((0.0, 255.0),) * channels, "sample": ((0.0, 255.0),) * channels},
        stain_reference=None,
        steps=recipe.sample_steps,
        training={
            **described,
            "optimiser_steps": steps,
            "batch": recipe.batch,
            "crop": recipe.crop,
            **({} if recipe.heads is None else {"heads_steps": recipe.heads.steps, "heads_batch": recipe.heads.batch}),
        },
        metrics={},
        limits=recipe.limits,
        weights_sha256="",
        time_shift=1.0 if recipe.heads is None else recipe.heads.time_shift,
        noise_blurs=() if recipe.heads is None else recipe.heads.noise_blurs,
        noise_gains=_gains(recipe),
        draw_moments=None if moments is None else RootMoments.from_json(moments),
    )


def _gains(recipe: Recipe) -> Gains:
    """A row a marker; none where the recipe makes no part of the noise stronger or weaker."""
    if recipe.heads is None or not recipe.heads.noise_gains:
        return ()
    as_it_is = (1.0,) * len(recipe.heads.noise_blurs)
    return tuple(recipe.heads.noise_gains.get(marker, as_it_is) for marker in recipe.markers)


def _at(tiles: PairedTiles, chosen: NDArray[np.int_]) -> tuple[TilePlace, ...]:
    return tuple(tiles.places[i] for i in chosen)


@told_in_a_line
def main() -> int:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(prog="python -m mupd_wsi.training.export", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--calibrate-on", type=int, help="train tiles to fit the curves on (default: all)")
    arguments = parser.parse_args()
    info = export(load_recipe(arguments.recipe), arguments.run, arguments.output, calibrate_on=arguments.calibrate_on)
    for split, table in info.metrics.items():
        sys.stdout.write(f"\n{split}\n{markdown_table(table)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
