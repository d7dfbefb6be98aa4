"""Fits a head of the read-out's own to expected intensities, on the features of a network that is trained.

``python -m mupd_wsi.training.readout RECIPE --run FOLDER`` makes ``readout.pt`` of the folder's checkpoint. The head is
linear, so the best one has a closed form, and nothing that the flow uses is moved: read-out and draw want different
things of the features that they share.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mupd_wsi.errors import MupdError, UsageError
from mupd_wsi.lookahead import in_order
from mupd_wsi.model.blocks import space_to_depth
from mupd_wsi.model.extents import Extent
from mupd_wsi.model.features import image_features
from mupd_wsi.model.network import MuPDNetwork
from mupd_wsi.training.export import tile_shape
from mupd_wsi.training.neighbours import SquareReader
from mupd_wsi.training.recipe import CHECKPOINT, READOUT, Recipe, load_recipe
from mupd_wsi.training.sources import PairSource, open_pairs
from mupd_wsi.training.tiles import PairedTiles, TilePlace

RIDGE = 1e-3  # of the features' mean square


def fit_readout(recipe: Recipe, run: Path, pairs: PairSource, threads: int = 2) -> None:
    """Add the read-out's head to a run's averaged weights: ``checkpoint.pt`` becomes ``readout.pt``.

    Args:
        recipe: of the run; its ``readout_head`` must be true.
        run: folder with a checkpoint.
        pairs: the tiles.
        threads: of the processor, a tile each.

    Raises:
        UsageError: the recipe wants no such head, or the checkpoint holds another network.
    """
    if not recipe.readout_head:
        raise UsageError("the recipe has no readout_head: there is nothing to fit")
    state = torch.load(run / CHECKPOINT, weights_only=True, map_location="cpu")
    network = MuPDNetwork(replace(recipe.network_config, readout_head=True))
    missing = network.load_state_dict(state["average"], strict=False).missing_keys
    if any(not name.startswith("readout_head.") for name in missing):
        raise UsageError(f"{run} holds another network than the recipe's")
    weights = least_squares(network, pairs.tiles("train"), pairs.around(), threads)
    with torch.no_grad():
        network.readout_head.weight.copy_(weights[:-1].T)
        network.readout_head.bias.copy_(weights[-1])
    torch.save(state | {"average": network.state_dict()}, run / READOUT)


def least_squares(network: MuPDNetwork, tiles: PairedTiles, slide: SquareReader, threads: int) -> Tensor:
    """The linear map of the features that is nearest to the intensities of all tiles (ridge regression).

    Returns:
        (width + 1, patch * patch * targets); the last row is the bias.
    """
    width, patch = network.config.stage_widths[0], network.config.patch
    squares = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    products = torch.zeros(width + 1, patch**2 * network.config.targets, dtype=torch.float64)

    def sums(i: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(1)
        features = tile_features(network, slide, tiles.places[i]).flatten(0, 1)
        x = torch.cat([features, torch.ones(len(features), 1)], dim=1)
        markers = torch.from_numpy(tiles.markers[i]).permute(1, 2, 0)[None].float()
        return x.T @ x, x.T @ space_to_depth(markers, patch).flatten(0, 2)

    with ThreadPoolExecutor(threads) as pool:
        for _, (square, product) in in_order(pool, sums, range(len(tiles.places)), threads):
            squares += square
            products += product
    ridge = RIDGE * squares.diagonal().mean() * torch.eye(width + 1, dtype=torch.float64)
    found: Tensor = torch.linalg.solve(squares + ridge, products)
    return found.float()


@torch.inference_mode()
def tile_features(network: MuPDNetwork, slide: SquareReader, place: TilePlace) -> Tensor:
    """What the heads are given of a tile, (tile / patch, tile / patch, width), as staining will compute it."""
    side, halo, lead = tile_shape(network.config)
    core, patch = side - 2 * halo, network.config.patch
    inner = Extent(halo, halo + core)
    out = torch.empty(slide.tile // patch, slide.tile // patch, network.config.stage_widths[0])
    for y in range(0, slide.tile, core):
        for x in range(0, slide.tile, core):
            rgb = slide.read(place.x * slide.tile + x - halo, place.y * slide.tile + y - halo, side)
            image = image_features(torch.from_numpy(rgb[None]).permute(0, 3, 1, 2).float())
            found = network.features(
                image, torch.ones(1), lead=lead // network.config.trunk_stride, wanted=(inner, inner)
            )[0]
            part = out[y // patch : (y + core) // patch, x // patch : (x + core) // patch]
            part.copy_(found[: part.shape[0], : part.shape[1]])
    return out


def main() -> int:
    """Parse the command line and fit."""
    parser = argparse.ArgumentParser(prog="python -m mupd_wsi.training.readout", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    try:
        recipe = load_recipe(arguments.recipe)
        with closing(open_pairs(recipe, arguments.run / "tiles")) as pairs:
            fit_readout(recipe, arguments.run, pairs, arguments.threads)
    except MupdError as error:
        sys.stderr.write(f"readout: error: {error}\n")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
