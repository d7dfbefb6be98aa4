"""Makes a bundle of a training run: fits what is not learnt by descent, measures it on the dev split, and writes it.

``python -m mupd_wsi.training.export RECIPE --run FOLDER -o BUNDLE``
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mupd_wsi.errors import MupdError
from mupd_wsi.markers import Marker, Panel
from mupd_wsi.model.bundle import ModelInfo, write_bundle
from mupd_wsi.model.calibration import Calibration
from mupd_wsi.model.stainer import SampleOptions, load_model
from mupd_wsi.model.transform import TargetTransform
from mupd_wsi.training.fitting import SHOWN_AREA, CurveCounts, display_windows, fit_stain_reference
from mupd_wsi.training.measure import markdown_table, measure
from mupd_wsi.training.neighbours import SlideOfTiles, stain_tiles
from mupd_wsi.training.recipe import Recipe, load_recipe
from mupd_wsi.training.tiles import PairedTiles, TilePlace, load_tiles

# Cores begin and end half a window (64 px) inside one, and 48 px of convolutions lie before and after the trunk.
TILE, HALO, LEAD = 736, 112, 48
SAMPLED_TILES = 14  # train tiles that the curves and windows of the draws are taken from

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


def export(recipe: Recipe, run: Path, folder: Path, *, calibrate_on: int | None = None) -> ModelInfo:
    """Write the bundle of a run's averaged weights.

    Args:
        recipe: of the run.
        run: its folder, with a checkpoint.
        folder: of the bundle.
        calibrate_on: train tiles to fit the curves on, spread evenly; None takes all.
    """
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    info = _raw_info(recipe, TargetTransform(**{k: tuple(v) for k, v in state["transform"].items()}), state["step"])
    write_bundle(folder, info, state["average"])
    slide = SlideOfTiles(recipe.data)
    train = load_tiles(recipe.data, "train", recipe.markers)
    chosen = np.linspace(0, len(train.places) - 1, calibrate_on or len(train.places)).astype(int)
    raw = load_model(folder)
    counts = CurveCounts.empty(len(recipe.markers))
    for i, roots in zip(chosen, stain_tiles(raw, slide, _at(train, chosen), SampleOptions("mean")), strict=True):
        counts.add(roots, train.markers[i])
    calibration = counts.fit()
    drawn, levels = CurveCounts.empty(len(recipe.markers)), np.zeros((len(recipe.markers), 256), np.int64)
    some = chosen[:: max(1, len(chosen) // SAMPLED_TILES)]
    for i, roots in zip(some, stain_tiles(raw, slide, _at(train, some), SampleOptions("sample")), strict=True):
        drawn.add(roots, train.markers[i])
        levels += np.stack([np.bincount(plane.ravel(), minlength=256) for plane in train.markers[i]])
    draw_calibration = drawn.match(levels)
    display = {
        "mean": display_windows(counts.pixels, calibration, train.markers, SHOWN_AREA["mean"]),
        "sample": display_windows(drawn.pixels, draw_calibration, train.markers, SHOWN_AREA["sample"]),
    }
    reference = fit_stain_reference(train.he, train.patch_tissue)
    info = replace(
        info,
        calibration=calibration,
        draw_calibration=draw_calibration,
        display_window=display,
        stain_reference=reference,
    )
    write_bundle(folder, info, state["average"])
    stainer = load_model(folder)
    metrics = {
        "dev": measure(stainer, recipe.data, SampleOptions("mean")),
        "dev_sample": measure(stainer, recipe.data, SampleOptions("sample")),
    }
    return write_bundle(folder, replace(info, metrics=metrics), state["average"])


def _raw_info(recipe: Recipe, transform: TargetTransform, steps: int) -> ModelInfo:
    """A card whose calibration returns the predicted roots themselves."""
    channels = len(recipe.markers)
    panel = Panel(tuple(Marker(name, COLORS[name]) for name in recipe.markers))
    identity = Calibration((0.0,) * channels, (16.0,) * channels, ((0.0, 16.0),) * channels)
    return ModelInfo(
        name=recipe.name,
        version="0.1.1",
        license="Apache-2.0",
        credit="Trained on ORION P37_S29-CRC01 (Lin, Chen, Campton et al., Nature Cancer 2023, "
        "doi 10.1038/s43018-023-00576-1), images by way of labsyspharm/minerva-story (MIT, (c) 2020 Laboratory of "
        "Systems Pharmacology, Harvard Medical School)",
        panel=panel,
        mpp=recipe.mpp,
        tile=TILE,
        halo=HALO,
        lead=LEAD,
        network=recipe.network_config,
        transform=transform,
        calibration=identity,
        draw_calibration=identity,
        display_window={"mean": ((0.0, 255.0),) * channels, "sample": ((0.0, 255.0),) * channels},
        stain_reference=None,
        steps=recipe.sample_steps,
        training={
            "data": "orion-crc01, train columns",
            "optimiser_steps": steps,
            "batch": recipe.batch,
            "crop": recipe.crop,
        },
        metrics={},
        limits=recipe.limits,
        weights_sha256="",
    )


def _at(tiles: PairedTiles, chosen: NDArray[np.int_]) -> tuple[TilePlace, ...]:
    return tuple(tiles.places[i] for i in chosen)


def main() -> int:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(prog="python -m mupd_wsi.training.export", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--calibrate-on", type=int, help="train tiles to fit the curves on (default: all)")
    arguments = parser.parse_args()
    try:
        info = export(
            load_recipe(arguments.recipe), arguments.run, arguments.output, calibrate_on=arguments.calibrate_on
        )
    except MupdError as error:
        sys.stderr.write(f"export: error: {error}\n")
        return 3
    for split, table in info.metrics.items():
        sys.stdout.write(f"\n{split}\n{markdown_table(table)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
