"""Which bands of a slide are done: what a cluster's run that was stopped goes on from.

In the work folder of the output (:mod:`mupd_wsi.engine.work`) lie ``bands-<word>``, the image that the workers write,
and ``bands-<word>.<row>.npz``, what each finished band has for the preview. The log there has the cut into bands, which
stays as it was however many workers there are now, and a note for each band that is finished.

The word is new for each beginning: a worker of a run that was stopped, and is still at a band, cannot write into the
image of another one.
"""

from __future__ import annotations

import io
import secrets
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np

from mupd_wsi.batch.bands import BandPart
from mupd_wsi.engine.work import BANDS, Work
from mupd_wsi.geometry import Region
from mupd_wsi.preview import PreviewPart
from mupd_wsi.record import write_atomically
from mupd_wsi.writers.staging import output_errors, remove, sync_file, sync_folder


class BandLog:
    """The bands of one output.

    Attributes:
        bands: output pixels of the whole slide, from top to bottom.
        folder: of the image that the workers write.
        kept: first rows of the bands that an earlier run has finished.
        joined: rows of shards that it has made of what two bands had of them.

    Args:
        work: of the output.
        planned: how the slide is cut where no work is kept.
    """

    def __init__(self, work: Work, planned: Sequence[Region]) -> None:
        self._work: Final = work
        for note in work.notes:
            if "cut" in note:
                work.take_back(work.folder / note["folder"])
        begun = [note for note in work.notes if "cut" in note and (work.folder / note["folder"]).is_dir()]
        self._begun = bool(begun)
        word = begun[-1]["folder"] if begun else f"{BANDS}{secrets.token_hex(4)}"
        self.bands: Final = tuple(Region(*band) for band in begun[-1]["cut"]) if begun else tuple(planned)
        self.folder: Final[Path] = work.folder / word
        own = [note for note in work.notes if note.get("folder") == word]
        self.joined: Final = {int(note["joined"]) for note in own if "joined" in note}
        # What was made of damaged parts of the slide is made again: they may have been mended.
        self._noted: Final = {int(note["band"]): note for note in own if "band" in note and not note["on_damage"]}
        self.kept: Final = frozenset(band.y for band in self.bands if self._read(band) is not None)
        for left in work.folder.glob(f"{BANDS}*"):
            if not left.name.startswith(word):
                remove(left)

    @property
    def tiles(self) -> int:
        """Of the bands that are kept."""
        return sum(int(self._noted[y]["tiles"]) for y in self.kept)

    def done(self) -> Iterator[BandPart]:
        """The bands that are kept, from top to bottom. Memory bound: one."""
        return (part for band in self.bands if band.y in self.kept and (part := self._read(band)) is not None)

    def missing(self) -> list[Region]:
        """The bands that are not."""
        return [band for band in self.bands if band.y not in self.kept]

    def keep(self, part: BandPart) -> None:
        """Take note of a band whose rows are on the disk.

        Raises:
            OutputError: the disk is full or fails, or another process has taken over.
        """
        if not self._begun:
            self._note({"cut": [astuple(band) for band in self.bands]})
            self._begun = True
        path = self._path(part.rows)
        with output_errors(path):
            write_atomically(path, _packed(part.preview))
            sync_file(path)
            sync_folder(path.parent)
        self._note({"band": part.rows.y, "tiles": part.tiles, "on_damage": bool(part.damaged)})

    def note_joined(self, row: int) -> None:
        """Take note that a row of shards was put together of what its two bands had of it."""
        self._note({"joined": row})

    def _note(self, content: dict[str, Any]) -> None:
        self._work.note({"folder": self.folder.name} | content)

    def _path(self, band: Region) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{band.y}.npz")

    def _read(self, band: Region) -> BandPart | None:
        note = self._noted.get(band.y)
        if note is None:
            return None
        try:
            preview = _unpacked(self._path(band).read_bytes())
        except (OSError, EOFError, ValueError, LookupError, BadZipFile, zlib.error):
            return None
        return BandPart(band, int(note["tiles"]), preview, ())


def _packed(part: PreviewPart) -> bytes:
    content = io.BytesIO()
    arrays = {"top": np.array(part.top), "overview": part.overview}
    if part.best is not None:
        score, core, pixels = part.best
        arrays |= {"score": np.array(score), "core": np.array(astuple(core)), "pixels": pixels}
    np.savez_compressed(content, allow_pickle=False, **arrays)
    return content.getvalue()


def _unpacked(content: bytes) -> PreviewPart:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        best = None
        if "score" in arrays:
            best = float(arrays["score"]), Region(*(int(v) for v in arrays["core"])), arrays["pixels"]
        return PreviewPart(int(arrays["top"]), arrays["overview"], best)
