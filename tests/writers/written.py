"""Pictures with known content, and how they get into a file: for the tests of writers and validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.geometry import Region, Size
from mupd_wsi.writers import Channel, ImageSpec, open_writer

MPP = 1.3
NOTICE = "virtual stain, research use only"
PROVENANCE = {
    "notice": NOTICE,
    "model": {"name": "mupd-mini", "version": "1", "weights_sha256": "ab" * 32},
    "slide": {"name": "größer <&> µ.svs", "mpp": {"x": 0.25, "y": 0.25, "source": "file"}},
    "targets": ["CD8a", "Pan-CK"],
    "seed": None,
    "steps": 4,
}
CHANNELS = (
    Channel("Hoechst", (64, 96, 255)),
    Channel("CD8a", (0, 255, 0), (3, 200)),
    Channel("\N{GREEK SMALL LETTER ALPHA}-SMA <x>", (255, 0, 0)),
)
#: An edge that is no multiple of anything, three levels, two columns and two rows of blank tiles at least.
WIDTH, HEIGHT = 1301, 1811
RED, BLUE = (200, 30, 40), (40, 50, 190)


def make_spec(
    width: int = WIDTH,
    height: int = HEIGHT,
    channels: Sequence[Channel] = (),
    origin_um: tuple[float, float] = (0.0, 0.0),
) -> ImageSpec:
    return ImageSpec("CMU-1 CD8a (virtual)", Size(width, height), MPP, tuple(channels), origin_um, PROVENANCE)


def rgb_picture(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """White glass with smooth colour in the top left; a red square and a blue one in it. uint8 (3, h, w)."""
    y, x = np.mgrid[:height, :width]
    picture = np.full((3, height, width), 255, np.uint8)
    inside = (x < 900) & (y < 1000)
    for plane, (base, swing) in enumerate(((180, 40), (120, 60), (170, 50))):
        smooth = base + swing * np.sin(x / 60 + plane) * np.cos(y / 45)
        picture[plane][inside] = smooth.astype(np.uint8)[inside]
    for color, left in ((RED, 100), (BLUE, 300)):
        for plane in range(3):
            picture[plane, 100:228, left : left + 128] = color[plane]
    return picture


def marker_planes(count: int = 3, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Dark glass; noise of its own in the top left of every plane, and one bright pixel in the far corner."""
    rng = np.random.default_rng(7)
    planes = np.zeros((count, height, width), np.uint8)
    shape = planes[:, : height * 2 // 3, : width * 2 // 3].shape
    planes[:, : shape[1], : shape[2]] = rng.integers(0, 256, shape, np.uint8)
    planes[:, -1, -1] = 255
    return planes


def write(path: Path, spec: ImageSpec, pixels: NDArray[np.uint8], bands: Sequence[int] = (37, 512, 900)) -> Path:
    """Write pixels, uint8 (samples, h, w), in bands of these heights in turn."""
    writer = open_writer(path, spec)
    y = turn = 0
    while y < spec.size.height:
        count = min(bands[turn % len(bands)], spec.size.height - y)
        writer.write(Region(0, y, spec.size.width, count), pixels[:, y : y + count])
        y, turn = y + count, turn + 1
    return writer.finish()


def plain_levels(pixels: NDArray[np.uint8], count: int) -> list[NDArray[np.uint8]]:
    """The pyramid the slow way: each level the mean of 2 x 2 px of the one above, halves up; edges repeated."""
    levels = [pixels]
    for _ in range(count - 1):
        above = levels[-1]
        even = np.pad(above, ((0, 0), (0, above.shape[1] % 2), (0, above.shape[2] % 2)), mode="edge").astype(int)
        sums = even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]
        levels.append(((sums + 2) // 4).astype(np.uint8))
    return levels
