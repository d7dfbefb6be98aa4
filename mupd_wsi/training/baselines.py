"""What the model is compared with, on the same tiles: the mean stain, linear maps, and a plain regression U-Net.

``python -m mupd_wsi.training.baselines RECIPE --run FOLDER --seconds 2700 [--model mupd-mini]``

prints one table of all. The U-Net has as many parameters as the recipe's network and is trained on crops drawn as the
recipe draws them, for the time given (which should be the model's own). Like the model it learns standardised roots of
intensities and is then calibrated by a rising curve a marker on train tiles, so that the networks alone differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from mupd_wsi.model.devices import resolve_device
from mupd_wsi.model.features import image_features
from mupd_wsi.model.loading import load_model
from mupd_wsi.model.network import MuPDNetwork, parameter_count
from mupd_wsi.request import SampleOptions
from mupd_wsi.training.augment import jitter_stains
from mupd_wsi.training.fitting import CurveCounts, fit_transform
from mupd_wsi.training.measure import MEAN_ROW, Table, agreement_table, measure_tiles
from mupd_wsi.training.neighbours import SquareReader
from mupd_wsi.training.objective import Objective
from mupd_wsi.training.recipe import Recipe, load_recipe
from mupd_wsi.training.sources import PairSource, open_pairs
from mupd_wsi.training.telling import told_in_a_line
from mupd_wsi.training.tiles import CropSampler, PairedTiles
from mupd_wsi.training.trainer import autocast
from mupd_wsi.training.unet import PlainUNet, unet_of_size

#: Sides of the squares whose mean optical densities the linear map sees, px.
SCALES: Final = (1, 3, 9, 25, 63, 127)
#: H&E around a tile that predictions see, px.
MARGIN: Final = 64
#: Every how many rows and columns a pixel is taken for the linear fit.
STRIDE: Final = 4
RIDGE: Final = 1e-6
CALIBRATED_ON: Final = 24

#: From H&E with MARGIN px around a tile, uint8 (h, w, 3), to what is predicted of the tile, float32 (C, h', w').
Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def mean_stain(train: PairedTiles) -> NDArray[np.float32]:
    """Mean of each marker over all train pixels, (C,): what is known without looking at the H&E."""
    return np.asarray(train.markers.mean(axis=(0, 2, 3), dtype=np.float64), np.float32)


def density_features(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Optical densities of red, green and blue, and their means over squares of SCALES px: (h, w, 18)."""
    density = -np.log10((rgb.astype(np.float32) + 1) / 256)
    return np.concatenate([density if s == 1 else cv2.blur(density, (s, s)) for s in SCALES], axis=2)


def fit_linear(train: PairedTiles, around: SquareReader, *, of_roots: bool) -> NDArray[np.float64]:
    """The best linear map from :func:`density_features` and 1 to intensities, or to their roots (least squares).

    Neither is the better one of all markers: squares of roots follow extremes further, such as a haemorrhage.

    Returns:
        (19, C).
    """
    size = 3 * len(SCALES) + 1
    gram, cross = np.zeros((size, size)), np.zeros((size, train.markers.shape[1]))
    for rgb, real in _with_margin(train, around):
        inner = density_features(rgb)[MARGIN:-MARGIN:STRIDE, MARGIN:-MARGIN:STRIDE].reshape(-1, size - 1)
        x = np.column_stack([inner, np.ones(len(inner))]).astype(np.float64)
        gram += x.T @ x
        y = real[:, ::STRIDE, ::STRIDE].reshape(len(real), -1).T.astype(np.float64)
        cross += x.T @ (np.sqrt(y) if of_roots else y)
    return np.linalg.solve(gram + RIDGE * np.trace(gram) / size * np.eye(size), cross)


def linear_prediction(weights: NDArray[np.float64], *, of_roots: bool) -> Predict:
    """The map as a predictor of intensities; of roots, none of which lies below 0, by their squares."""

    def predict(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        inner = density_features(rgb)[MARGIN:-MARGIN, MARGIN:-MARGIN]
        found = inner @ weights[:-1].astype(np.float32) + weights[-1].astype(np.float32)
        found = np.square(np.maximum(found, 0)) if of_roots else found
        return np.asarray(found.transpose(2, 0, 1), np.float32)

    return predict


def train_unet(
    recipe: Recipe, train: PairedTiles, seconds: float, device: str, steps: int | None = None
) -> tuple[PlainUNet, int]:
    """Train the U-Net by the recipe's crops, augmentation, loss and peak rate, for so many seconds.

    The rate falls by a cosine of the time, not of the steps, so that it is low when time is up.

    Args:
        recipe: of the model.
        train: tiles.
        seconds: of training.
        device: where.
        steps: stop after so many at the latest.

    Returns:
        The network and its steps.
    """
    torch.manual_seed(recipe.seed)
    with torch.device("meta"):
        wanted = parameter_count(MuPDNetwork(recipe.network_config))
    network = unet_of_size(len(recipe.markers), wanted).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=recipe.weight_decay, betas=(0.9, 0.98))
    transform = fit_transform(train.markers, train.patch_tissue)
    noise, rng = torch.Generator().manual_seed(recipe.seed + 1), np.random.default_rng(recipe.seed)
    sampler = CropSampler(train, recipe.crop, recipe.positive_share, rng)
    weighing = (torch.from_numpy(np.ascontiguousarray(sampler.draw()[1])) for _ in range(64))
    objective = Objective.from_crops(weighing, transform, 0.0).to(device)
    started, step = time.monotonic(), 0
    while (done := (time.monotonic() - started) / seconds) < 1 and (steps is None or step < steps):
        warm = min(1.0, (step + 1) / recipe.warmup)
        rate = recipe.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * done))))
        for group in optimiser.param_groups:
            group["lr"] = rate
        crops = [sampler.draw() for _ in range(recipe.batch)]
        rgb = torch.from_numpy(np.stack([he.transpose(2, 0, 1) for he, _ in crops])).float()
        x0 = transform.standardise(torch.from_numpy(np.stack([m for _, m in crops])).float()).to(device)
        features = image_features(jitter_stains(rgb, recipe.color_jitter, noise)).to(device)
        optimiser.zero_grad(set_to_none=True)
        with autocast(device):
            loss = objective.flow(network(features).float(), x0)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step += 1
    return network.eval(), step


