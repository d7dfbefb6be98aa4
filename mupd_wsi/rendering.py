"""From predicted intensities to pictures: fluorescence planes, and brightfield IHC by Beer-Lambert optics.

A brightfield slide takes light away: a stain of amount c and colour vector v (optical density in red, green and blue
for one unit) leaves ``10 ** -(c * v)`` of it, and stains multiply. Haematoxylin is painted from the nuclear channel
(Hoechst), DAB from the marker's channel.

Stain vectors: A. C. Ruifrok, D. A. Johnston, "Quantification of histochemical staining by color deconvolution",
Anal. Quant. Cytol. Histol. 23 (2001) 291-299: haematoxylin (0.650, 0.704, 0.286), DAB (0.268, 0.570, 0.776). As a
counterstain without eosin haematoxylin is bluer than that: the blue pixels of a real DAB slide (ihc-dab.tif of GitHub
ChristianMarzahl/WsiRegistration) measure (0.67, 0.58, 0.45). The vector used is the middle of the two.
"""

from __future__ import annotations

from functools import cache
from typing import Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from mupd_wsi.layout import as_planes

#: float32, or uint8 where a model gives grey levels already.
Intensities = NDArray[np.float32 | np.uint8]

#: Optical density in red, green, blue per unit of stain; unit length.
HAEMATOXYLIN: Final = (0.666, 0.648, 0.369)
DAB: Final = (0.268, 0.570, 0.776)

#: Optical densities at full display intensity, and the exponent that shapes what lies below it. Chosen by eye on
#: real ORION marker images against real DAB slides: a light counterstain that keeps chromatin visible under the
#: brown, and a brown that lets strong positives approach black-brown without losing their colour.
HAEMATOXYLIN_DENSITY: Final = 0.60
HAEMATOXYLIN_GAMMA: Final = 0.85
DAB_DENSITY: Final = 1.15
DAB_GAMMA: Final = 0.9
#: Share of the display range that chemistry would not have shown: weak signal below it stays unstained.
DAB_THRESHOLD: Final = 0.04
#: Share of white light that reaches a scanner's camera past the stain (glare): black is never quite black.
GLARE: Final = 0.03


def to_planes(intensities: Intensities, windows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Intensities as grey levels.

    Args:
        intensities: (C, h, w), at least 0, training-stain units.
        windows: (C, 2), the intensities of each channel that become 0 and 255; the second above the first.

    Returns:
        uint8 (C, h, w), linear between the two, rounded, cut at both ends; the intensities themselves where they are
        grey levels already.
    """
    if intensities.dtype == np.uint8 and (windows == (0, 255)).all():
        return cast("NDArray[np.uint8]", intensities)
    planes = np.empty(intensities.shape, np.uint8)
    for intensity, (low, high), plane in zip(intensities, windows.tolist(), planes, strict=True):
        gain = 255.0 / (high - low)
        above = np.maximum(intensity, np.float32(low)) if low > 0 else intensity
        cv2.convertScaleAbs(above, plane, gain, -low * gain)
    return planes


def to_brightfield(nuclei: NDArray[np.uint8], marker: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """A picture of the section under a brightfield microscope, on white.

    Args:
        nuclei: (h, w), grey levels of the nuclear channel as from :func:`to_planes`.
        marker: (h, w), grey levels of the target; None paints haematoxylin alone.

    Returns:
        uint8 (3, h, w), red, green, blue, that lie pixel by pixel in memory (:mod:`mupd_wsi.layout`).
    """
    brown = marker if marker is not None else np.zeros_like(nuclei)
    index = nuclei.astype(np.uint16) << 8
    index |= brown
    picture = cv2.merge([np.take(plane, index) for plane in _transmission_table()])
    return cast("NDArray[np.uint8]", as_planes(np.asarray(picture)))


@cache
def _transmission_table() -> NDArray[np.uint8]:
    """uint8 (3, 65536): transmitted light in each colour for grey levels ``nuclei * 256 + marker``."""
    level = np.arange(256) / 255
    blue = HAEMATOXYLIN_DENSITY * level**HAEMATOXYLIN_GAMMA
    brown = DAB_DENSITY * (np.clip(level - DAB_THRESHOLD, 0, None) / (1 - DAB_THRESHOLD)) ** DAB_GAMMA
    density = (
        np.array(HAEMATOXYLIN)[:, None, None] * blue[None, :, None]
        + np.array(DAB)[:, None, None] * brown[None, None, :]
    )
    return np.rint(255 * (GLARE + (1 - GLARE) * 10**-density)).astype(np.uint8).reshape(3, -1)
