"""One slide on a cluster: workers write level 0, the client finishes the pyramid and, where asked, the OME-TIFF."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from mupd_wsi.batch.bands import BandPart, BandRequest, WorkerFacts, facts_here, split, stain_band
from mupd_wsi.batch.cluster import thread_count
from mupd_wsi.engine.damage import look_again, told
from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.overlap import Stopwatch
from mupd_wsi.engine.resources import DEFAULT_MODEL, DEFAULT_OPTIONS, opened_job
from mupd_wsi.errors import ClusterError, MupdError, UsageError
from mupd_wsi.geometry import Region
from mupd_wsi.pipeline import details_of, preview_text
from mupd_wsi.preview import PreviewCollector, save_preview
from mupd_wsi.record import write_record
from mupd_wsi.request import Progress, ProgressCallback, StainOptions, StainResult
from mupd_wsi.writers import open_writer
from mupd_wsi.writers.ngff import ZarrStore
from mupd_wsi.writers.pyramid import TILE, PyramidCutter, halved
from mupd_wsi.writers.sharing import FRAGMENTS, SharedImage, join_fragments
from mupd_wsi.writers.spec import ImageSpec
from mupd_wsi.writers.staging import hidden_sibling, output_errors, remove

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
    that it was at.

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
        if job.fuse != "crop":
            raise UsageError(
                f"--fuse {job.fuse} joins the whole slide and cannot be cut into bands; leave out --cluster"
            )
        spelled = (targets,) if isinstance(targets, str) else tuple(targets)
        request = BandRequest(
            slide=str(job.slide.path.resolve()),
            targets=spelled,
            model=str(Path(model).resolve()) if Path(model).is_dir() else str(model),
            output=job.place.output.resolve(),
            options=options,
        )
        theirs: WorkerFacts = _result(client.submit(facts_here, request, pure=False))
        job = replace(job, facts=theirs.facts, spec=replace(job.spec, provenance=theirs.facts))
        gathered = PreviewCollector(job.grid.region, job.grid.core, job.pictured, job.spec.background)
        stained = _run(job, request, client, gathered, watch, progress or (lambda _: None))
        job = told(job)
        with watch.stage("preview"):
            save_preview(job.place.preview, gathered, job.read_he, job.mpp, preview_text(job))
        details = details_of(job, options, stained, watch) | {
            "device": theirs.device,
            "batch_size": theirs.batch_size,
            "cluster": {"threads": thread_count(client)},
            "seams": None,  # bands are stained apart; the grid is that of one process, which measures them
        }
        write_record(job.place.record, details)
        place = job.place
        return StainResult(
            place.output, place.preview, place.record, job.spec.size, job.warnings, watch.total(), details
        )


def _run(
    job: StainJob,
    request: BandRequest,
    client: Any,
    gathered: PreviewCollector,
    watch: Stopwatch,
    report: ProgressCallback,
) -> int:
    """Have all bands stained, and finish the output; returns how many tiles the network has seen."""
    place, as_zarr = job.place, job.place.file_format == "ome-zarr"
    with output_errors(place.output):
        store = ZarrStore(request.output if as_zarr else hidden_sibling(request.output, "bands"), job.spec)
    try:
        image = SharedImage(store.folder, job.spec.size.height, job.spec.background)
        total, done = sum(1 for _ in job.tiles()), 0
        report(Progress(0, total))
        with watch.stage("bands"):
            for part in _bands(job, request, client, image):
                gathered.merge(part.preview)
                for tile in part.damaged:
                    look_again(job.slide, tile.level, Region(*tile.region))
                done += part.tiles
                report(Progress(done, total))
        for stale in (place.preview, place.record):
            stale.unlink(missing_ok=True)
        with watch.stage("finish"), output_errors(place.output):
            remove(store.folder / FRAGMENTS)
            if as_zarr:
                _finish_pyramid(store, job.spec)
                store.complete()
            else:
                _copy(store, job)
    finally:
        store.discard()
    return done


def _bands(job: StainJob, request: BandRequest, client: Any, image: SharedImage) -> Iterator[BandPart]:
    """Every band once it is written, in whatever order; shards that two bands share are put together in between."""
    import distributed

    bands = split(job.grid, thread_count(client))
    top = job.grid.region.y
    shared = {band.y - top: {above.y, band.y} for above, band in itertools.pairwise(bands) if (band.y - top) % TILE}
    expected = dict(job.facts)
    futures = [
        client.submit(stain_band, request, expected, image, band, pure=False, retries=RETRIES, priority=-number)
        for number, band in enumerate(bands)
    ]
    try:
        for future in distributed.as_completed(futures):
            part: BandPart = _result(future)
            future.release()
            for seam in list(shared):
                shared[seam].discard(part.rows.y)
                if not shared[seam]:
                    del shared[seam]
                    with output_errors(request.output):
                        join_fragments(image, seam // TILE)
            yield part
    finally:
        client.cancel(futures, force=True)


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
    """Write all levels but the first."""
    if max(spec.size.width, spec.size.height) <= TILE:
        return
    half = replace(spec.size, width=-(-spec.size.width // 2), height=-(-spec.size.height // 2))
    cutter = PyramidCutter(
        half, spec.samples, store.tiles, lambda place, tile: store.take(replace(place, level=place.level + 1), tile)
    )
    try:
        for _, pixels in _level_0(store.folder, spec):
            cutter.add(np.stack([halved(plane) for plane in pixels]))
    finally:
        cutter.close()


def _copy(store: ZarrStore, job: StainJob) -> None:
    """Write the output in another format."""
    writer = open_writer(job.place.output, job.spec, format=job.place.file_format)
    try:
        for rows, pixels in _level_0(store.folder, job.spec):
            writer.write(rows, pixels)
        writer.finish()
    except BaseException:
        writer.abort()
        raise
