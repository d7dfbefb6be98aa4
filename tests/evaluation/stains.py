"""A made-up stained section with cells, and virtual ones that are right, blurred or wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mupd_wsi.geometry import Region, Size
from mupd_wsi.writers import Channel, ImageSpec, open_writer

SIDE = 1024
MPP = 1.3


def section(seed: int = 0, side: int = SIDE) -> NDArray[np.uint8]:
    """Nuclei, and a marker around a third of them: uint8 (2, side, side)."""
    rng = np.random.default_rng(seed)
    planes = np.zeros((2, side, side), np.uint8)
    for y in range(14, side - 14, 20):
        for x in range(14, side - 14, 20):
            place = (x + int(rng.integers(-3, 4)), y + int(rng.integers(-3, 4)))
            planes[0] = cv2.circle(planes[0], place, 4, int(rng.integers(100, 220)), -1)
            if rng.random() < 1 / 3:
                planes[1] = cv2.circle(planes[1], place, 6, int(rng.integers(90, 200)), -1)
    return planes


def noisy(planes: NDArray[np.uint8], amount: float, seed: int = 1) -> NDArray[np.uint8]:
    """Blurred, and with noise of this standard deviation."""
    rng = np.random.default_rng(seed)
    blurred = np.stack([cv2.GaussianBlur(plane, (0, 0), 2) for plane in planes]).astype(float)
    return np.clip(blurred + rng.normal(0, amount, planes.shape), 0, 255).astype(np.uint8)


def write(
    path: Path,
    planes: NDArray[np.uint8],
    names: Sequence[str] = (),
    origin_um: tuple[float, float] = (0.0, 0.0),
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write planes, uint8 (C, h, w), as our writers do; without names as RGB."""
    channels = tuple(Channel(name, (255, 255, 255)) for name in names)
    size = Size(planes.shape[2], planes.shape[1])
    writer = open_writer(path, ImageSpec(path.stem, size, MPP, channels, origin_um, provenance or {"notice": "a test"}))
    writer.write(Region(0, 0, size.width, size.height), planes)
    return writer.finish()
