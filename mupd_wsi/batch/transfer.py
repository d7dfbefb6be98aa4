"""Staining by URL: the slide is fetched whole, stained here, and what was made is put where it belongs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mupd_wsi.batch import remote
from mupd_wsi.batch.ledger import PATTERN
from mupd_wsi.batch.summary import CSV_NAME, HTML_NAME
from mupd_wsi.engine.destination import destination
from mupd_wsi.errors import OutputError
from mupd_wsi.record import write_record
from mupd_wsi.request import StainOptions, StainResult


class Places(NamedTuple):
    """Where a run's three results lie, as paths or URLs."""

    output: str
    preview: str
    record: str


def places_of(url: str) -> Places:
    """The three URLs of an output.

    Raises:
        UsageError: its name has no known ending.
    """
    folder, _, name = url.rpartition("/")
    place = destination(Path(name), None, "", (), 0)
    return Places(url, f"{folder}/{place.preview.name}", f"{folder}/{place.record.name}")


def check_free(url: str, *, overwrite: bool) -> None:
    """Whether an output may be put at a URL.

    Raises:
        OutputError: something is there already, or that cannot be told.
    """
    if not overwrite and remote.exists(url):
        raise OutputError(f"{url} exists; give --overwrite to replace it, or another name with -o")


def tell_source(result: StainResult, slide: str) -> StainResult:
    """Put the slide's own address into the record of a run that has read a copy."""
    source = {"slide_source": remote.identity(slide)} if remote.is_url(slide) else {}
    return _told(result, {"slide_path": slide} | source)


def deliver(result: StainResult, url: str) -> None:
    """Put a run's results at URLs, the record last, and check that all of them arrived.

    Raises:
        OutputError: they did not.
    """
    places = places_of(url)
    own = dict(result.details["output"]) | {"path": places.output, "preview": places.preview}
    result = _told(result, {"output": own})
    for local, place in zip((result.output, result.preview, result.record), places, strict=True):
        remote.upload(local, place)


def stain_by_url(
    run: Callable[..., StainResult], slide: str | Path, output: str | Path | None, options: StainOptions, **rest: Any
) -> tuple[StainResult, Places]:
    """Stain a slide given by URL, into one given by URL, or both. Copies lie in the system's temporary folder.

    Args:
        run: :func:`mupd_wsi.pipeline.stain_slide` or one that is called like it.
        slide: path or URL.
        output: as for ``stain_slide``, or the URL of a file name.
        options: the rest.
        rest: passed on.

    Returns:
        The result, whose paths may be of copies that are gone, and where everything lies now.
    """
    with tempfile.TemporaryDirectory(prefix="mupd-wsi-") as name:
        scratch = Path(name)
        local = remote.download(slide, scratch) if isinstance(slide, str) and remote.is_url(slide) else slide
        if not (isinstance(output, str) and remote.is_url(output)):
            result = tell_source(run(local, output=output, options=options, **rest), str(slide))
            paths = (result.output, result.preview, result.record)
            return result, Places(*(str(path.resolve()) for path in paths))
        places = places_of(output)
        check_free(output, overwrite=options.overwrite)
        (scratch / "out").mkdir()
        target = scratch / "out" / output.rpartition("/")[2]
        result = tell_source(run(local, output=target, options=options, **rest), str(slide))
        deliver(result, output)
        return result, places


@contextmanager
def mirrored(url: str) -> Iterator[Path]:
    """A local folder with the logs of a batch that lies at a URL; what changed in it is put there at the end.

    Raises:
        OutputError: it cannot be read or written.
    """
    with tempfile.TemporaryDirectory(prefix="mupd-wsi-") as name:
        folder = Path(name) / (url.rstrip("/").rpartition("/")[2] or "batch")
        folder.mkdir()
        remote.fetch_matching(url, PATTERN, folder)
        before = {path.name: path.stat().st_size for path in folder.iterdir()}
        try:
            yield folder
        finally:
            for path in (*sorted(folder.glob(PATTERN)), folder / CSV_NAME, folder / HTML_NAME):
                if path.exists() and before.get(path.name) != path.stat().st_size:
                    remote.upload(path, f"{url.rstrip('/')}/{path.name}")


def _told(result: StainResult, changes: Mapping[str, Any]) -> StainResult:
    details = dict(result.details) | dict(changes)
    write_record(result.record, details)
    return replace(result, details=details)
