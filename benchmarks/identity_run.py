"""Runs the whole engine with a network that gives the H&E back: what is left is reading, stitching and writing.

python -m benchmarks.identity_run SLIDE OUTPUT.ome.tiff
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.overlap import Stopwatch
from mupd_wsi.engine.preparing import prepare_job
from mupd_wsi.geometry import Region
from mupd_wsi.markers import Marker, Panel
from mupd_wsi.pipeline import stain_job
from mupd_wsi.rendering import to_planes
from mupd_wsi.request import StainOptions
from mupd_wsi.slides import open_slide

TILE, HALO, BATCH = 512, 32, 4
COLOURS = Panel(tuple(Marker(name, (255, 255, 255)) for name in ("red", "green", "blue")))
WINDOW = ((0.0, 255.0),) * 3


class IdentityStainer:
    """Float planes of the H&E itself, as a network would give them."""

    device, precision, batch_size = "cpu", "fp32", BATCH

    def __init__(self, mpp: float) -> None:
        self.info: Any = SimpleNamespace(
            name="identity",
            version="1",
            license="Apache-2.0",
            weights_sha256="0" * 64,
            panel=COLOURS,
            mpp=mpp,
            tile=TILE,
            halo=HALO,
            steps=1,
            stain_reference=None,
            metrics={},
            display_window={"mean": WINDOW, "sample": WINDOW},
        )

    def stain(
        self, rgb: NDArray[np.uint8], _origins: Any, _options: Any, _channels: Any, margin: int, _parts: Any = None
    ) -> NDArray[np.float32]:
        """float32 (B, 3, core, core)."""
        inner = slice(margin, -margin or None)
        planes = torch.from_numpy(rgb[:, inner, inner]).permute(0, 3, 1, 2).float()
        return planes.contiguous().numpy()


class IdentityJob(StainJob):
    """Writes the three planes as one RGB picture."""

    __slots__ = ()

    def render(self, _core: Region, intensities: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float]:
        """uint8 (3, h, w)."""
        return to_planes(intensities, self.windows), 0.0


def run(slide_path: Path, output: Path) -> None:
    """Read, give back, stitch, write."""
    with open_slide(slide_path) as slide:
        stainer: Any = IdentityStainer(slide.mpp.mean)
        options = StainOptions(style="mif", tissue_mask=False, overwrite=True)
        job = prepare_job(slide, stainer, "all", output, options)
        values = {field.name: getattr(job, field.name) for field in fields(job)}
        stain_job(IdentityJob(**values | {"spec": replace(job.spec, channels=())}), options, Stopwatch())


def main(arguments: Sequence[str]) -> int:
    """SLIDE OUTPUT."""
    run(Path(arguments[0]), Path(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
