"""What a trained network makes of the training tiles: computed once, so that heads can be trained on it in minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mupd_wsi.lookahead import in_order
from mupd_wsi.model.config import NetworkConfig
from mupd_wsi.model.decoder import SPREAD
from mupd_wsi.model.densities import VIEW_WIDTH, density_views
from mupd_wsi.model.extents import Extent, cut, needs
from mupd_wsi.model.features import image_features
from mupd_wsi.model.network import MuPDNetwork
from mupd_wsi.training.augment import jitter_stains
from mupd_wsi.training.neighbours import SquareReader
from mupd_wsi.training.recipe import Damping
from mupd_wsi.training.tiles import PATCH, PairedTiles

CORE: Final = 512  # px of a tile that are kept; training tiles are whole multiples of it
MIN_TISSUE: Final = 0.1  # of a square


def tile_shape(config: NetworkConfig) -> tuple[int, int, int]:
    """Tile, halo and lead, px, for tiles that each see all that their core depends on, and share their windows.

    ``lead`` px of convolutions lie before the trunk and as many after it. Cores begin and end half a window inside one,
    and so far inside that what the way up sees beyond them lies in whole windows.
    """
    strides = [config.patch * 2**level for level in range(len(config.stage_widths))]
    reach = sum(d * (config.kernel // 2) * stride for d, stride in zip(config.stage_depths, strides, strict=True))
    lead, half = -(-reach // config.trunk_stride) * config.trunk_stride, config.window_px // 2
    core = -(-CORE // config.window_px) * config.window_px
    halo = lead + half
    while needs(config, core + 2 * halo, lead, Extent(halo, halo + core)).down[-1].start < lead:
        halo += half
    return core + 2 * halo, halo, lead


@dataclass(frozen=True)
class FinishedSquares:
    """Squares of tissue as a finished network sees them, some of them turned, mirrored and recoloured.

    Memory: the features stay in files; a square of 512 px is 3 MB at width 96, and what is drawn from is kept by the
    system as it has room.

    Attributes:
        features: float16 (N, side / patch, side / patch, width).
        he: uint8 (N, side, side, 3), as the network was given it.
        markers: N views of uint8 (C, side, side), turned likewise.
        views: float16 (N, side / patch, side / patch, V), what else the read-out's head is told.
        plain: how many of the squares, the first, are as they were.
    """

    features: NDArray[np.float16]
    he: NDArray[np.uint8]
    markers: list[NDArray[np.uint8]]
    views: NDArray[np.float16]
    plain: int

    def told(self, i: int) -> NDArray[np.float32]:
        """All that the read-out's head is given of a square: (side / patch, side / patch, F + V)."""
        return np.concatenate([self.features[i], self.views[i]], axis=-1).astype(np.float32)


