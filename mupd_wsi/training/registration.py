"""How well H&E and target lie on one another: the haematoxylin's grain against the nuclear channel's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.registration import phase_cross_correlation

from mupd_wsi.markers import canonical
from mupd_wsi.training.augment import HE_VECTORS
from mupd_wsi.training.tiles import PairedTiles

NUCLEAR: Final = canonical("Hoechst")
#: The band of a nucleus, px: finer is noise, coarser is tissue density.
FINE_SIGMA: Final = 1.0
COARSE_SIGMA: Final = 5.0
TILES: Final = 24
#: Below this correlation, or beyond this shift (px), a pair is not worth training on.
MIN_CORRELATION: Final = 0.3
MAX_SHIFT: Final = 2.0


@dataclass(frozen=True, slots=True)
class Registration:
    """Medians over tiles.

    Attributes:
        tiles: looked at.
        correlation: of band-passed haematoxylin and nuclear channel of the same tile.
        shuffled: the same for tiles that do not belong together: what chance gives.
        shift: px, by which the nuclear channel would have to be moved.
    """

    tiles: int
    correlation: float
    shuffled: float
    shift: float

    @property
    def is_good(self) -> bool:
        """Whether training on it is worth while."""
        return self.correlation >= MIN_CORRELATION and self.shift <= MAX_SHIFT


def measure_registration(pairs: PairedTiles, markers: tuple[str, ...]) -> Registration | None:
    """Measure on tiles spread evenly.

    Args:
        pairs: tiles of one split.
        markers: their channels.

    Returns:
        None where no channel shows nuclei, or no tile holds tissue.
    """
    nuclear = next((i for i, name in enumerate(markers) if canonical(name) == NUCLEAR), None)
    held = np.flatnonzero(pairs.patch_tissue.mean(axis=(1, 2)) > 0.2)
    if nuclear is None or not len(held):
        return None
    chosen = held[np.unique(np.linspace(0, len(held) - 1, TILES).astype(int))]
    grains = [(band_passed(haematoxylin(pairs.he[i])), band_passed(pairs.markers[i, nuclear])) for i in chosen]
    own = [_correlation(a, b) for a, b in grains]
    others = [_correlation(a, grains[(i + 1) % len(grains)][1]) for i, (a, _) in enumerate(grains)]
    shifts = [float(np.hypot(*phase_cross_correlation(a, b, upsample_factor=10)[0])) for a, b in grains]
    shuffled = float(np.median(others)) if len(grains) > 1 else float("nan")
    return Registration(len(grains), float(np.median(own)), shuffled, float(np.median(shifts)))


def haematoxylin(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Amount of haematoxylin in H&E, (h, w, 3) to float32 (h, w), by colour deconvolution."""
    density = -np.log((rgb.astype(np.float32) + 1) / 256)
    return np.asarray(density @ np.linalg.inv(HE_VECTORS.numpy())[:, 0], np.float32)


def band_passed(plane: NDArray[Any]) -> NDArray[np.float32]:
    """What is between FINE_SIGMA and COARSE_SIGMA px, (h, w)."""
    fine, coarse = (cv2.GaussianBlur(plane.astype(np.float32), (0, 0), s) for s in (FINE_SIGMA, COARSE_SIGMA))
    return np.asarray(fine - coarse, np.float32)


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0
