"""Brings a slide's haematoxylin and eosin to those of the slide that a model was trained on. Knows arrays only.

The two dyes' colours are found as Macenko et al. do ("A method for normalizing histology slides for quantitative
analysis", ISBI 2009, 1107-1110): the extreme directions of optical density in the plane that holds most of it. Their
strengths are the 95 % quantiles of the amounts: the 99 % that Macenko takes hang on whether there is a haemorrhage on
the slide. One 3 x 3 matrix in optical density then takes a slide's dyes to the reference's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray

Triple = tuple[float, float, float]

#: Mean optical density (base 10) from which on a pixel counts as stained; low, for pale slides such as EAS2-HE1.
MIN_DENSITY: Final = 0.03
#: Extreme directions and amounts are taken at these quantiles, so that dust and folds do not decide.
ANGLE_QUANTILES: Final = (0.01, 0.99)
STRENGTH_QUANTILE: Final = 0.95
#: Fewer stained pixels than this say nothing reliable.
MIN_PIXELS: Final = 2_000
#: Of more than this every other, third, ... pixel is taken.
MAX_PIXELS: Final = 300_000
#: Dyes whose colours lie closer together than this angle (radians) cannot be told apart.
MIN_ANGLE: Final = 0.10


@dataclass(frozen=True, slots=True)
class StainProfile:
    """How a slide is stained.

    Attributes:
        white: colour of its glass, red, green, blue, 0-255.
        haematoxylin: optical density (base 10) of one unit of the dye in red, green, blue; unit length.
        eosin: likewise.
        strength: amounts of haematoxylin and eosin that 95 % of the stained pixels stay below.
    """

    white: Triple
    haematoxylin: Triple
    eosin: Triple
    strength: tuple[float, float]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StainProfile:
        """From the mapping that :func:`dataclasses.asdict` makes."""
        amount_h, amount_e = (float(v) for v in values["strength"])
        white, h, e = (_triple(values[name]) for name in ("white", "haematoxylin", "eosin"))
        return cls(white, h, e, (amount_h, amount_e))

    def basis(self) -> NDArray[np.float64]:
        """(3, 3): columns are haematoxylin and eosin at their strengths, and the direction that neither dye has.

        That one is as long as the dyes' geometric mean: on a pale slide all that absorbs is pale.
        """
        dyes = np.array([self.haematoxylin, self.eosin])
        rest = np.cross(*dyes)
        both = np.sqrt(np.prod(self.strength))
        return np.stack([*(dyes * np.array(self.strength)[:, None]), both * rest / np.linalg.norm(rest)], axis=1)


def stain_profile(rgb: NDArray[np.uint8], white: Triple) -> StainProfile | None:
    """Find a slide's dyes.

    Args:
        rgb: uint8 (..., 3), pixels of tissue at a resolution that shows nuclei.
        white: colour of the slide's glass, 0-255.

    Returns:
        None where there is too little stain, or the two dyes cannot be told apart.
    """
    flat = rgb.reshape(-1, 3)
    density = _density(white)[np.arange(3), flat[:: max(1, len(flat) // MAX_PIXELS)]].astype(np.float64)
    stained = density[density.mean(axis=1) > MIN_DENSITY]
    if len(stained) < MIN_PIXELS:
        return None
    _, vectors = np.linalg.eigh(np.cov(stained.T))
    plane = vectors[:, [2, 1]] * np.where(vectors[:, [2, 1]].sum(axis=0) < 0, -1, 1)
    angles = np.arctan2(*(stained @ plane).T[::-1])
    low, high = np.quantile(angles, ANGLE_QUANTILES)
    if high - low < MIN_ANGLE:
        return None
    dyes = np.stack([plane @ (np.cos(angle), np.sin(angle)) for angle in (low, high)])
    if dyes[0, 0] < dyes[1, 0]:  # haematoxylin takes more of the red light
        dyes = dyes[::-1]
    amounts = stained @ np.linalg.pinv(dyes)
    strength = np.quantile(amounts, STRENGTH_QUANTILE, axis=0)
    if strength.min() <= 0:
        return None
    haematoxylin, eosin = (tuple(round(float(v), 5) for v in dye) for dye in dyes)
    return StainProfile.from_json(
        {"white": white, "haematoxylin": haematoxylin, "eosin": eosin, "strength": strength.round(5).tolist()}
    )


class StainTransfer:
    """Recolours pixels from one slide's staining to another's. Thread-safe.

    A pixel's colour alone decides its new one, so tiles that overlap agree.
    """

    def __init__(self, source: StainProfile, target: StainProfile) -> None:
        matrix = target.basis() @ np.linalg.inv(source.basis())
        self._density = _density(source.white)
        self._matrix = (-np.log(10) * matrix).astype(np.float32)
        self._white = np.array(target.white, np.float32)

    def apply(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Recolour uint8 (H, W, 3); glass becomes the target's glass."""
        density = cv2.LUT(rgb, np.ascontiguousarray(self._density.T[None]))
        light = cv2.exp(cv2.transform(density, self._matrix))
        np.minimum(light * self._white, np.float32(255), out=light)
        return cast("NDArray[np.uint8]", cv2.convertScaleAbs(light))


def _density(white: Triple) -> NDArray[np.float32]:
    """Optical densities (base 10) of the 256 grey levels against the glass, (3, 256); below 0 for brighter ones."""
    levels = np.arange(256, dtype=np.float64)
    return np.stack([np.log10((w + 1) / (levels + 1)) for w in white]).astype(np.float32)


def _triple(values: Iterable[Any]) -> Triple:
    red, green, blue = (float(v) for v in values)
    return red, green, blue
