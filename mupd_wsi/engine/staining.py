"""From tiles that were read to tiles that are stained: batches through the network, and their overlaps joined."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.overlap import Stopwatch, prefetch
from mupd_wsi.tiling import Tile

#: Tiles and what the network made of them, float32 (tiles, channels, core, core).
Stained = tuple[Sequence[Tile], NDArray[np.float32]]
#: A tile and its H&E, uint8 (side, side, 3).
ReadTile = tuple[Tile, NDArray[np.uint8]]
#: While the last tiles of one batch are in the network, its idle threads begin with the next batch.
BATCHES_IN_FLIGHT: Final = 2


def stained_tiles(job: StainJob, read: Iterator[ReadTile], watch: Stopwatch) -> Generator[Stained]:
    """Stain tiles as they come, in their order.

    Close the generator to stop early.

    Args:
        job: the run.
        read: the tiles of ``job.tiles()`` in raster order, with their H&E.
        watch: counts the stage "network".
    """
    batches = prefetch(
        _timed_network(job, watch),
        _batches(read, job.stainer.batch_size),
        workers=BATCHES_IN_FLIGHT,
        ahead=BATCHES_IN_FLIGHT - 1,
        thread_name="mupd-batch",
    )
    with closing(batches):
        for pairs, intensities in batches:
            yield [tile for tile, _ in pairs], intensities


def _timed_network(job: StainJob, watch: Stopwatch) -> Callable[[Sequence[ReadTile]], NDArray[np.float32]]:
    def stain(batch: Sequence[ReadTile]) -> NDArray[np.float32]:
        with watch.stage("network"):
            return job.stain([tile for tile, _ in batch], [rgb for _, rgb in batch])

    return stain


def _batches(tiles: Iterator[ReadTile], size: int) -> Iterator[list[ReadTile]]:
    while batch := list(islice(tiles, size)):
        yield batch
