"""One slide on a cluster: workers write level 0, the client finishes the pyramid and, where asked, the OME-TIFF."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from mupd_wsi.batch.band_log import BandLog
from mupd_wsi.batch.bands import BandPart, BandRequest, WorkerFacts, facts_here, split, stain_band
from mupd_wsi.batch.cluster import thread_count
from mupd_wsi.engine.damage import look_again, told
from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.overlap import Stopwatch
from mupd_wsi.engine.resources import DEFAULT_MODEL, DEFAULT_OPTIONS, opened_job
from mupd_wsi.engine.work import opened_work
from mupd_wsi.errors import ClusterError, MupdError, UsageError
from mupd_wsi.geometry import Region
from mupd_wsi.pipeline import details_of, preview_text
from mupd_wsi.preview import PreviewCollector, save_preview
from mupd_wsi.record import write_record
from mupd_wsi.request import Progress, ProgressCallback, StainOptions, StainResult
from mupd_wsi.writers import open_writer
from mupd_wsi.writers.ngff import ZarrStore
from mupd_wsi.writers.pyramid import TILE, PyramidCutter, halved
from mupd_wsi.writers.sharing import SharedImage, join_fragments
from mupd_wsi.writers.spec import ImageSpec
from mupd_wsi.writers.staging import output_errors, remove, sync_all_below

#: Attempts at a band whose worker fails, besides the first.
RETRIES: Final = 2


def stain_on_cluster(
    slide: str | Path,
    targets: str | Sequence[str],
    client: Any,
    *,
    model: str | Path = DEFAULT_MODEL,
    output: str | Path | None = None,
    options: StainOptions = DEFAULT_OPTIONS,
    progress: ProgressCallback | None = None,
) -> StainResult:
    """Stain one slide on the workers of a Dask cluster; the same pixels as :func:`mupd_wsi.pipeline.stain_slide` makes.

    Slide and output lie on storage that client and workers see under the same paths. A worker that dies costs the band
    that it was at. One process works on an output, and finished bands are kept: after an error, Ctrl-C or a kill of the
    client the same call goes on with those that are missing (:mod:`mupd_wsi.batch.band_log`).

    Args:
        slide: the path of one.
        targets: as for ``stain_slide``.
        client: a ``distributed.Client``.
        model: name of a shipped one, or the folder of a bundle.
        output: as for ``stain_slide``.
        options: the rest; ``device`` is the workers'.
        progress: called after each band.

    Raises:
        ClusterError: the workers disagree, or died one after the other.
        MupdError: as for ``stain_slide``.
    """
    watch = Stopwatch()
    here = replace(options, device="cpu", batch_size=1, workers=1)  # the client runs no network
    with opened_job(slide, targets, model, output, here, watch) as job:
        request = _band_request(job, targets, model, options)
        theirs = _facts(client, request)
        job = replace(job, facts=theirs.facts, spec=replace(job.spec, provenance=theirs.facts))
        gathered = PreviewCollector(job.grid.region, job.grid.core, job.pictured, job.spec.background)
        settled = {"cluster": True, "device": theirs.device.partition(":")[0]}
        with ExitStack() as stack:
            work = stack.enter_context(opened_work(job, options, settled))
            with output_errors(job.place.output):
                log = BandLog(work, split(job.grid, thread_count(client)))
                store = ZarrStore(work.staged(job.place.output), job.spec, log.folder)
            stack.callback(store.release)
            stained = _run(job, request, client, store, log, gathered, watch, progress or (lambda _: None))
            job = told(job)
            with watch.stage("preview"):
                save_preview(work.staged(job.place.preview), gathered, job.read_he, job.mpp, preview_text(job))
            details = details_of(job, options, stained, watch, resumed=log.tiles) | {
                "device": theirs.device,
                "batch_size": theirs.batch_size,
                "cluster": {"threads": thread_count(client)},
                "seams": None,  # bands are stained apart; the grid is that of one process, which measures them
            }
            write_record(work.staged(job.place.record), details)
            with output_errors(job.place.output):
                made = _complete(store, job, work.staged(job.place.output))
            work.publish(made)
        place, size = job.place, job.spec.size
        return StainResult(place.output, place.preview, place.record, size, job.warnings, watch.total(), details)


def _band_request(job: StainJob, targets: str | Sequence[str], model: str | Path, options: StainOptions) -> BandRequest:
    """What the workers are told.

    Raises:
        UsageError: the overlaps are to be joined in a way that needs the whole slide.
    """
    if job.fuse != "crop":
        raise UsageError(f"--fuse {job.fuse} joins the whole slide and cannot be cut into bands; leave out --cluster")
    return BandRequest(
        slide=str(job.slide.path.resolve()),
        targets=(targets,) if isinstance(targets, str) else tuple(targets),
        model=str(Path(model).resolve()) if Path(model).is_dir() else str(model),
        output=job.place.output.resolve(),
        options=options,
    )


def _facts(client: Any, request: BandRequest) -> WorkerFacts:
    """How the workers would stain: all open slide and model at the same time, and the first to be ready answers.

    Each compares itself with that answer before its first band.
    """
    import distributed

    asked = [
        client.submit(facts_here, request, pure=False, workers=[address], allow_other_workers=True)
        for address in client.nthreads()
    ]
    facts: WorkerFacts = _result(next(iter(distributed.as_completed(asked))))
    return facts


def _run(
    job: StainJob,
    request: BandRequest,
    client: Any,
    store: ZarrStore,
    log: BandLog,
    gathered: PreviewCollector,
    watch: Stopwatch,
    report: ProgressCallback,
) -> int:
    """Have all bands stained that are missing, and make the coarser levels; returns the image's tiles."""
    image = SharedImage(log.folder.resolve(), job.spec.size.height, job.spec.background)
    total, done, resumed = sum(1 for _ in job.tiles()), 0, log.tiles
    report(Progress(resumed, total, resumed))
    with watch.stage("bands"):
        for part in _joined(job, image, log, itertools.chain(log.done(), _bands(job, request, client, image, log))):
            gathered.merge(part.preview)
            for tile in part.damaged:
                look_again(job.slide, tile.level, Region(*tile.region))
            done += part.tiles
            report(Progress(max(done, resumed), total, resumed))
    if job.place.file_format == "ome-zarr":
        with watch.stage("finish"), output_errors(job.place.output):
            _finish_pyramid(store, job.spec)
    return done


