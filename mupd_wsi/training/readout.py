"""Fits the read-out's own blocks to expected intensities, on the finished features of a trained network.

``python -m mupd_wsi.training.readout RECIPE --run FOLDER`` goes on from the folder's checkpoint. The features are
computed once and kept on disk, so that a step costs a twentieth of one of the whole network. Training towards
intensities moves nothing that the flow uses: read-out and draw want different things of shared features.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mupd_wsi.errors import MupdError, UsageError
from mupd_wsi.model.extents import Extent, cut
from mupd_wsi.model.features import image_features
from mupd_wsi.model.network import MuPDNetwork
from mupd_wsi.training.neighbours import SlideOfTiles
from mupd_wsi.training.recipe import Recipe, load_recipe
from mupd_wsi.training.tiles import PairedTiles, TilePlace, load_tiles

TILE, HALO, LEAD = 736, 112, 48  # px, as in the bundle: the features are those that staining will see
CROP = 64  # tokens
BATCH = 8
PEAK_RATE, WARMUP, WEIGHT_DECAY, EMA_DECAY = 2e-3, 50, 0.02, 0.99
RIDGE = 1e-3  # of the mean eigenvalue
CEILING_QUANTILE = 0.9995  # dust and folds outshine every cell
#: Shares of the loss by side of the squares, px, whose means are compared.
SCALES = {1: 0.5, 8: 0.3, 32: 0.2}
LEAST_TISSUE = 0.2  # of a crop

Report = Callable[[int, int, float], None]


def fit_readout(recipe: Recipe, run: Path, report: Report, threads: int = 2) -> None:
    """Add the read-out's blocks to a run's averaged weights: ``checkpoint.pt`` becomes ``readout.pt``.

    Memory: the markers of the train tiles (1 MB a channel and 1024-px tile); the features stay on disk.

    Args:
        recipe: of the run; ``readout_depth`` and ``readout_steps`` say what is fitted.
        run: folder with a checkpoint.
        report: told step, steps and the mean loss.
        threads: of the processor.

    Raises:
        UsageError: the recipe has no ``readout_depth``.
    """
    if recipe.readout_depth < 1:
        raise UsageError("the recipe has readout_depth 0: there is nothing to fit")
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    torch.manual_seed(recipe.seed)
    network = MuPDNetwork(replace(recipe.network_config, readout_depth=recipe.readout_depth))
    missing = network.load_state_dict(state["average"], strict=False).missing_keys
    if any(not name.startswith("readout_") for name in missing):
        raise UsageError(f"{run} holds another network than the recipe's")
    tiles = load_tiles(recipe.data, "train", recipe.markers)
    folder = run / "features"
    keep_features(network, SlideOfTiles(recipe.data), tiles.places, folder, threads)
    torch.set_num_threads(threads)
    least_squares(network, tiles, folder)
    own = [*network.readout_blocks.parameters(), *network.readout_head.parameters()]
    average = _descend(network, own, tiles, folder, recipe, report)
    for parameter, mean in zip(own, average, strict=True):
        parameter.data.copy_(mean)
    torch.save(state | {"average": network.state_dict(), "readout_depth": recipe.readout_depth}, run / "readout.pt")


def keep_features(
    network: MuPDNetwork, slide: SlideOfTiles, places: tuple[TilePlace, ...], folder: Path, threads: int
) -> None:
    """Compute the features that the heads are given, fp16 (tile / patch, tile / patch, width) a tile, where missing."""
    folder.mkdir(parents=True, exist_ok=True)
    core, patch, lead = TILE - 2 * HALO, network.config.patch, LEAD // network.config.trunk_stride
    inner = Extent(HALO, TILE - HALO)

    def compute(place: TilePlace) -> None:
        torch.set_num_threads(1)
        path = feature_file(folder, place)
        if path.exists():
            return
        side = slide.tile // patch
        out = np.empty((side, side, network.config.stage_widths[0]), np.float16)
        for y in range(0, slide.tile, core):
            for x in range(0, slide.tile, core):
                rgb = slide.read(place.x * slide.tile + x - HALO, place.y * slide.tile + y - HALO, TILE)
                with torch.inference_mode():
                    image = image_features(torch.from_numpy(rgb[None]).permute(0, 3, 1, 2).float())
                    found, parts = network.features(image, torch.ones(1), lead=lead, wanted=(inner, inner))
                found = cut(found, [part.head for part in parts], [part.wanted for part in parts], patch)[0]
                rows, columns = (slice(at // patch, at // patch + len(found)) for at in (y, x))
                out[rows, columns] = found.half().numpy()
        part = path.with_suffix(".part")
        with part.open("wb") as stream:
            np.save(stream, out)
        part.replace(path)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(compute, places))


def feature_file(folder: Path, place: TilePlace) -> Path:
    """Where a tile's features lie."""
    return folder / f"{place.x}_{place.y}.npy"


