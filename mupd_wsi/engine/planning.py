"""What a run would take, told without writing anything."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.journal import journal_bytes
from mupd_wsi.engine.overlap import Stopwatch
from mupd_wsi.engine.resources import DEFAULT_MODEL, DEFAULT_OPTIONS, opened_job
from mupd_wsi.request import StainOptions, StainPlan
from mupd_wsi.slides import Slide
from mupd_wsi.tiling import Tile
from mupd_wsi.writers import estimated_bytes

if TYPE_CHECKING:
    from mupd_wsi.model import TileStainer

#: Measured: what the libraries, the model and the slide's cache hold before the first tile, bytes.
BASE_MEMORY: Final = 620 * 2**20
#: Measured: activations of the network for one tile pixel, bytes.
ACTIVATION_BYTES_PER_PIXEL: Final = 200
#: What reading, rendering, writing and waiting make of the network's time.
OVERHEAD: Final = 1.1


def plan_stain(
    slide: Slide | str | Path,
    targets: str | Sequence[str],
    *,
    model: TileStainer | str | Path = DEFAULT_MODEL,
    output: str | Path | None = None,
    options: StainOptions = DEFAULT_OPTIONS,
) -> StainPlan:
    """What :func:`stain_slide` would do and need, with all of its checks; writes nothing.

    The network is run on a few of the slide's own tiles, to tell how long it takes here.
    """
    watch = Stopwatch()
    with opened_job(slide, targets, model, output, options, watch) as job:
        tiles = tuple(job.tiles())
        covered = job.tissue_fraction if job.masked else 1.0
        return StainPlan(
            output=job.place.output,
            style=job.style,
            file_format=job.place.file_format,
            targets=tuple(marker.name for marker in job.markers),
            size=job.spec.size,
            mpp=job.mpp,
            tiles=len(job.grid),
            tiles_to_run=len(tiles),
            tissue_fraction=job.tissue_fraction,
            peak_memory_bytes=peak_memory(job),
            disk_bytes=estimated_bytes(job.spec, covered, job.place.file_format) + journal_bytes(job.spec, covered),
            seconds=watch.total() + _seconds_per_tile(job, tiles) * len(tiles) * OVERHEAD,
            warnings=job.warnings,
        )


def peak_memory(job: StainJob) -> int:
    """Bytes that a run needs at most, about.

    ``base + activations of one batch + 4 batches of answers (two made, one waiting, one written; two more where draws
    are added up) + tiles read ahead + 3 bands of rows (stitched, written, and the coarser levels)``. It grows with the
    slide's width, not its height. Joined overlaps add two rows of cells for ``blend`` and
    four for each step and sample of ``joint``, float32, of the channels and one more.
    """
    batch, tile = job.stainer.batch_size, job.grid.side**2
    activations = batch * tile * ACTIVATION_BYTES_PER_PIXEL
    answers = (4 + 2 * (job.samples > 1)) * batch * len(job.windows) * job.grid.core**2 * 4
    ahead = (4 * batch + job.workers) * tile * 3
    bands = 3 * job.spec.samples * job.grid.core * job.spec.size.width
    return BASE_MEMORY + activations + answers + ahead + bands + _joined_bytes(job)


def _joined_bytes(job: StainJob) -> int:
    """What :mod:`mupd_wsi.engine.fusing` holds at most, by the formulas in its docstrings."""
    row = job.grid.core * (job.run_grid.region.width + job.grid.core) * 4
    if job.fuse == "blend":
        return 2 * row * (len(job.windows) + 1)
    if job.fuse == "joint":
        return job.samples * job.rings * 4 * row * (len(job.stainer.info.panel) + 1)
    return 0


def _seconds_per_tile(job: StainJob, tiles: Sequence[Tile]) -> float:
    """Time the network on tiles from the middle of the run; its first pass warms up and does not count."""
    if not tiles:
        return 0.0
    middle = len(tiles) // 2
    batch = tiles[middle : middle + job.stainer.batch_size]
    rgb = [job.read(tile) for tile in batch]
    job.stain(batch, rgb)
    start = time.perf_counter()
    job.stain(batch, rgb)
    return (time.perf_counter() - start) / len(batch)
