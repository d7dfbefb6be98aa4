"""Stitches the H&E tiles of the ORION slide into one pyramidal JPEG TIFF of 17408 x 14336 px at 1.30 um/px.

python benchmarks/orion_slide.py ../shared/data/orion-crc01 out/orion-he.tif
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

COLUMNS, ROWS, TILE = 17, 14, 1024
MPP = 1.30
WRITTEN_TILE = 512
QUALITY = 95
GLASS = 245


def stitch(folder: Path) -> NDArray[np.uint8]:
    """The whole slide as uint8 (14336, 17408, 3); 750 MB."""
    slide = np.full((ROWS * TILE, COLUMNS * TILE, 3), GLASS, np.uint8)
    for path in sorted((folder / "HE").glob("*_*.jpg")):
        x, y = (int(part) * TILE for part in path.stem.split("_"))
        slide[y : y + TILE, x : x + TILE] = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    return slide


def tiles(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Tiles of WRITTEN_TILE px in raster order, the last ones padded with glass."""
    for y in range(0, pixels.shape[0], WRITTEN_TILE):
        for x in range(0, pixels.shape[1], WRITTEN_TILE):
            tile = pixels[y : y + WRITTEN_TILE, x : x + WRITTEN_TILE]
            missing = [(0, WRITTEN_TILE - tile.shape[axis]) for axis in (0, 1)]
            yield np.pad(tile, [*missing, (0, 0)], constant_values=GLASS)


def write_slide(folder: Path, output: Path, repeat: int = 1) -> None:
    """Write the slide, ``repeat`` times on top of itself, with levels of 4x and 16x."""
    level = np.concatenate([stitch(folder)] * repeat) if repeat > 1 else stitch(folder)
    with tifffile.TiffWriter(output, bigtiff=True) as writer:
        for index, downsample in enumerate((1, 4, 16)):
            writer.write(
                tiles(level),
                shape=level.shape,
                dtype=np.uint8,
                tile=(WRITTEN_TILE, WRITTEN_TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": QUALITY},
                subfiletype=1 if index else 0,
                resolution=(1e4 / (MPP * downsample),) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            level = cv2.resize(level, (level.shape[1] // 4, level.shape[0] // 4), interpolation=cv2.INTER_AREA)


def main() -> int:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--repeat", type=int, default=1, help="stack the slide this many times, for memory figures")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_slide(arguments.folder, arguments.output, arguments.repeat)
    return 0


if __name__ == "__main__":
    sys.exit(main())
