"""The work folder of one output: everything that is unfinished lies in it, and what is finished survives a kill there.

Beside ``slide.CD8.ome.tiff`` it is ``.slide.CD8.mupd-part``: the lock, the manifest, the log of finished tiles, and
what the writer has begun. A run that is killed leaves this folder and nothing else; the next one with the same request
replays the log, and begins the writer's files anew.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from mupd_wsi.engine.damage import remember, settle_damage
from mupd_wsi.engine.destination import PUBLISHING, Destination, check_destination
from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.journal import Core, Journal
from mupd_wsi.engine.lock import LOCK, OWNER, Ownership, locked
from mupd_wsi.engine.manifest import MANIFEST, key_of, manifest_of, settle_manifest
from mupd_wsi.request import StainOptions
from mupd_wsi.tiling import Tile
from mupd_wsi.writers.staging import (
    REPLACED,
    move_file,
    move_folder,
    output_errors,
    remove,
    sync_file,
    sync_folder,
    sync_together,
)

LOG: Final = "tiles.log"
#: What a run with the same request goes on from; of a cluster's run all that begins with BANDS, too.
KEPT: Final = (MANIFEST, LOG, PUBLISHING)
BANDS: Final = "bands-"


class Work:
    """What is done of an output. Obtained from :func:`opened_work`.

    Attributes:
        resumed: tiles that an earlier run has finished.
    """

    def __init__(
        self,
        place: Destination,
        journal: Journal,
        ownership: Ownership,
        keeper: Keeper,
        damaged: set[tuple[int, int, int]],
    ) -> None:
        self._place: Final = place
        self._keeper: Final = keeper
        self._journal: Final = journal
        self._ownership: Final = ownership
        self._damaged: Final = damaged
        self._earlier: Final = journal.indices()
        self._lock: Final = threading.Lock()
        self._caught_up = not self._earlier
        self._waiting = 0
        self.resumed: Final = len(journal)

    def staged(self, final: Path) -> Path:
        """Where something is made that :meth:`publish` will give its final name: a folder on the same disk."""
        return self._place.work / final.name

    @property
    def folder(self) -> Path:
        """The work folder itself."""
        return self._place.work

    @property
    def notes(self) -> list[dict[str, Any]]:
        """What was noted, in order."""
        return [json.loads(text) for text in self._journal.notes]

    def note(self, content: Mapping[str, Any]) -> None:
        """Have something remembered for the next run; JSON-serialisable.

        Raises:
            OutputError: the disk is full or fails, or another process has taken over.
        """
        self._ownership.require()
        with output_errors(self._place.output):
            self._keeper.require()
            self._journal.note(json.dumps(content).encode())

    def missing(self, tiles: Iterable[Tile]) -> tuple[Tile, ...]:
        """The tiles that are not finished yet."""
        return tuple(tile for tile in tiles if tile.index not in self._earlier)

    @property
    def caught_up(self) -> bool:
        """Whether all that an earlier run has kept, and what came meanwhile, was given by :meth:`in_order`."""
        return self._caught_up

    def keep(self, core: Core, job: StainJob) -> Core | int:
        """Keep a finished tile; of one job, in any order and thread.

        Returns:
            The tile, for :meth:`in_order`; its index alone until that has caught up, so that what comes meanwhile waits
            on the disk and not in memory.

        Raises:
            OutputError: the disk is full or fails, or another process has taken over.
        """
        self._ownership.require()
        with self._lock, output_errors(self._place.output):
            self._keeper.require()
            if core.on_damage:
                remember(self._journal, job.slide.damaged, self._damaged)
            self._journal.keep(core)
            if self._caught_up:
                return core
            self._waiting += 1
            return core.index

    def in_order(self, tiles: Iterable[Tile], fresh: Iterator[Core | int], job: StainJob) -> Iterator[Core]:
        """All finished tiles: those that an earlier run has kept, read back, and those that come now.

        Memory bound: one tile.

        Args:
            tiles: all of the job, in raster order.
            fresh: what :meth:`keep` has given for the missing ones, in raster order.
            job: whose tiles they are.

        Raises:
            OutputError: the disk fails.
        """
        for tile in tiles:
            if tile.index in self._earlier:
                yield self._replayed(tile, job)
                continue
            self._catch_up(0)
            core = next(fresh)
            if isinstance(core, Core):
                yield core
            else:
                yield self._replayed(tile, job)
                self._catch_up(1)

    def _catch_up(self, given: int) -> None:
        with self._lock:
            self._waiting -= given
            self._caught_up = self._caught_up or self._waiting == 0

    def take_back(self, made: Path) -> None:
        """Move an output back to where it was made, from the name that a run gave it that was stopped right then.

        Nothing happens where something lies there, or where no such run has given the name.

        Args:
            made: as it was given to :meth:`publish`.
        """
        place = self._place
        with output_errors(place.output):
            if made.exists() or not place.publishing.exists() or not place.output.exists():
                return
            if place.publishing.read_bytes() == _identity(made, place.output):
                place.output.rename(made)

    def publish(self, made: Path | None = None) -> None:
        """Give preview, record and output, which lie complete under :meth:`staged`, their final names, the output last.

        All three and the mark are on the disk itself before the first gets its name, and the names before the mark
        goes: whatever a loss of power leaves of the names, the next run finds the mark and begins this again.

        Args:
            made: the output, where it lies under another name in :attr:`folder`.

        Raises:
            OutputError: the disk fails, or another process has taken over.
        """
        place = self._place
        made = made or self.staged(place.output)
        self._ownership.require()
        with output_errors(place.output):
            place.publishing.write_bytes(_identity(made, made))
            staged = [self.staged(final) for final in (place.preview, place.record)]
            sync_together([place.publishing, *staged], place.work)
            for final in (place.preview, place.record):
                move_file(self.staged(final), final, sync=False)
            move = move_folder if place.file_format == "ome-zarr" else move_file
            move(made, place.output, sync=False)  # its writer has synced it
            sync_folder(place.output.parent)
            # The mark and the log go in one step: a run that finds the mark finds the log, too.
            self._keeper.close()
            place.publishing.replace(place.work / LOG)
            _sweep(place, keep=())

    def _replayed(self, tile: Tile, job: StainJob) -> Core:
        with output_errors(self._place.output):
            return self._journal.replay((job.spec.samples, tile.core.height, tile.core.width), tile.index)


@contextmanager
def opened_work(
    job: StainJob, options: StainOptions, facts: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[Work]:
    """Lock an output for this process, and take up the work that is kept for it, if any.

    Whatever ends the block, finished tiles stay; where there are none, and after :meth:`Work.publish`, the folder goes.

    Args:
        job: the run.
        options: of the request.
        facts: what else decides whether work that is kept can be gone on with.

    Raises:
        OutputError: another process works on it; the kept work is of another request; the output has come meanwhile; or
            the disk is full or fails.
    """
    place = job.place
    with ExitStack() as stack:
        with output_errors(place.output):
            keeper = Keeper(place.work)
            ownership = stack.enter_context(locked(place.work, place.output, keeper.sync))
            check_destination(place, job.slide.path, overwrite=options.overwrite)
            stack.callback(_tidy, place, keeper, ownership)
            keeper.journal = journal = _taken_up(job, options, facts)
        damaged = settle_damage(journal, job.slide)
        yield Work(place, journal, ownership, keeper, damaged)


class Keeper:
    """Has the log on the disk itself every few seconds, in the lock's thread, and closes it.

    Before the log goes the manifest, by which it is judged. A run that is over sooner syncs neither.

    Args:
        folder: that the two lie in.
    """

    def __init__(self, folder: Path) -> None:
        self.journal: Journal | None = None
        self._folder: Final = folder
        self._settled = False
        self._error: OSError | None = None
        self._lock: Final = threading.Lock()

    def sync(self) -> None:
        """Have all records on the disk; what the disk says to that is raised by :meth:`require`."""
        with self._lock:
            if self.journal is None or self.journal.closed:
                return
            try:
                if not self._settled:
                    sync_file(self._folder / MANIFEST)
                    sync_folder(self._folder)
                    self._settled = True
                self.journal.sync()
            except OSError as error:
                self._error = error

    def require(self) -> None:
        """Raise what the disk has said; an OSError."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Close the log. Safe to call twice."""
        with self._lock:
            if self.journal is not None:
                self.journal.close()