def _bands(job: StainJob, request: BandRequest, client: Any, image: SharedImage, log: BandLog) -> Iterator[BandPart]:
    """The bands that are not kept, each once it is written and noted, in whatever order."""
    import distributed

    expected = dict(job.facts)
    futures = [
        client.submit(stain_band, request, expected, image, band, pure=False, retries=RETRIES, priority=-number)
        for number, band in enumerate(log.missing())
    ]
    try:
        for future in distributed.as_completed(futures):
            part: BandPart = _result(future)
            future.release()
            log.keep(part)
            yield part
    finally:
        client.cancel(futures, force=True)


def _joined(job: StainJob, image: SharedImage, log: BandLog, parts: Iterable[BandPart]) -> Iterator[BandPart]:
    """The bands as they come; shards that two bands share are put together as soon as both are there."""
    top = job.grid.region.y
    pairs = ((above.y, below.y) for above, below in itertools.pairwise(log.bands) if (below.y - top) % TILE)
    waits = {pair: set(pair) for pair in pairs}
    for part in parts:
        for pair in list(waits):
            waits[pair].discard(part.rows.y)
            if waits[pair]:
                continue
            del waits[pair]
            row = (pair[1] - top) // TILE
            if row not in log.joined or not log.kept.issuperset(pair):
                with output_errors(job.place.output):
                    join_fragments(image, row)
                log.note_joined(row)
        yield part


def _result(future: Any) -> Any:
    """What a worker's function returns; raises what it has raised."""
    try:
        return future.result()
    except (MupdError, OSError):
        raise
    except Exception as error:  # Dask's own errors have no common base
        said = " ".join(str(error).split()) or type(error).__name__
        raise ClusterError(f"the cluster failed: {said}; look at the logs of its workers") from error


def _level_0(folder: Path, spec: ImageSpec) -> Iterator[tuple[Region, NDArray[np.uint8]]]:
    """The rows that the workers have written, shard by shard, their checksums verified."""
    array: Any = zarr.open_array(folder / "0", mode="r")
    for y in range(0, spec.size.height, TILE):
        rows = Region(0, y, spec.size.width, min(TILE, spec.size.height - y))
        yield rows, np.asarray(array[:, y : rows.bottom])


def _finish_pyramid(store: ZarrStore, spec: ImageSpec) -> None:
    """Write all levels but the first, anew where a stopped run has begun them."""
    for begun in store.folder.glob("[1-9]*/c"):
        remove(begun)
    if max(spec.size.width, spec.size.height) <= TILE:
        return
    half = replace(spec.size, width=-(-spec.size.width // 2), height=-(-spec.size.height // 2))
    cutter = PyramidCutter(
        half, spec.samples, store.tiles, lambda place, tile: store.take(replace(place, level=place.level + 1), tile)
    )
    try:
        for _, pixels in _level_0(store.folder, spec):
            cutter.add(halved(pixels))
    finally:
        cutter.close()


def _complete(store: ZarrStore, job: StainJob, staged: Path) -> Path:
    """Have the output whole and on the disk itself, and say where: as the workers' image lies, or in another format."""
    if job.place.file_format == "ome-zarr":
        sync_all_below(store.folder)
        return store.folder
    writer = open_writer(staged, job.spec, format=job.place.file_format)
    try:
        for rows, pixels in _level_0(store.folder, job.spec):
            writer.write(rows, pixels)
        return writer.finish()
    except BaseException:
        writer.abort()
        raise
