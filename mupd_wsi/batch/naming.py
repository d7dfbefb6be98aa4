"""From listed slides to tasks, each with an output name of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mupd_wsi.batch.manifest import Entry
from mupd_wsi.batch.remote import is_url
from mupd_wsi.batch.tasks import SlideTask
from mupd_wsi.engine.destination import ENDINGS, destination, target_label
from mupd_wsi.engine.preparing import target_labels
from mupd_wsi.errors import MupdError, UsageError
from mupd_wsi.markers import Panel
from mupd_wsi.request import StainOptions
from mupd_wsi.slides.slide import slide_name


@dataclass(frozen=True, slots=True)
class _Named:
    """An entry on the way to its name."""

    entry: Entry
    targets: tuple[str, ...]
    label: str
    key: str


def plan_tasks(
    entries: Sequence[Entry],
    targets: Sequence[str],
    panel: Panel,
    folder: Path,
    options: StainOptions,
    remote: str | None = None,
) -> list[SlideTask]:
    """Give each slide its targets, options and output; everything that can be refused before staining is.

    A slide of a folder lies below ``folder`` as it lay below its own. Where names would meet, the outputs get their
    slides' folders, and if that does not tell them apart the slides' endings too.

    Args:
        entries: the slides.
        targets: for those that have none of their own.
        panel: of the model.
        folder: of the batch.
        options: for all.
        remote: URL of the batch where the folder is only its local mirror.

    Raises:
        UsageError: no target, an unknown one, an output outside of the folder, or two slides with one output.
    """
    ending = ENDINGS[options.file_format or "ome-tiff"][0]
    named = [_named(entry, tuple(targets), panel, ending) for entry in entries]
    named = _with_suffixes(_with_folders(named, ending), ending)
    counts = Counter(item.key for item in named)
    for item in named:
        if counts[item.key] > 1:
            where = f" ({item.entry.origin})" if item.entry.origin else ""
            raise UsageError(
                f"two entries would write {item.key}, one of them {item.entry.slide}{where}; "
                "name each in the manifest's column 'output'"
            )
    return [_task(item, folder, options, remote) for item in named]


def _named(entry: Entry, targets: tuple[str, ...], panel: Panel, ending: str) -> _Named:
    chosen = entry.targets or targets
    where = entry.origin or entry.slide
    if not chosen:
        raise UsageError(f"no target for {where}; give --target NAME, or a manifest with a column 'target'")
    try:
        label = target_label(tuple(target_labels(chosen, panel).values()), len(panel))
        key = _own_key(entry.output) if entry.output else _key(entry.place, slide_name(_pure(entry)), label, ending)
    except MupdError as error:
        raise UsageError(f"{where}: {error}") from error
    return _Named(entry, chosen, label, key)


def _with_folders(named: list[_Named], ending: str) -> list[_Named]:
    """Outputs whose names meet get their slides' folders, as far as these differ."""
    meeting = _meeting(named)
    if not meeting:
        return named
    top = len(_common_folder({item.entry.slide for item in meeting}))

    def longer(item: _Named) -> _Named:
        path = _pure(item.entry)
        return replace(item, key=_key("/".join(path.parent.parts[top:]), slide_name(path), item.label, ending))

    return [longer(item) if item in meeting else item for item in named]


def _with_suffixes(named: list[_Named], ending: str) -> list[_Named]:
    """Outputs whose names meet get their slides' endings."""
    meeting = _meeting(named)

    def longer(item: _Named) -> _Named:
        place = PurePosixPath(item.key).parent.as_posix()
        return replace(item, key=_key(place, _pure(item.entry).name, item.label, ending))

    return [longer(item) if item in meeting else item for item in named]


def _meeting(named: list[_Named]) -> set[_Named]:
    counts = Counter(item.key for item in named)
    return {item for item in named if counts[item.key] > 1 and not item.entry.output}


def _common_folder(slides: set[str]) -> tuple[str, ...]:
    return Path(os.path.commonpath([_pure(Entry(slide)).parent for slide in slides])).parts


def _pure(entry: Entry) -> Path:
    """A slide's full path; of a URL, what follows its scheme."""
    _, is_url, rest = entry.slide.partition("://")
    return Path("/", rest) if is_url else Path(entry.slide).absolute()


def _key(place: str, stem: str, label: str, ending: str) -> str:
    return str(PurePosixPath(place, f"{stem}.{label}{ending}"))


def _own_key(output: str) -> str:
    key = PurePosixPath(output.replace("\\", "/"))
    if key.is_absolute() or ".." in key.parts or not key.name:
        raise UsageError(f"output {output!r} must be a name below the batch's folder")
    destination(Path(key), None, "", (), 0)  # refuses endings that no format has
    return str(key)


def _task(item: _Named, folder: Path, options: StainOptions, remote: str | None) -> SlideTask:
    own = item.entry
    changed = replace(
        options,
        mpp=own.mpp or options.mpp,
        roi=own.roi or options.roi,
        file_format=None,  # the name tells
    )
    slide = own.slide if is_url(own.slide) else os.path.abspath(own.slide)  # noqa: PTH100  (keeps links)
    url = f"{remote.rstrip('/')}/{item.key}" if remote else None
    return SlideTask(item.key, slide, item.targets, folder / item.key, changed, remote=url)
