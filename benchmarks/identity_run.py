"""Runs the whole engine with a model that gives the H&E back: what is left is reading, stitching and writing.

python -m benchmarks.identity_run SLIDE OUTPUT.ome.tiff
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.tiles import OVERLAP, TILE
from mupd_wsi import StainOptions, open_slide, stain_slide
from mupd_wsi.model import ForeignStainer


class Identity:
    """Costs nothing: a picture of the tissue "stained" as it is, which is written as JPEG, as libvips does."""

    stains = ("H&E",)
    output_mpp, output_range = None, (0.0, 255.0)

    def predict(self, image: Tensor) -> Tensor:
        """What it is given."""
        return image

    def get_transform(self) -> Callable[[NDArray[np.uint8]], Tensor]:
        """The tile as it was read, grey levels 0 to 255."""
        return lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1)


def run(slide: Path, output: Path) -> None:
    """Read, give back, stitch, write."""
    with open_slide(slide) as opened:
        mpp = opened.mpp.mean
    model = ForeignStainer(Identity(), name="identity", mpp=mpp, tile=TILE, halo=OVERLAP // 2, fuse="crop")
    options = StainOptions(tissue_mask=False, normalise=False, overwrite=True)
    stain_slide(slide, "all", model=model, output=output, options=options)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
