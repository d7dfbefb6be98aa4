"""Writes a slide anew as a pyramid with libvips, which is the floor: nothing is cut into overlapping tiles.

python -m benchmarks.vips_run SLIDE OUTPUT.tif
"""

from __future__ import annotations

import sys

import pyvips


def run(slide: str, output: str) -> None:
    """Read and write."""
    image = pyvips.Image.new_from_file(slide, access="sequential").flatten()
    image.tiffsave(output, tile=True, tile_width=512, tile_height=512, pyramid=True, compression="jpeg", Q=90)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
