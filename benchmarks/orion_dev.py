"""Writes the ORION dev columns as two slides that ``mupd-wsi stain`` and ``mupd-wsi evaluate`` can be run on.

python benchmarks/orion_dev.py ../shared/data/orion-crc01 out/orion-dev

makes ``he.ome.tiff``, the dev columns' H&E with 512 px of their neighbours on each side, side by side, and
``real.ome.tiff``, the real markers at the same places. Where a tile's markers are not among the dev tiles the real
slide is black, which ``evaluate`` leaves out.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mupd_wsi.geometry import Region, Size
from mupd_wsi.training.export import COLORS
from mupd_wsi.training.neighbours import SlideOfTiles
from mupd_wsi.writers import Channel, ImageSpec, open_writer

ROWS, TILE, MARGIN = 14, 1024, 512
STRIP = TILE + 2 * MARGIN
MPP = 1.30
SOURCE = "ORION P37_S29-CRC01, Lin, Chen, Campton et al., Nature Cancer 2023, doi 10.1038/s43018-023-00576-1"


def dev_tiles(folder: Path, split: str) -> set[tuple[int, int]]:
    """Columns and rows of a split's tiles."""
    with (folder / "tiles.csv").open(newline="", encoding="utf-8") as stream:
        return {(int(row["x"]), int(row["y"])) for row in csv.DictReader(stream) if row["split"] == split}


def write_slides(folder: Path, output: Path, split: str) -> tuple[Path, Path]:
    """Write both slides, a row of tiles at a time (memory: one row of all markers)."""
    tiles, slide = dev_tiles(folder, split), SlideOfTiles(folder)
    columns = sorted({x for x, _ in tiles})

    def he(row: int) -> NDArray[np.uint8]:
        squares = [slide.read(x * TILE - MARGIN, row * TILE - MARGIN, STRIP)[MARGIN:-MARGIN] for x in columns]
        return np.concatenate(squares, axis=1).transpose(2, 0, 1)

    def markers(row: int) -> NDArray[np.uint8]:
        planes = np.zeros((len(COLORS), TILE, STRIP * len(columns)), np.uint8)
        for place, x in enumerate(columns):
            left = place * STRIP + MARGIN
            for plane, marker in zip(planes, COLORS, strict=True):
                if (x, row) in tiles:
                    path = folder / marker / f"{x}_{row}.jpg"
                    plane[:, left : left + TILE] = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        return planes

    size = Size(STRIP * len(columns), ROWS * TILE)
    channels = tuple(Channel(marker, color) for marker, color in COLORS.items())
    output.mkdir(parents=True, exist_ok=True)
    return (
        _write(output / "he.ome.tiff", size, (), f"real H&E, {SOURCE}", he),
        _write(output / "real.ome.tiff", size, channels, f"real immunofluorescence, {SOURCE}", markers),
    )


def _write(
    path: Path, size: Size, channels: tuple[Channel, ...], notice: str, band: Callable[[int], NDArray[np.uint8]]
) -> Path:
    writer = open_writer(path, ImageSpec(path.name, size, MPP, channels, (0.0, 0.0), {"notice": notice}))
    for row in range(ROWS):
        writer.write(Region(0, row * TILE, size.width, TILE), np.ascontiguousarray(band(row)))
    return writer.finish()


def main() -> int:
    """Parse the command line, write, and say what to run next."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the ORION tiles")
    parser.add_argument("output", type=Path, help="folder for the two slides")
    parser.add_argument("--split", default="dev", help="which tiles (default: %(default)s)")
    arguments = parser.parse_args()
    he, real = write_slides(arguments.folder, arguments.output, arguments.split)
    virtual = he.with_name("virtual.ome.tiff")
    print(f"mupd-wsi stain {he} --target all -o {virtual}")
    print(f"mupd-wsi evaluate --real {real} --virtual {virtual} --out {arguments.output / 'report'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
