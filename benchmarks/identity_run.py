"""Runs the whole engine with a model that gives the H&E back: what is left is reading, stitching and writing.

python -m benchmarks.identity_run SLIDE OUTPUT.ome.tiff
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor

from mupd_wsi import StainOptions, open_slide, stain_slide
from mupd_wsi.model import ForeignStainer

#: The same tiles as :mod:`benchmarks.peer_run` takes: neighbours share 64 px.
TILE, OVERLAP = 512, 64


class Identity:
    """Costs nothing."""

    channel_names = ("red", "green", "blue")
    output_mpp, output_range = None, (0.0, 1.0)

    def predict(self, image: Tensor) -> Tensor:
        """What it is given."""
        return image

    def get_transform(self) -> None:
        """None: values from 0 to 1."""


def run(slide: Path, output: Path) -> None:
    """Read, give back, stitch, write."""
    with open_slide(slide) as opened:
        mpp = opened.mpp.mean
    model = ForeignStainer(Identity(), name="identity", mpp=mpp, tile=TILE, halo=OVERLAP // 2, fuse="crop")
    options = StainOptions(tissue_mask=False, normalise=False, overwrite=True)
    stain_slide(slide, "all", model=model, output=output, options=options)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
