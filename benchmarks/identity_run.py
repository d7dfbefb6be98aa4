"""Runs the whole engine with a model that gives the H&E back: what is left is reading, stitching and writing.

python -m benchmarks.identity_run SLIDE OUTPUT.ome.tiff

The model is one of numpy alone, and so torch is not loaded, as libvips and a pipeline of tifffile and numpy do not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.tiles import OVERLAP, TILE
from mupd_wsi import StainOptions, open_slide, stain_slide
from mupd_wsi.geometry import Region
from mupd_wsi.markers import Marker, Panel
from mupd_wsi.model import SampleOptions
from mupd_wsi.model.foreign_card import ForeignCard
from mupd_wsi.model.memory import BatchWidth


class Identity:
    """Costs nothing: a picture of the tissue "stained" as it is, which is written as JPEG, as libvips does."""

    device, precision, batch_size = "cpu", "fp32", 1

    def __init__(self, mpp: float) -> None:
        self.fitting: Final = BatchWidth(1)
        self.info: Final = ForeignCard(
            name="identity",
            panel=Panel((Marker("H&E", (255, 0, 255)),)),
            mpp=mpp,
            tile=TILE,
            halo=OVERLAP // 2,
            weights_sha256="none",
            fuse="crop",
            painted=True,
        )

    def stain(
        self,
        rgb: NDArray[np.uint8],
        origins: Sequence[tuple[int, int]],
        options: SampleOptions,
        channels: Sequence[int] | None = None,
        margin: int = 0,
        parts: Sequence[Region | None] | None = None,
    ) -> NDArray[np.float32 | np.uint8]:
        """The tiles as they are, without their margin."""
        del origins, options, channels, parts
        inner = slice(margin, rgb.shape[1] - margin)
        return rgb[:, inner, inner].copy().transpose(0, 3, 1, 2)

    def close(self) -> None:
        """Nothing is held."""


def run(slide: Path, output: Path) -> None:
    """Read, give back, stitch, write."""
    with open_slide(slide) as opened:
        model = Identity(opened.mpp.mean)
    options = StainOptions(tissue_mask=False, normalise=False, overwrite=True)
    stain_slide(slide, "all", model=model, output=output, options=options)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