def unet_prediction(network: PlainUNet, train: PairedTiles, around: SquareReader, device: str) -> Predict:
    """The U-Net as a predictor of calibrated intensities."""
    transform = fit_transform(train.markers, train.patch_tissue)

    @torch.inference_mode()
    def roots(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(rgb.transpose(2, 0, 1)[None].copy()).float()
        with autocast(device):
            x0 = network(image_features(pixels).to(device)).float()
        inner = x0[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
        return np.asarray(transform.roots(inner)[0].cpu().numpy())

    counts = CurveCounts.empty(train.markers.shape[1])
    for rgb, real in _with_margin(train, around, CALIBRATED_ON):
        counts.add(roots(rgb), real)
    curves = counts.fit()

    def predict(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        planes = torch.from_numpy(roots(rgb))
        return np.stack([curves.apply(plane, c).numpy() for c, plane in enumerate(planes)])

    return predict


def predicted_table(predict: Predict, tiles: PairedTiles, around: SquareReader, names: tuple[str, ...]) -> Table:
    """Measure a predictor as :func:`mupd_wsi.training.measure.measure` measures a model."""
    return agreement_table(names, ((real, predict(rgb)) for rgb, real in _with_margin(tiles, around)))


def measure_baselines(
    recipe: Recipe, pairs: PairSource, seconds: float, device: str, steps: int | None = None
) -> dict[str, Table]:
    """Fit and measure all of them on the dev tiles; by name."""
    train, dev, around, names = pairs.tiles("train"), pairs.tiles("dev"), pairs.around(), recipe.markers
    means = mean_stain(train)[:, None, None]
    tables = {
        "mean stain": agreement_table(
            names, ((real, np.broadcast_to(means, real.shape).astype(np.float32)) for real in dev.markers)
        ),
    }
    for title, of_roots in (("linear map", False), ("linear map of roots", True)):
        fitted = linear_prediction(fit_linear(train, around, of_roots=of_roots), of_roots=of_roots)
        tables[title] = predicted_table(fitted, dev, around, names)
    network, done = train_unet(recipe, train, seconds, device, steps)
    title = f"U-Net ({sum(p.numel() for p in network.parameters()) / 1e6:.2f} M, {done} steps)"
    tables[title] = predicted_table(unet_prediction(network, train, around, device), dev, around, names)
    return tables


def comparison(tables: dict[str, Table]) -> str:
    """Markdown: a line a marker, a column a predictor, Pearson at the pixel / 8 px / 64 px."""
    first = next(iter(tables.values()))
    lines = [f"| marker | {' | '.join(tables)} |", "|---" * (len(tables) + 1) + "|"]
    for marker in [*(m for m in first if m != MEAN_ROW), MEAN_ROW]:
        cells = (
            " / ".join(_shown(table[marker].get(f"pearson_{p}px")) for p in (1, 8, 64)) for table in tables.values()
        )
        lines.append(f"| {marker} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _with_margin(
    tiles: PairedTiles, around: SquareReader, most: int | None = None
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """H&E with MARGIN px of its neighbours, and the markers of each tile."""
    count = len(tiles.places)
    for i in np.unique(np.linspace(0, count - 1, min(count, most or count)).astype(int)):
        place, side = tiles.places[i], around.tile
        yield around.read(place.x * side - MARGIN, place.y * side - MARGIN, side + 2 * MARGIN), tiles.markers[i]


@told_in_a_line
def main() -> int:
    """Parse the command line, fit, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m mupd_wsi.training.baselines", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--run", type=Path, required=True, help="folder for the tables (baselines.json)")
    parser.add_argument("--seconds", type=float, default=2700.0, help="of the U-Net's training (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--model", help="a model to put beside them: a shipped one's name, or a bundle's folder")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe, device = load_recipe(arguments.recipe), resolve_device(arguments.device)
    with closing(open_pairs(recipe, arguments.run / "tiles")) as pairs:
        tables = measure_baselines(recipe, pairs, arguments.seconds, device)
        if arguments.model:
            with closing(load_model(arguments.model, device=device)) as stainer:
                table = measure_tiles(stainer, pairs.tiles("dev"), pairs.around(), SampleOptions("mean"))
            tables = {stainer.info.name: table} | tables
    arguments.run.mkdir(parents=True, exist_ok=True)
    (arguments.run / "baselines.json").write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(comparison(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