def finished_squares(
    network: MuPDNetwork,
    tiles: PairedTiles,
    slide: SquareReader,
    folder: Path,
    *,
    variants: int = 1,
    jitter: float = 0.0,
    seed: int = 0,
    threads: int = 1,
    report: Callable[[int, int], None] = lambda _done, _of: None,
) -> FinishedSquares:
    """Run a network over tiles and keep what its heads are given, in files that a later call finds again.

    Args:
        network: whose features are wanted.
        tiles: of the training split.
        slide: the H&E around them.
        folder: of the files; 1.1 GB a variant for 91 tiles of 1024 px at width 96, and half as much for the views.
        variants: the first is the squares as they are; each further one is turned, mirrored and recoloured at random.
        jitter: strength of the recolouring.
        seed: of that.
        threads: of the processor, a square each.
        report: called with the squares done and their number.
    """
    side, halo, lead = tile_shape(network.config)
    core, patch = side - 2 * halo, network.config.patch
    corners = _squares_of_tissue(tiles, core)
    items = [(variant, corner) for variant in range(variants) for corner in corners]
    shape = (len(items), core // patch, core // patch, network.config.stage_widths[0])
    features = _opened(folder / "features.npy", shape, np.float16)
    told = (*shape[:3], VIEW_WIDTH * len(network.config.density_squares))
    views = _opened(folder / "views.npy", told, np.float16)
    he = _opened(folder / "he.npy", (len(items), core, core, 3), np.uint8)
    done = _opened(folder / "done.npy", (len(items),), np.uint8)
    motions = [_motion(seed, i) if variant else (0, False) for i, (variant, _) in enumerate(items)]
    inner = Extent(halo, halo + core)
    whole, kept = (Extent(0, side),) * 2, (inner,) * 2

    @torch.inference_mode()
    def work(i: int) -> int:
        variant, (tile, y, x) = items[i]
        if done[i]:
            return i
        torch.set_num_threads(1)
        place = tiles.places[tile]
        rgb = slide.read(place.x * slide.tile + x - halo, place.y * slide.tile + y - halo, side)
        pixels = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float()
        if variant:
            colors = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, i]).generate_state(1)[0]))
            pixels = jitter_stains(pixels, jitter, colors).round()
        pixels = torch.from_numpy(moved(pixels.numpy(), motions[i]).copy())
        image = image_features(pixels)
        found = network.features(image, torch.ones(1), lead=lead // network.config.trunk_stride, wanted=(inner, inner))[
            0
        ]
        border = (found.shape[0] - core // patch) // 2  # what the head's reach adds
        features[i] = found[border : border + core // patch, border : border + core // patch].numpy()
        if told[-1]:
            views[i] = cut(density_views(image, patch, network.config.density_squares), whole, kept, patch)[0].numpy()
        he[i] = pixels[0, :, halo : halo + core, halo : halo + core].permute(1, 2, 0).byte().numpy()
        done[i] = 1
        return i

    with ThreadPoolExecutor(threads) as pool:
        for number, _ in enumerate(in_order(pool, work, range(len(items)), threads), start=1):
            report(number, len(items))
    markers = [
        moved(tiles.markers[tile][:, y : y + core, x : x + core], motion)
        for (_, (tile, y, x)), motion in zip(items, motions, strict=True)
    ]
    return FinishedSquares(features, he, markers, views, len(corners))


def moved(planes: NDArray[Any], motion: tuple[int, bool]) -> NDArray[Any]:
    """A view of (..., H, W), turned by quarters and then mirrored."""
    turned = np.rot90(planes, motion[0], axes=(-2, -1))
    return turned[..., ::-1] if motion[1] else turned


def least_squares(squares: FinishedSquares, patch: int, dampings: Sequence[Damping]) -> Tensor:
    """The linear map of what is told of a patch that is nearest to the intensities of the square that it speaks for.

    That is a square of :data:`SPREAD` patches a side (:class:`mupd_wsi.model.decoder.OverlapHead`). Ridge regression:
    of a marker that hangs on less than the network knows, damped features and views are noise that is not fitted.

    Args:
        squares: of the network.
        patch: px of a feature vector.
        dampings: of each channel.

    Returns:
        (width + 1, side * side * C), in the order of the head's outputs; the last row is the bias.
    """
    width, channels, side = squares.told(0).shape[-1], len(squares.markers[0]), SPREAD * patch
    margin = (side - patch) // 2
    square = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    product = torch.zeros(width + 1, side**2 * channels, dtype=torch.float64)
    for i, markers in enumerate(squares.markers[: squares.plain]):
        flat = torch.from_numpy(squares.told(i)[1:-1, 1:-1]).flatten(0, 1)
        x = torch.cat([flat, torch.ones(len(flat), 1)], dim=1)
        inner = torch.from_numpy(np.ascontiguousarray(markers))[:, patch - margin : -patch + margin]
        planes = inner[..., patch - margin : -patch + margin].float()
        spoken = F.unfold(planes[None], side, stride=patch)[0].view(channels, side**2, -1)
        square += x.T @ x
        product += x.T @ spoken.permute(2, 1, 0).flatten(1)
    square, product = square / square[-1, -1], product / square[-1, -1]
    mean, meant = square[-1, :-1], product[-1]
    covariance = square[:-1, :-1] - torch.outer(mean, mean)
    shared = (product[:-1] - torch.outer(mean, meant)).view(width, side**2, channels)
    found, features = torch.empty_like(shared), squares.features.shape[-1]
    for damping in set(dampings):
        own = [channel for channel, other in enumerate(dampings) if other == damping]
        shares = torch.tensor([damping.features] * features + [damping.views] * (width - features))
        system = covariance + (shares * covariance.diagonal()).diag()
        found[:, :, own] = torch.linalg.solve(system, shared[:, :, own].flatten(1)).view(width, side**2, -1)
    flat_found = found.flatten(1)
    return torch.cat([flat_found, (meant - mean @ flat_found)[None]]).float()


def _squares_of_tissue(tiles: PairedTiles, core: int) -> list[tuple[int, int, int]]:
    """Tile, y and x of all squares that hold some."""
    step, patches = core // PATCH, tiles.patch_tissue
    return [
        (tile, y * PATCH, x * PATCH)
        for tile in range(len(patches))
        for y in range(0, patches.shape[1], step)
        for x in range(0, patches.shape[2], step)
        if patches[tile, y : y + step, x : x + step].mean() >= MIN_TISSUE
    ]


def _motion(seed: int, i: int) -> tuple[int, bool]:
    rng = np.random.default_rng([seed, i])
    return int(rng.integers(4)), bool(rng.integers(2))


def _opened(path: Path, shape: tuple[int, ...], kind: type[np.generic]) -> NDArray[Any]:
    """An array in a file, made where it is not there or of another shape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        found = np.lib.format.open_memmap(path, "r+")
        if found.shape == shape:
            return found
    return np.lib.format.open_memmap(path, "w+", kind, shape)
