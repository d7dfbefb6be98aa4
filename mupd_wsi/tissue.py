"""Where the tissue is on a thumbnail, and whether it is stained with H&E. Knows arrays only, no slides.

Both work on optical densities against the glass of the same picture, so that a pale slide and a grey scanner background
are judged alike. Stained tissue is coloured; glass, dust, shadows of coverslips, black borders and black ink are grey.
Thresholds were set on the slides named in ``tests/test_tissue.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from mupd_wsi.geometry import Region

#: Masks are worked out at this pixel size at the finest: tissue needs no more, and sizes below are then a few pixels.
_WORKING_UM: Final = 8.0
_SMOOTHING_UM: Final = 8.0
_MIN_PIECE_UM2: Final = 2_500.0
_MAX_HOLE_UM2: Final = 60_000.0
_MARGIN_UM: Final = 30.0
_INK_RADIUS_UM: Final = 40.0
_INK_MARGIN_UM: Final = 40.0

#: Colourfulness (largest minus smallest optical density) from which on a pixel may be tissue. The lower bound is
#: 4 grey levels, above the noise of JPEG and glass; the upper keeps pale tissue beside dense.
_MIN_COLOUR: Final = 0.008
_MAX_COLOUR: Final = 0.030

#: Colourfulness that differs by less is the same: between such values there is no threshold to be found.
_SAME_COLOUR: Final = 1e-4

#: Colour per optical density that a neutral thing may show. Stained tissue shows 0.4 and more.
_NEUTRAL_TINT: Final = 0.12

StainLabel = Literal["H&E", "IHC (DAB)", "fluorescence", "unknown"]


@dataclass(frozen=True, slots=True)
class StainGuess:
    """What a slide looks stained with.

    Attributes:
        label: the guess.
        confidence: 0 to 1.
        reason: what was seen, for people.
    """

    label: StainLabel
    confidence: float
    reason: str

    @property
    def is_he(self) -> bool:
        """Whether it looks like H&E."""
        return self.label == "H&E"


class TissueMask:
    """A tissue mask with its pixel size, anchored at the slide's origin. Regions come in pixels of any um/px.

    Attributes:
        mask: bool (h, w), True is tissue.
        um_per_px: um per mask pixel, the same on both axes.
    """

    def __init__(self, mask: NDArray[np.bool_], um_per_px: float) -> None:
        if mask.ndim != 2 or um_per_px <= 0:
            raise ValueError(
                f"a tissue mask is (h, w) with um/px above 0, got shape {mask.shape} at {um_per_px:g} um/px"
            )
        self.mask = mask
        self.um_per_px = um_per_px
        self._sums = cv2.integral(mask.astype(np.uint8), sdepth=cv2.CV_64F)

    @classmethod
    def from_thumbnail(cls, rgb: NDArray[np.uint8], um_per_px: float) -> TissueMask:
        """The mask of a whole slide's thumbnail, uint8 (h, w, 3), whose origin is the slide's."""
        return cls(tissue_mask(rgb, um_per_px), um_per_px)

    def covers(self, region: Region, mpp: float) -> bool:
        """Whether any tissue lies in a region (pixels of ``mpp`` um, from the slide's origin), even a corner of it."""
        return self.fraction(region, mpp) > 0

    def fraction(self, region: Region, mpp: float) -> float:
        """Share of a region that is tissue, 0 to 1.

        Args:
            region: pixels of ``mpp`` um, from the slide's origin. What lies outside the mask holds no tissue.
            mpp: um per pixel of the region.
        """
        return float(self.fractions((region.x, region.right), (region.y, region.bottom), mpp)[0, 0])

    def fractions(self, columns: Sequence[int], rows: Sequence[int], mpp: float) -> NDArray[np.float64]:
        """The same for all fields of a table: float64 (len(rows) - 1, len(columns) - 1).

        Args:
            columns: edges between its columns, rising, pixels from the slide's origin.
            rows: likewise.
            mpp: um per pixel.
        """
        scale, (height, width) = mpp / self.um_per_px, self.mask.shape
        x, y = np.array(columns, np.float64) * scale, np.array(rows, np.float64) * scale
        sums = self._sums_at(np.clip(x, 0, width), np.clip(y, 0, height))
        tissue = np.diff(np.diff(sums, axis=0), axis=1)
        shares = tissue / (np.diff(y)[:, None] * np.diff(x)[None, :])
        return np.where(shares > 1e-9, np.clip(shares, 0, 1), 0)

    def pixels(self, region: Region, mpp: float) -> NDArray[np.bool_]:
        """The mask at the pixels of a region, bool (region.height, region.width), each at its centre.

        Args:
            region: pixels of ``mpp`` um, from the slide's origin. What lies outside the mask holds no tissue.
            mpp: um per pixel of the region.
        """
        scale = mpp / self.um_per_px
        x = np.floor((np.arange(region.x, region.right) + 0.5) * scale).astype(np.intp)
        y = np.floor((np.arange(region.y, region.bottom) + 0.5) * scale).astype(np.intp)
        height, width = self.mask.shape
        found = self.mask[np.clip(y, 0, height - 1)[:, None], np.clip(x, 0, width - 1)[None, :]]
        inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None, :]
        return cast("NDArray[np.bool_]", found & inside)

    def _sums_at(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tissue area left of and above points, mask pixels, (len(y), len(x)); exact, as it is bilinear in between."""
        left = np.minimum(x.astype(np.intp), self.mask.shape[1] - 1)
        top = np.minimum(y.astype(np.intp), self.mask.shape[0] - 1)
        right, bottom = x - left, (y - top)[:, None]
        above, below = (
            sums[:, left] * (1 - right) + sums[:, left + 1] * right for sums in (self._sums[top], self._sums[top + 1])
        )
        return np.asarray(above * (1 - bottom) + below * bottom)


def tissue_mask(rgb: NDArray[np.uint8], um_per_px: float) -> NDArray[np.bool_]:
    """Find stained tissue on a thumbnail; generous at its edge, so that no cell there is lost.

    Blank glass, grey scanner background, shadows, black borders and pen marks (blue, green, black, red) are not
    tissue. Pieces below 2,500 um2 are dropped, holes below 60,000 um2 are filled, and 30 um are added all round.

    Args:
        rgb: uint8 (h, w, 3). Detail finer than 8 um/px is averaged away first.
        um_per_px: um per thumbnail pixel.

    Returns:
        bool (h, w), True is tissue.
    """
    if um_per_px <= 0:
        raise ValueError(f"a thumbnail's um/px is above 0, got {um_per_px:g}")
    height, width = rgb.shape[:2]
    shrink = max(1.0, _WORKING_UM / um_per_px)
    small_size = (max(1, math.ceil(width / shrink)), max(1, math.ceil(height / shrink)))
    small = cast("NDArray[np.uint8]", cv2.resize(rgb, small_size, interpolation=cv2.INTER_AREA))
    um = um_per_px * max(width / small_size[0], height / small_size[1])
    density = optical_density(small)
    ink = _ink(density, um)
    colour = np.where(ink, np.float32(0), _colour(density))
    colour = cv2.GaussianBlur(colour, (0, 0), max(_SMOOTHING_UM / um, 0.3))
    mask = (colour > _threshold(colour)) & ~ink
    mask = mask & (_areas(mask) > int(_MIN_PIECE_UM2 / um**2))
    glass = ~mask & ~_at_the_edge(~mask)  # glass that reaches the picture's edge is no hole, however small the picture
    mask = (mask | (glass & (_areas(glass) <= int(_MAX_HOLE_UM2 / um**2)))) & ~ink
    grown = cv2.dilate(mask.astype(np.uint8), _disc(_MARGIN_UM / um)) * (~ink).astype(np.uint8)
    return np.asarray(cv2.resize(grown, (width, height), interpolation=cv2.INTER_NEAREST), np.bool_)


def stain_guess(rgb: NDArray[np.uint8]) -> StainGuess:
    """Guess the stain of a slide from its thumbnail, or of a tile.

    Args:
        rgb: uint8 (h, w, 3).
    """
    planes = _planes(rgb)
    brightest, darkest = planes.max(axis=0), planes.min(axis=0)
    dark, bright = float((brightest < 90).mean()), float((darkest > 140).mean())
    if bright < 0.05 and (dark > 0.3 or float(np.median(darkest)) < 15):
        reason = f"{dark:.0%} of the picture is dark and {bright:.0%} is bright glass"
        return StainGuess("fluorescence", min(1.0, 0.6 + 0.4 * dark), reason)
    density = optical_density(cast("NDArray[np.uint8]", cv2.GaussianBlur(rgb, (0, 0), 1.0)))
    colour = _colour(density)
    stained = density[:, (colour > max(_threshold(colour), 2 * _MIN_COLOUR))]
    share = stained.shape[1] / colour.size
    if share < 0.002:
        return StainGuess("unknown", 0.0, f"hardly any stained tissue ({share:.1%} of the picture)")
    return _guess_absorbing(stained)


def optical_density(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Optical density of uint8 (h, w, 3) against its own glass: float32 (3, h, w), 0 (glass or brighter) to 2.4."""
    planes = _planes(rgb)
    glass = _glass(planes)
    table = -np.log10((np.arange(256, dtype=np.float32)[:, None] + 1) / (glass + 1))
    table = np.maximum(table, 0).astype(np.float32)
    density = np.empty(planes.shape, np.float32)
    for plane, levels, place in zip(planes, table.T, density, strict=True):
        cv2.LUT(plane, np.ascontiguousarray(levels), place)
    return density


def _planes(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Channel first, uint8 (3, h, w): several times faster to reduce over the channels than channel last."""
    return np.stack(cv2.split(rgb))


def glass_color(rgb: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Colour of a thumbnail's empty glass, red, green, blue, 0-255; the usual 245 where tissue is all over it.

    Args:
        rgb: uint8 (h, w, 3).
    """
    red, green, blue = _glass(_planes(rgb)).tolist()
    return red, green, blue


def _glass(planes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Colour of empty glass: the median of the brightest fifth, without the pure white that scanners fill in."""
    darkest = planes.min(axis=0)
    counts = _histogram(darkest)
    if counts[255] > 0.99 * darkest.size:
        return np.full(3, 255, np.float32)
    counts[255] = 0
    bright = cv2.inRange(darkest, math.ceil(_quantile(counts, 0.8)), 254)
    glass = np.array([_quantile(_histogram(plane, bright), 0.5) for plane in planes], np.float32)
    # On a picture that is tissue all over there is no glass to see: take the usual one.
    return glass if glass.min() > 215 else np.full(3, 245, np.float32)


def _histogram(plane: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None) -> NDArray[np.int64]:
    """How many pixels have each of the 256 grey levels; where there is a mask, those where it is not 0.

    Exact up to 16 million pixels of one level, four times a thumbnail: OpenCV counts in float32.
    """
    return np.asarray(cv2.calcHist([plane], [0], mask, [256], [0, 256])).ravel().astype(np.int64)


def _quantile(counts: NDArray[np.int64], share: float) -> float:
    """The quantile of grey levels, linear between neighbours in order, as :func:`numpy.quantile` has it."""
    upto, place = np.cumsum(counts), share * (counts.sum() - 1)
    low, high = np.searchsorted(upto, (math.floor(place), math.ceil(place)), side="right")
    return float(low + (high - low) * (place - math.floor(place)))


def _colour(density: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colourfulness of (3, h, w), float32 (h, w): what stains have and shadows do not.

    A share of the darkness is taken off, because a shadow takes on a little of the light's tint; near black, colour
    is noise.
    """
    spread, mean = _spread(density), density.mean(axis=0)
    colour: NDArray[np.float32] = np.maximum(spread - _NEUTRAL_TINT * mean, 0)
    colour[_is_black(spread, mean)] = 0
    return colour


def _spread(density: NDArray[np.float32]) -> NDArray[np.float32]:
    """Between the densest and the least dense colour of (3, h, w): float32 (h, w)."""
    red, green, blue = density
    return np.asarray(cv2.max(cv2.max(red, green), blue) - cv2.min(cv2.min(red, green), blue))


def _is_black(spread: NDArray[np.float32], mean: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Ink, borders, opaque dirt: dense and grey; by the spread and the mean of the three densities."""
    return np.asarray((mean > 0.4) & (spread < 0.25 * mean), np.bool_)


def _ink(density: NDArray[np.float32], um: float) -> NDArray[np.bool_]:
    """Strokes of a pen, bool (h, w): areas wider than nuclei in colours that haematoxylin and eosin do not make."""
    red, green, blue = density
    strength = _spread(density)
    cold = (red > 1.2 * green) & (strength > 0.08)  # blue and green pens absorb red most; H&E absorbs green most
    cold_core = cold & (strength > 0.25)
    warm = (green > 0.75) & (blue > 0.8 * green) & (red < 0.35 * green)  # red pen: pure red, no violet in it
    disc = _disc(_INK_RADIUS_UM / um)
    ink = np.zeros(red.shape, bool)
    for colour, core in ((cold, cold_core), (warm, warm), (_is_black(strength, density.mean(axis=0)),) * 2):
        wide = cv2.morphologyEx(core.astype(np.uint8), cv2.MORPH_OPEN, disc)
        if wide.any():
            ink |= _touching(colour | (wide > 0), wide > 0)
    margin = _disc(_INK_MARGIN_UM / um)
    return cv2.dilate(ink.astype(np.uint8), margin).astype(np.bool_) if ink.any() else ink


def _areas(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Of each pixel of a mask, the area of its piece, px; pieces hang together by their edges. Outside: no meaning."""
    _, labels, found, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    return np.asarray(found[:, cv2.CC_STAT_AREA][labels], np.int32)


def _at_the_edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pieces of a mask that reach the edge of the picture."""
    edge = np.ones_like(mask)
    edge[1:-1, 1:-1] = False
    return _touching(mask, mask & edge)


def _touching(mask: NDArray[np.bool_], seeds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected pieces of a mask that hold a seed; pieces hang together by their corners."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8))
    kept = np.zeros(count, np.bool_)
    kept[labels[seeds]] = True
    return np.asarray(kept[labels] & mask, np.bool_)


def _threshold(colour: NDArray[np.float32]) -> float:
    """Otsu's threshold between glass and tissue, kept within bounds so that a blank slide stays blank."""
    if float(colour.max()) <= _MIN_COLOUR:
        return _MIN_COLOUR
    colour = np.minimum(colour, 0.3)
    between = _otsu(colour) if np.ptp(colour) > _SAME_COLOUR else float(colour.max())
    return float(np.clip(0.6 * between, _MIN_COLOUR, _MAX_COLOUR))


def _otsu(values: NDArray[np.float32]) -> float:
    """Otsu's threshold, IEEE Trans. Syst. Man Cybern. 9 (1979) 62-66, among 256 even steps from least to most."""
    low, high = float(values.min()), float(values.max())
    step = (high - low) / 256
    levels = np.minimum((values - low) / step, 255).astype(np.uint8)
    level, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return low + (float(level) + 0.5) * step


def _guess_absorbing(stained: NDArray[np.float32]) -> StainGuess:
    """Tell H&E from DAB by the optical densities of stained pixels, float32 (3, n)."""
    red, green, blue = stained
    brown = float(((blue > 1.05 * green) & (blue > 1.2 * red) & (blue > 0.1)).mean())
    pink = float(((green > red) & (green > 1.05 * blue)).mean())
    reason = f"{pink:.0%} of the stained area is pink to violet, {brown:.0%} brown"
    if brown >= 0.01 and (pink < 0.5 or brown > 0.15):
        return StainGuess("IHC (DAB)", min(1.0, 0.5 + 2 * brown), reason)
    if pink >= 0.5:
        return StainGuess("H&E", min(1.0, pink), reason)
    return StainGuess("unknown", 0.0, reason)


def _disc(radius: float) -> NDArray[np.uint8]:
    """A round structuring element of at least one pixel's radius."""
    pixels = max(1, math.ceil(radius))
    return cast("NDArray[np.uint8]", cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1)))
