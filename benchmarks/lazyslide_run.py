"""The same as :mod:`benchmarks.identity_run`, by ``lazyslide.tl.virtual_stain``, in an environment that has lazyslide.

python -m benchmarks.lazyslide_run SLIDE OUTPUT.zarr

It stains, and then keeps the stain as its own ``write`` does: one scale, float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import lazyslide
import numpy as np
import torch
from lazyslide_models.base import VirtualStainModel
from numpy.typing import NDArray
from shapely.geometry import box
from torch import Tensor
from wsidata import open_wsi
from wsidata.io import add_tissues

from benchmarks.tiles import OVERLAP, TILE


class Identity(VirtualStainModel):
    """Costs nothing."""

    name = "identity"
    stains = ("H&E",)
    output_mpp, output_range = None, (0.0, 255.0)

    def __init__(self) -> None:
        self.model = torch.nn.Identity()

    def predict(self, image: Tensor) -> Tensor:
        """What it is given."""
        return image

    def get_transform(self) -> Callable[[NDArray[np.uint8]], Tensor]:
        """The tile as it was read, grey levels 0 to 255."""
        return lambda rgb: torch.from_numpy(np.asarray(rgb)).permute(2, 0, 1)


def run(slide: str, output: str) -> None:
    """Tile the whole slide, give back, blend, write."""
    wsi = open_wsi(slide)
    height, width = wsi.properties.shape[:2]
    add_tissues(wsi, "tissues", [box(0, 0, width, height)])
    lazyslide.pp.tile_tissues(wsi, TILE, overlap=OVERLAP, edge=True, background_filter=False)
    lazyslide.tl.virtual_stain(wsi, Identity(), device="cpu", batch_size=1)
    wsi.write(output)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
