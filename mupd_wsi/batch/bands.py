"""One slide on many workers: each stains bands of rows and writes them into the one image that all share."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.overlap import Stopwatch, prefetch
from mupd_wsi.engine.resources import opened_job
from mupd_wsi.errors import ClusterError
from mupd_wsi.geometry import Region, Size
from mupd_wsi.preview import PreviewCollector, PreviewPart
from mupd_wsi.request import StainOptions
from mupd_wsi.slides.damage import DamagedTile
from mupd_wsi.stitching import BandStitcher
from mupd_wsi.tiling import TileGrid
from mupd_wsi.writers.pyramid import TILE
from mupd_wsi.writers.sharing import RowWriter, SharedImage

#: Bands for each worker: more balance better, fewer read less twice.
BANDS_PER_WORKER: Final = 6


@dataclass(frozen=True, slots=True)
class BandRequest:
    """What a worker needs to know of a run; the same for all bands.

    Attributes:
        slide: full path, which all workers see.
        targets: as the user spelled them.
        model: name or full path.
        output: full path of the final output.
        options: the rest.
    """

    slide: str
    targets: tuple[str, ...]
    model: str
    output: Path
    options: StainOptions


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """How a worker would stain.

    Attributes:
        facts: of the request, as the record tells them.
        device: that the network runs on.
        batch_size: tiles in one pass.
    """

    facts: Mapping[str, Any]
    device: str
    batch_size: int


@dataclass(frozen=True, slots=True)
class BandPart:
    """What a worker tells of a band that it has written.

    Attributes:
        rows: output pixels of the whole slide.
        tiles: that the network has seen.
        preview: what was gathered for the picture.
        damaged: tiles of the slide that this worker could not read, so far.
    """

    rows: Region
    tiles: int
    preview: PreviewPart
    damaged: tuple[DamagedTile, ...]


def split(grid: TileGrid, workers: int) -> list[Region]:
    """Cut a grid's region into bands of whole grid rows, each at least as high as a row of the output's tiles.

    Args:
        grid: of the run.
        workers: to share them.

    Returns:
        Output pixels of the whole slide, full width, from top to bottom.
    """
    least = max(TILE, grid.region.height // (workers * BANDS_PER_WORKER))
    bands: list[Region] = []
    for row in map(grid.row_region, grid.rows):
        if bands and (bands[-1].height < least or grid.region.bottom - row.y < TILE):
            bands[-1] = replace(bands[-1], height=row.bottom - bands[-1].y)
        else:
            bands.append(row)
    return bands


def facts_here(request: BandRequest) -> WorkerFacts:
    """How this worker would stain. Runs on a worker."""
    job = _opened(request)
    return WorkerFacts(dict(job.facts), job.stainer.device, job.stainer.batch_size)


def stain_band(request: BandRequest, expected: Mapping[str, Any], image: SharedImage, rows: Region) -> BandPart:
    """Stain some rows and write them. Runs on a worker.

    Args:
        request: the run.
        expected: facts that this worker must agree with.
        image: that all workers write.
        rows: output pixels of the whole slide, one of the bands of :func:`split`.

    Raises:
        ClusterError: this worker would stain otherwise than the others.
        MupdError: whatever a run in one process raises.
    """
    job = _opened(request)
    for name, value in job.facts.items():
        if value != expected[name]:
            raise ClusterError(
                f"the workers disagree on {name}: {expected[name]} and {value}; give them the same software and devices"
            )
    gathered = PreviewCollector(job.grid.region, job.grid.core, job.pictured, job.spec.background)
    band = replace(job, grid=replace(job.grid, region=rows))
    writer = RowWriter(image, rows.y - job.grid.region.y)
    count = [0]
    bands = [_within(band.grid.row_region(row), rows) for row in band.grid.rows]
    stitcher = BandStitcher(Size(rows.width, rows.height), job.spec.samples, job.spec.background, bands)
    for _, pixels in stitcher.bands(_cores(band, gathered, count)):
        writer.write(pixels)
        del pixels
    writer.finish()
    return BandPart(rows, count[0], gathered.part(rows), job.slide.damaged)


def _cores(job: StainJob, gathered: PreviewCollector, count: list[int]) -> Iterator[tuple[Region, NDArray[np.uint8]]]:
    """The cores of a band in raster order, stained and rendered."""
    size = job.stainer.batch_size
    with closing(prefetch(job.read, job.tiles(), workers=job.workers, ahead=size + job.workers)) as read:
        while pairs := list(islice(read, size)):
            tiles = [tile for tile, _ in pairs]
            intensities = job.stain(tiles, [rgb for _, rgb in pairs])
            for tile, planes in zip(tiles, intensities, strict=True):
                pixels, positivity = job.render(tile.core, tile.crop(planes))
                gathered.add(tile.core, pixels[: job.pictured], positivity)
                count[0] += 1
                yield _within(tile.core, job.grid.region), pixels


def _within(part: Region, whole: Region) -> Region:
    return replace(part, x=part.x - whole.x, y=part.y - whole.y)


class _Held(threading.local):
    """What a worker's thread keeps open from band to band: the slide and the model."""

    request: BandRequest | None = None
    job: StainJob | None = None
    stack: ExitStack | None = None


_held = _Held()


def _opened(request: BandRequest) -> StainJob:
    """The run as this thread sees it; one at a time is kept open."""
    if _held.request == request and _held.job is not None:
        return _held.job
    release()
    cv2.setNumThreads(1)  # a worker has one core
    options = replace(request.options, batch_size=_batch_size(request.options), workers=1)
    stack = ExitStack()
    opened = opened_job(request.slide, request.targets, request.model, request.output, options, Stopwatch())
    _held.job = stack.enter_context(opened)
    _held.request, _held.stack = request, stack
    return _held.job


def release() -> None:
    """Close what this thread keeps open."""
    if _held.stack is not None:
        _held.stack.close()
    _held.request = _held.job = _held.stack = None


def _batch_size(options: StainOptions) -> int | None:
    """One tile at a time on the CPU: a worker has one core there."""
    from mupd_wsi.model.devices import resolve_device

    return options.batch_size or (1 if resolve_device(options.device) == "cpu" else None)