def _identity(made: Path, now: Path) -> bytes:
    """What tells an output that was made under one name, and may have another one now."""
    return f"{made.name} {now.stat().st_ino}".encode()


def _taken_up(job: StainJob, options: StainOptions, facts: Mapping[str, Any]) -> Journal:
    """The log of this request, after everything else that a killed run has left was deleted."""
    place = job.place
    _sweep(place, keep=() if options.restart else KEPT)
    manifest = manifest_of(job, options) | dict(facts)
    settle_manifest(place.work, manifest)
    return Journal(place.work / LOG, key_of(manifest))


def _tidy(place: Destination, keeper: Keeper, ownership: Ownership) -> None:
    """At the end of a run, however it ended: finished work stays, and nothing else."""
    keeper.close()
    if ownership.lost.is_set():
        return
    # Where the log was not even opened, it is another request's, if there is one.
    journal = keeper.journal
    kept = len(journal) > 0 or journal.notes != () if journal is not None else (place.work / LOG).exists()
    _sweep(place, keep=KEPT if kept else ())


def _sweep(place: Destination, keep: Collection[str]) -> None:
    """Empty the work folder, but for what is named, the lock, and an old output that was moved aside for a new one."""
    for part in place.work.iterdir():
        aside = f".{REPLACED}-" in part.name and not place.output.exists()
        band = part.name.startswith(BANDS) and LOG in keep
        if part.name not in {LOCK, OWNER, *keep} and not aside and not band:
            remove(part)
