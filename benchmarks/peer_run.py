"""The same as :mod:`benchmarks.identity_run`, by PyPI wsi-tile-processor: same tiles, same overlap, same level.

python -m benchmarks.peer_run SLIDE OUTPUT.ome.tiff SCRATCH
"""

from __future__ import annotations

import sys

from wsi_tile_processor import GaussianWSIProcessor

from benchmarks.tiles import OVERLAP, TILE


def run(slide: str, output: str, scratch: str) -> None:
    """Read, give back, blend, write; no tile counts as background."""
    GaussianWSIProcessor(
        slide,
        output,
        level=0,
        tile_size=TILE,
        stride=TILE - OVERLAP,
        generate=lambda tile: tile,
        background_filter=lambda _: False,
        tmp_dir=scratch,
    ).process()


if __name__ == "__main__":
    run(*sys.argv[1:4])
