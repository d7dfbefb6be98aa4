"""From tiles that were read to tiles that are stained: batches through the network, and their overlaps joined."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Final

from mupd_wsi.engine.fusing import ReadTile, Stained, blended, joint
from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.overlap import Stopwatch, prefetch
from mupd_wsi.rendering import Intensities
from mupd_wsi.tiling import Tile

#: While the last tiles of one batch are in the network, its idle threads begin with the next batch.
BATCHES_IN_FLIGHT: Final = 2


def tiles_to_read(job: StainJob, missing: Sequence[Tile]) -> tuple[Tile, ...]:
    """The tiles that the network has to see for the cores that are missing; all, where tiles depend on each other."""
    if job.fuse == "crop":
        return tuple(missing)
    return tuple(job.tiles()) if missing else ()


def stained_tiles(
    job: StainJob, read: Iterator[ReadTile], watch: Stopwatch, missing: Sequence[Tile] | None = None
) -> Generator[Stained]:
    """Stain tiles as they come, join their overlaps, and give the cores that are written, in raster order.

    Close the generator to stop early.

    Args:
        job: the run.
        read: the tiles of :func:`tiles_to_read` in raster order, with their H&E.
        watch: counts the stage "network".
        missing: the cores to give; None: all.
    """
    if job.fuse == "joint":
        yield from _chosen(joint(job, read, watch), missing)
        return
    batches = prefetch(
        _timed_network(job, watch),
        _batches(read, job.stainer.batch_size),
        workers=BATCHES_IN_FLIGHT,
        ahead=BATCHES_IN_FLIGHT - 1,
        thread_name="mupd-batch",
    )
    with closing(batches):
        stained = (([tile for tile, _ in pairs], intensities) for pairs, intensities in batches)
        yield from _chosen(blended(job, stained), missing) if job.fuse == "blend" else stained


def _chosen(stained: Iterator[Stained], missing: Sequence[Tile] | None) -> Iterator[Stained]:
    """Of cores that come one at a time, those that are missing."""
    if missing is None:
        return stained
    wanted = {tile.index for tile in missing}
    return (one for one in stained if one[0][0].index in wanted)


def _timed_network(job: StainJob, watch: Stopwatch) -> Callable[[Sequence[ReadTile]], Intensities]:
    def stain(batch: Sequence[ReadTile]) -> Intensities:
        with watch.stage("network"):
            return job.stain([tile for tile, _ in batch], [rgb for _, rgb in batch])

    return stain


def _batches(tiles: Iterator[ReadTile], size: int) -> Iterator[list[ReadTile]]:
    while batch := list(islice(tiles, size)):
        yield batch