def least_squares(network: MuPDNetwork, tiles: PairedTiles, folder: Path) -> None:
    """Set the read-out's head to the linear map of the features that is nearest to the intensities (ridge regression).

    Its blocks are made to change nothing yet.
    """
    width, patch = network.config.stage_widths[0], network.config.patch
    outputs = patch * patch * network.config.targets
    squares, products = torch.zeros(width + 1, width + 1), torch.zeros(width + 1, outputs)
    for place, markers in zip(tiles.places, tiles.markers, strict=True):
        features = torch.from_numpy(np.load(feature_file(folder, place))).float().flatten(0, 1)
        x = torch.cat([features, torch.ones(len(features), 1)], dim=1)
        y = _patches(torch.from_numpy(markers)[None].float(), patch).flatten(0, 2)
        squares += x.T @ x / len(x)
        products += x.T @ y / len(x)
    ridge = RIDGE * squares.diagonal().mean() * torch.eye(width + 1)
    weights = torch.linalg.solve((squares + ridge).double(), products.double()).float()
    with torch.no_grad():
        network.readout_head.weight.copy_(weights[:-1].T)
        network.readout_head.bias.copy_(weights[-1])
        for block in network.readout_blocks:
            block.gain.zero_()  # type: ignore[operator]  # a ConvBlock, typed as Module by torch


def _descend(
    network: MuPDNetwork, own: Sequence[Tensor], tiles: PairedTiles, folder: Path, recipe: Recipe, report: Report
) -> list[Tensor]:
    """Train the read-out's blocks and head; returns their moving averages."""
    rng = np.random.default_rng(recipe.seed)
    maps = [np.load(feature_file(folder, place), mmap_mode="r") for place in tiles.places]
    drawn = [_draw(maps, tiles, network.config.patch, rng) for _ in range(256)]
    ceiling, weights = _balance(torch.stack([y for _, y in drawn]))
    time = network.time(torch.ones(1)).detach()
    optimiser = torch.optim.AdamW(own, weight_decay=WEIGHT_DECAY)
    average, mean = [p.detach().clone() for p in own], math.nan
    for step in range(recipe.readout_steps):
        for group in optimiser.param_groups:
            group["lr"] = _rate(step, recipe.readout_steps)
        crops = [_draw(maps, tiles, network.config.patch, rng) for _ in range(BATCH)]
        x, real = torch.stack([x for x, _ in crops]).float(), torch.stack([y for _, y in crops]).float()
        for block in network.readout_blocks:
            x = block(x, time)
        virtual = network.pixels(network.readout_head(x))
        errors = (_means(virtual, scale) - _means(torch.minimum(real, ceiling), scale) for scale in SCALES)
        parts = (e.square().mul(w).mean() * s for e, w, s in zip(errors, weights, SCALES.values(), strict=True))
        loss = torch.stack(list(parts)).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        optimiser.step()
        torch._foreach_lerp_(average, [p.data for p in own], 1 - min(EMA_DECAY, (1 + step) / (10 + step)))
        mean = float(loss) if math.isnan(mean) else 0.98 * mean + 0.02 * float(loss)
        if (step + 1) % 25 == 0:
            report(step + 1, recipe.readout_steps, mean)
    return average


def _draw(
    maps: list[NDArray[np.float16]], tiles: PairedTiles, patch: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A crop that holds tissue: features (CROP, CROP, D) and markers (C, CROP * patch, CROP * patch)."""
    while True:
        i = int(rng.integers(len(maps)))
        y, x = (int(rng.integers(maps[i].shape[axis] - CROP + 1)) for axis in (0, 1))
        rows, columns = (slice(at * patch, (at + CROP) * patch) for at in (y, x))
        step = tiles.he.shape[1] // tiles.patch_tissue.shape[1]
        down, across = (slice(part.start // step, -(-part.stop // step)) for part in (rows, columns))
        seen = tiles.patch_tissue[i, down, across]
        if seen.mean() >= LEAST_TISSUE:
            features = torch.from_numpy(np.array(maps[i][y : y + CROP, x : x + CROP]))
            return features, torch.from_numpy(np.ascontiguousarray(tiles.markers[i, :, rows, columns]))


def _balance(intensities: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Each channel's ceiling (C, 1, 1), and by scale one over the variance of its means, (C, 1, 1)."""
    values = intensities.transpose(0, 1).flatten(1).sort(dim=1).values
    ceiling = values[:, int(CEILING_QUANTILE * values.shape[1])].float().clamp_min(1)[:, None, None]
    kept = torch.minimum(intensities.float(), ceiling)
    return ceiling, [(1 / _means(kept, scale).var(dim=(0, 2, 3)))[:, None, None] for scale in SCALES]


def _means(intensities: Tensor, scale: int) -> Tensor:
    return F.avg_pool2d(intensities, scale) if scale > 1 else intensities


def _patches(planes: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) to (B, H/p, W/p, p * p * C), as the heads give it."""
    b, c, h, w = planes.shape
    cut = planes.reshape(b, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(b, h // patch, w // patch, -1)


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    return PEAK_RATE * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def main() -> int:
    """Parse the command line and fit."""
    parser = argparse.ArgumentParser(prog="python -m mupd_wsi.training.readout", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    try:
        fit_readout(load_recipe(arguments.recipe), arguments.run, _print, arguments.threads)
    except MupdError as error:
        sys.stderr.write(f"readout: error: {error}\n")
        return 3
    return 0


def _print(step: int, steps: int, loss: float) -> None:
    sys.stderr.write(f"step {step}/{steps}  loss {loss:.4f}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
