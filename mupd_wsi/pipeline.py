"""Staining a slide from start to finish: the one module that knows slides, network, stitching and writers together.

Reader threads fill a queue of tiles; the caller's thread feeds the network; what it makes is rendered and kept in
threads, and one background thread stitches and writes. All overlap, and every result is independent of how the threads
happen to run. A run that goes on from an earlier one does not wait for that one's tiles to be written again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.engine.damage import told
from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.journal import Core, packed
from mupd_wsi.engine.overlap import Background, Stopwatch, prefetch, threads
from mupd_wsi.engine.planning import plan_stain
from mupd_wsi.engine.resources import DEFAULT_MODEL, DEFAULT_OPTIONS, opened_job
from mupd_wsi.engine.seams import SeamCheck
from mupd_wsi.engine.staining import stained_tiles, tiles_to_read
from mupd_wsi.engine.work import Work, opened_work
from mupd_wsi.geometry import Region
from mupd_wsi.preview import PreviewCollector, PreviewText, save_preview
from mupd_wsi.record import software, write_record
from mupd_wsi.rendering import Intensities
from mupd_wsi.request import (
    IHC_NOTICE,
    NOTICE,
    PAINTED_NOTICE,
    Progress,
    ProgressCallback,
    StainOptions,
    StainPlan,
    StainResult,
)
from mupd_wsi.slides import Slide
from mupd_wsi.stitching import BandStitcher
from mupd_wsi.tiling import Tile
from mupd_wsi.writers import open_writer
from mupd_wsi.writers.spec import SlideWriter

if TYPE_CHECKING:
    from mupd_wsi.model import TileStainer

__all__ = [
    "Progress",
    "StainOptions",
    "StainPlan",
    "StainResult",
    "details_of",
    "plan_stain",
    "preview_text",
    "stain_slide",
]

#: The cores of a batch of tiles, on their way from intensities to pixels; an index where the work folder has it.
Rendering = Sequence[Future[Core | int]]

#: More markers than this are counted in the preview's subtitle; its legend names them all.
MAX_NAMED_MARKERS: Final = 6


def stain_slide(
    slide: Slide | str | Path,
    targets: str | Sequence[str],
    *,
    model: TileStainer | str | Path = DEFAULT_MODEL,
    output: str | Path | None = None,
    options: StainOptions = DEFAULT_OPTIONS,
    progress: ProgressCallback | None = None,
) -> StainResult:
    """Stain a whole slide, or a part of it, and write the stained slide, a preview and a record.

    Nothing appears under the output's name before it is complete. Finished tiles are kept in a work folder beside it:
    after an error, Ctrl-C, a kill or a power cut the same call goes on where it was (:mod:`mupd_wsi.engine.work`).

    Args:
        slide: an open slide, or the path of one.
        targets: marker names in any spelling, commas allowed, or ``"all"``.
        model: a loaded model, or what :func:`mupd_wsi.load_model` takes for one.
        output: a file name ending in ``.ome.tiff`` or ``.ome.zarr``, an existing folder, or None for
            ``<slide>.<target>.ome.tiff`` in the current folder.
        options: the rest.
        progress: called in this thread after each batch of tiles.

    Raises:
        MupdError: see :mod:`mupd_wsi.errors`; everything that can be checked is checked before anything is written.
    """
    watch = Stopwatch()
    with opened_job(slide, targets, model, output, options, watch) as job, opened_work(job, options) as work:
        gathered = PreviewCollector(job.grid.region, job.grid.core, job.pictured, job.spec.background)
        seams = SeamCheck(job)
        stained = _run(job, work, gathered, seams, watch, progress)
        job = told(job)
        with watch.stage("preview"):
            save_preview(work.staged(job.place.preview), gathered, job.read_he, job.mpp, preview_text(job))
        details = details_of(job, options, stained, watch, resumed=work.resumed) | {"seams": seams.report().as_json()}
        write_record(work.staged(job.place.record), details)
        work.publish()
        return StainResult(
            output=job.place.output,
            preview=job.place.preview,
            record=job.place.record,
            size=job.spec.size,
            warnings=job.warnings,
            seconds=watch.total(),
            details=details,
        )


def _run(
    job: StainJob,
    work: Work,
    gathered: PreviewCollector,
    seams: SeamCheck,
    watch: Stopwatch,
    progress: ProgressCallback | None,
) -> int:
    """Read, stain and write all tiles, overlapped, but for those that are kept; returns how many hold tissue."""
    report = progress or (lambda _: None)
    tiles = tuple(job.cores())
    missing = work.missing(tiles)
    done = resumed = len(tiles) - len(missing)
    report(Progress(done, len(tiles), resumed))
    writer = open_writer(work.staged(job.place.output), job.spec, format=job.place.file_format)
    ahead = 2 * job.stainer.batch_size + job.workers
    needed = tiles_to_read(job, missing)
    try:
        with (
            threads(job.workers, "mupd-render") as rendering,
            Background[Rendering](partial(_write, job, tiles, work, writer, gathered, seams, watch), depth=1) as behind,
            closing(prefetch(_timed_read(job, watch), needed, workers=job.workers, ahead=ahead)) as read,
            closing(stained_tiles(job, read, watch, missing)) as stained,
        ):
            for finished, intensities in stained:
                pairs = zip(finished, intensities, strict=True)
                batch = [rendering.submit(_rendered, job, work, tile, planes, watch) for tile, planes in pairs]
                caught_up = work.caught_up
                if not caught_up:
                    wait(batch)  # then it is on the disk, and may wait without its pixels
                behind.put(batch, wait=caught_up)
                done += len(finished)
                report(Progress(done, len(tiles), resumed))
            with watch.stage("seams"):
                seams.stain_again()
        with watch.stage("finish"):
            writer.finish()
    except BaseException:
        writer.abort()
        raise
    return len(tiles)


def _write(
    job: StainJob,
    tiles: Iterable[Tile],
    work: Work,
    writer: SlideWriter,
    gathered: PreviewCollector,
    seams: SeamCheck,
    watch: Stopwatch,
    rendering: Iterable[Rendering],
) -> None:
    """Runs in the background thread: stitch, write."""
    grid = job.grid
    rows = [_to_output(grid.row_region(row), grid.region) for row in grid.rows]
    stitcher = BandStitcher(job.spec.size, job.spec.samples, job.spec.background, rows)
    cores = work.in_order(tiles, (core.result() for batch in rendering for core in batch), job)

    def measure(where: Region, pixels: NDArray[np.uint8]) -> None:
        with watch.stage("seams"):
            seams.band(where, pixels)

    with threads(1, "mupd-seams") as beside:
        for where, pixels in stitcher.bands(_placed(job, cores, gathered, seams)):
            measured = beside.submit(measure, where, pixels)
            with watch.stage("write"):
                writer.write(where, pixels)
            measured.result()
            del pixels, measured  # a band is large, and the stitcher makes the next one now


def _placed(
    job: StainJob, cores: Iterable[Core], gathered: PreviewCollector, seams: SeamCheck
) -> Iterator[tuple[Region, NDArray[np.uint8]]]:
    for core in cores:
        where = job.grid.tile(core.index).core
        gathered.add(where, core.pixels[: job.pictured], core.positivity)
        seams.keep(where, core.pixels)
        yield _to_output(where, job.grid.region), core.pixels


def _rendered(job: StainJob, work: Work, tile: Tile, planes: Intensities, watch: Stopwatch) -> Core | int:
    with watch.stage("render"):
        pixels, positivity = job.render(tile.core, tile.crop(planes))
        return work.keep(Core(tile.index, pixels, positivity, job.on_damage(tile), packed(pixels)), job)


def _timed_read(job: StainJob, watch: Stopwatch) -> Callable[[Tile], NDArray[np.uint8]]:
    def read(tile: Tile) -> NDArray[np.uint8]:
        with watch.stage("read"):
            return job.read(tile)

    return read


def _to_output(part: Region, region: Region) -> Region:
    """From output pixels of the whole slide to those of the region that is written."""
    return replace(part, x=part.x - region.x, y=part.y - region.y)


def details_of(
    job: StainJob, options: StainOptions, stained: int, watch: Stopwatch, *, resumed: int = 0
) -> dict[str, Any]:
    """The whole record of a run, JSON-serialisable.

    Args:
        job: the run.
        options: as they were given.
        stained: tiles that the network has seen.
        watch: of the run.
        resumed: tiles that an interrupted run had finished.
    """
    place, size = job.place, job.spec.size
    return dict(job.facts) | {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "slide_path": str(job.slide.path),
        "request": asdict(options),
        "output": {
            "path": str(place.output),
            "preview": str(place.preview),
            "format": place.file_format,
            "width": size.width,
            "height": size.height,
            "channels": [channel.name for channel in job.spec.channels] or ["red", "green", "blue"],
            "origin_um": list(job.spec.origin_um),
        },
        "tiles": {
            "total": len(job.grid),
            "stained": stained,
            "resumed": resumed,
            "side": job.grid.side,
            "halo": job.grid.halo,
        },
        "device": job.stainer.device,
        "batch_size": job.stainer.batch_size,
        "batch_size_that_fitted": job.stainer.fitting.width,
        "workers": job.workers,
        "expected_peak_bytes": job.expected_peak_bytes,
        "seconds": watch.seconds(),
        "environment": software(),
    }


def preview_text(job: StainJob) -> PreviewText:
    """The words in a run's preview."""
    info, count = job.stainer.info, len(job.markers)
    names = ", ".join(marker.name for marker in job.markers) if count <= MAX_NAMED_MARKERS else f"{count} markers"
    ihc = job.style == "ihc"
    drawn = "one draw" if job.samples == 1 else f"mean of {job.samples} draws"
    readout = "expected intensity" if job.sampling.readout == "mean" else f"{drawn}, seed {job.sampling.seed}"
    return PreviewText(
        title=job.slide.name,
        subtitle=f"{names}  ·  {info.name} {info.version}, {readout}  ·  {info.mpp:g} um/px",
        slide="H&E" if job.looks_like_he else "slide (not H&E)",
        stain=f"virtual {'stain' if info.painted else 'IHC' if ihc else 'immunofluorescence'}"
        + (f", {names}" if count == 1 else ""),
        channels=job.spec.channels[: job.pictured],
        warnings=job.warnings,
        damaged=job.lost(),
        notices=(f"{NOTICE}; {PAINTED_NOTICE if info.painted else IHC_NOTICE}" if ihc else NOTICE,),
    )
