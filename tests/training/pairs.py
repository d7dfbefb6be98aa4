"""Whole slides in pairs, for the tests of training sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

#: A network that learns the made-up stains in seconds.
TINY: dict[str, Any] = {
    "stage_widths": [16, 24],
    "stage_depths": [1, 1],
    "trunk_width": 32,
    "trunk_depth": 1,
    "trunk_heads": 2,
    "kernel": 3,
    "context_width": 16,
}


def recipe_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe for a folder of paired tiles that ends in seconds."""
    values = {
        "name": "tiny",
        "data": str(folder),
        "mpp": 1.3,
        "markers": ["Hoechst", "CD8a", "Pan-CK"],
        "network": TINY,
        "steps": 60,
        "batch": 4,
        "crop": 128,
        "learning_rate": 0.004,
        "warmup": 5,
        "ema_decay": 0.9,
        "validate_every": 30,
        "seed": 1,
    }
    return values | changes


def paired_pixels(seed: int, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """H&E (h, w, 3) with purple nuclei on pink, and its markers (2, h, w): CD8 on some of them, DAPI on all."""
    rng = np.random.default_rng(seed)
    he = np.full((height, width, 3), (226, 160, 196), np.uint8)
    planes = np.zeros((2, height, width), np.uint8)
    for _ in range(height * width // 900):
        place = (int(rng.integers(width)), int(rng.integers(height)))
        he = cv2.circle(he, place, 8, (98, 66, 142), -1)
        planes[1] = cv2.circle(planes[1], place, 8, 180, -1)
        if rng.random() < 0.3:
            planes[0] = cv2.circle(planes[0], place, 10, 120, -1)
    return he, planes


def write_rgb(path: Path, pixels: NDArray[np.uint8], mpp: float) -> None:
    """A tiled TIFF."""
    options: dict[str, Any] = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER", "metadata": None}
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="deflate", **options)


def write_channels(path: Path, planes: NDArray[Any], names: Sequence[str], mpp: float) -> None:
    """An OME-TIFF as other programs write it."""
    metadata = {"axes": "CYX", "Channel": {"Name": list(names)}, "PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    tifffile.imwrite(path, planes, ome=True, tile=(256, 256), compression="deflate", metadata=metadata)
