"""FID and KID between the real and the virtual slide, with a feature network that the user brings.

No network is shipped: the usual one was trained on photographs and says little about stains.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mupd_wsi.errors import UsageError
from mupd_wsi.evaluation.pairing import PairedTile, open_pair
from mupd_wsi.evaluation.statistics import HIGH_QUANTILE
from mupd_wsi.geometry import Region

#: Side of the squares that the network sees, px of the common raster.
SQUARE: Final = 256
BATCH: Final = 16
#: Kernel distances are means over subsets of this size, as Binkowski et al. 2018 (arXiv 1801.01401) take them.
SUBSET: Final = 100
SUBSETS: Final = 50

Features = Callable[[Tensor], Tensor]


def load_features(path: Path) -> Features:
    """A network (B, 3, 256, 256) in 0-1 -> (B, D), from ``torch.export`` (.pt2) or TorchScript. It runs as code.

    Raises:
        UsageError: the file is no such network.
    """
    try:
        if path.suffix == ".pt2":
            return cast(Features, torch.export.load(path).module())
        return cast(Features, torch.jit.load(str(path), map_location="cpu").eval())  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError, ValueError, KeyError, BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{path} is no network that torch can load ({reason}); give a .pt2 or TorchScript file"
        ) from error


def feature_distances(real: Path, virtual: Path, network: Path, roi: Region | None = None) -> dict[str, float]:
    """FID and KID, a channel after the other shown to the network as grey pictures; brightfield in its two stains.

    Args:
        real: the real slide.
        virtual: the virtual one.
        network: see :func:`load_features`.
        roi: level-0 pixels of the real slide.

    Returns:
        ``"FID <marker>"`` and ``"KID <marker>"``.

    Raises:
        UsageError: the network cannot be loaded, or there are fewer than two squares of 256 px.
    """
    extract = load_features(network)
    with open_pair(real, virtual, roi) as pair:
        tiles = [pair.read(region) for region in pair.regions()]
        tiles = [tile for tile in tiles if tile.real.any()]
        found: dict[str, float] = {}
        for channel, name in enumerate(pair.names):
            high = max(
                float(np.quantile(np.concatenate([t.real[channel].ravel() for t in tiles]), HIGH_QUANTILE)), 1e-3
            )
            a, b = (_features(extract, tiles, channel, high, side) for side in ("real", "virtual"))
            found |= {f"FID {name}": frechet_distance(a, b), f"KID {name}": kernel_distance(a, b)}
        return found


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Distance of two Gaussians fitted to features (N, D) (Heusel et al. 2017, arXiv 1706.08500)."""
    from scipy.linalg import eigvals

    first, second = (np.atleast_2d(np.cov(side, rowvar=False)) for side in (a, b))
    root_trace = np.sqrt(np.maximum(eigvals(first @ second).real, 0)).sum()
    shift = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(shift + np.trace(first) + np.trace(second) - 2 * root_trace)


def kernel_distance(a: NDArray[np.float64], b: NDArray[np.float64], seed: int = 0) -> float:
    """Unbiased squared MMD with the cubic kernel (x . y / D + 1)^3, mean over random subsets of features (N, D)."""
    rng, size = np.random.default_rng(seed), min(SUBSET, len(a), len(b))
    return float(np.mean([_mmd(*(s[rng.choice(len(s), size, replace=False)] for s in (a, b))) for _ in range(SUBSETS)]))


def _mmd(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)

    n, own = len(a), [kernel(side, side) for side in (a, b)]
    within = sum((k.sum() - np.trace(k)) / (n * (n - 1)) for k in own)
    return float(within - 2 * kernel(a, b).mean())


@torch.inference_mode()
def _features(extract: Features, tiles: list[PairedTile], channel: int, high: float, side: str) -> NDArray[np.float64]:
    squares = []
    for tile in tiles:
        plane: NDArray[Any] = getattr(tile, side)[channel]
        for y in range(0, plane.shape[0] - SQUARE + 1, SQUARE):
            squares += [plane[y : y + SQUARE, x : x + SQUARE] for x in range(0, plane.shape[1] - SQUARE + 1, SQUARE)]
    if len(squares) < 2:
        raise UsageError(f"FID and KID need at least two squares of {SQUARE} px, got {len(squares)}")
    pixels = torch.from_numpy(np.clip(np.stack(squares) / high, 0, 1).astype(np.float32))
    batches = torch.split(pixels[:, None].expand(-1, 3, -1, -1), BATCH)
    return torch.cat([extract(batch).flatten(1) for batch in batches]).double().numpy()
