"""The one writer: takes bands and keeps the promises of a SlideWriter; a store knows the file format."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.errors import OutputError
from mupd_wsi.geometry import Region
from mupd_wsi.writers.pyramid import PyramidCutter, TileFormat, TilePlace
from mupd_wsi.writers.spec import ImageSpec
from mupd_wsi.writers.staging import output_errors


class TileStore(Protocol):
    """A file format: where encoded tiles go, under temporary names until :meth:`complete`."""

    @property
    def tiles(self) -> TileFormat:
        """How this format wants its tiles."""

    def take(self, place: TilePlace, encoded: bytes | None) -> None:
        """Keep the next tile; None is one that is all background. The order is that of a
        :class:`~mupd_wsi.writers.pyramid.PyramidCutter`."""

    def complete(self) -> None:
        """All tiles have come: finish the output and give it its final name."""

    def discard(self) -> None:
        """Delete all temporary files. Safe to call twice, and after :meth:`complete` it does nothing."""


class StreamedWriter:
    """A pyramidal image, written band by band; see :class:`~mupd_wsi.writers.spec.SlideWriter`.

    Memory bound: that of :class:`~mupd_wsi.writers.pyramid.PyramidCutter`,
    ``2 * samples * 512 * width`` bytes and a few tiles; the store keeps no pixels.

    :meth:`abort` may be called while another thread is in :meth:`write`, which then raises OutputError.

    Args:
        path: final name of the output.
        spec: of the image.
        store: of the file format; this writer completes or discards it.
    """

    def __init__(self, path: Path, spec: ImageSpec, store: TileStore) -> None:
        self._path: Final = path
        self._spec: Final = spec
        self._store: Final = store
        self._cutter = PyramidCutter(spec.size, spec.samples, store.tiles, self._take)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._finished = False

    def write(self, rows: Region, pixels: NDArray[np.uint8]) -> None:
        """Append a band; see :meth:`mupd_wsi.writers.spec.SlideWriter.write`.

        Raises:
            ValueError: the band is not the next one, not of full width, or its pixels have another shape or type.
            OutputError: the disk is full or fails, or the writer was aborted.
        """
        with self._lock:
            self._require_running()
            self._require_fit(rows, pixels)
            with output_errors(self._path):
                self._cutter.add(pixels)

    def finish(self) -> Path:
        """Complete the output, rename it to its final name, and return that.

        Raises:
            ValueError: rows are missing.
            OutputError: the disk is full or fails, or the writer was aborted.
        """
        with self._lock:
            self._require_running()
            if self._cutter.rows != self._spec.size.height:
                raise ValueError(f"the image needs {self._spec.size.height} rows, got {self._cutter.rows}")
            self._cutter.close()
            with output_errors(self._path):
                self._store.complete()
            self._finished = True
        return self._path

    def abort(self) -> None:
        """Drop everything written so far. Safe to call twice, and after :meth:`finish` it does nothing."""
        self._stopped.set()
        with self._lock:
            if not self._finished:
                self._cutter.close()
                self._store.discard()

    def _take(self, place: TilePlace, encoded: bytes | None) -> None:
        self._require_running()
        self._store.take(place, encoded)

    def _require_running(self) -> None:
        if self._stopped.is_set() or self._finished:
            raise OutputError(f"{self._path} is no longer being written; open a new writer")

    def _require_fit(self, rows: Region, pixels: NDArray[np.uint8]) -> None:
        size = self._spec.size
        if rows.x != 0 or rows.width != size.width or rows.y != self._cutter.rows or rows.bottom > size.height:
            raise ValueError(f"the next band begins at row {self._cutter.rows} of {size}, full width; got {rows}")
        expected = (self._spec.samples, rows.height, rows.width)
        if pixels.shape != expected or pixels.dtype != np.uint8:
            raise ValueError(f"the band {rows} needs uint8 {expected}, got {pixels.dtype} {pixels.shape}")
