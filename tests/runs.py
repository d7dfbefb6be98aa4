"""A run's pixels without its files: quick enough for property tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from numpy.typing import NDArray

from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.overlap import Stopwatch, prefetch
from mupd_wsi.engine.resources import opened_job
from mupd_wsi.engine.staining import stained_tiles
from mupd_wsi.pipeline import StainOptions


def scaled(examples: int) -> int:
    """So many examples of a slow property in the quick profile, and more in the long one."""
    return max(1, examples * settings.default.max_examples // 100)


def image_of(slide: Path, stainer: Any, targets: str = "all", **options: Any) -> NDArray[np.uint8]:
    """What a run writes, uint8 (samples, height, width)."""
    chosen = StainOptions(**{"mpp": 1.3, "style": "mif", "tissue_mask": False, "normalise": False} | options)
    with opened_job(slide, targets, stainer, slide.with_name("never.ome.tiff"), chosen, Stopwatch()) as job:
        return image_of_job(job)


def image_of_job(job: StainJob) -> NDArray[np.uint8]:
    """Each pixel written once, by threads as in a real run."""
    region = job.grid.region
    image = np.full((job.spec.samples, region.height, region.width), job.spec.background, np.uint8)
    times = np.zeros(image.shape[1:], int)
    read = prefetch(job.read, job.tiles(), workers=job.workers, ahead=2 * job.workers)
    for tiles, intensities in stained_tiles(job, read, Stopwatch()):
        for tile, planes in zip(tiles, intensities, strict=True):
            y, x = tile.core.y - region.y, tile.core.x - region.x
            place = np.s_[y : y + tile.core.height, x : x + tile.core.width]
            image[:, *place], _ = job.render(tile.core, tile.crop(planes))
            times[place] += 1
    assert times.max(initial=0) <= 1
    if not job.masked:
        assert (times == 1).all()
    return image
