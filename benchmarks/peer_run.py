""":mod:`benchmarks.identity_run`, or mupd-mini, by PyPI wsi-tile-processor: the same tiles, overlap and level.

python -m benchmarks.peer_run SLIDE OUTPUT.ome.tiff SCRATCH [mupd-mini]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from wsi_tile_processor import GaussianWSIProcessor

from benchmarks.tiles import OVERLAP, TILE

Tiles = NDArray[np.uint8]


def run(slide: str, output: str, scratch: str, network: str = "identity") -> None:
    """Read, stain or give back, blend, write; no tile counts as background."""
    tile, overlap, batch, generate = (TILE, OVERLAP, 1, _given_back) if network == "identity" else _mini(network)
    GaussianWSIProcessor(
        slide,
        output,
        level=0,
        tile_size=tile,
        stride=tile - overlap,
        generate=generate,
        background_filter=lambda _: False,
        batch_size=batch,
        tmp_dir=scratch,
    ).process()


def _given_back(tile: Tiles) -> Tiles:
    return tile


def _mini(name: str) -> tuple[int, int, int, Callable[[Tiles], Tiles]]:
    """The shipped model on as many tiles at a time as there are cores, painted as brightfield CD8."""
    from mupd_wsi.model import SampleOptions, load_model
    from mupd_wsi.rendering import to_brightfield, to_planes

    stainer = load_model(name)
    channels = (stainer.info.panel.index("Hoechst"), stainer.info.panel.index("CD8"))
    windows = np.array([stainer.info.display_window["mean"][c] for c in channels], np.float32)
    windows[0, 0] = 0

    def generate(tiles: Tiles) -> Tiles:
        found = stainer.stain(tiles, [(0, 0)] * len(tiles), SampleOptions(), channels)
        return np.stack([np.moveaxis(to_brightfield(*to_planes(planes, windows)), 0, 2) for planes in found])

    return stainer.info.tile, 2 * stainer.info.halo, stainer.batch_size, generate


if __name__ == "__main__":
    run(*sys.argv[1:])
