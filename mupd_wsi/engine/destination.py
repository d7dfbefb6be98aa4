"""Where an output goes, and whether it may go there. Everything is checked before anything is written."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mupd_wsi.errors import OutputError, UsageError
from mupd_wsi.request import FileFormat
from mupd_wsi.writers.staging import work_folder

#: Endings by format; the first of each is the default.
ENDINGS: Final[dict[FileFormat, tuple[str, ...]]] = {
    "ome-tiff": (".ome.tiff", ".ome.tif", ".tiff", ".tif"),
    "ome-zarr": (".ome.zarr", ".zarr"),
}
#: More target names than this in a file name are counted instead.
MAX_NAMED_TARGETS: Final = 3
#: Name of a mark in the work folder.
PUBLISHING: Final = "publishing"


@dataclass(frozen=True, slots=True)
class Destination:
    """The three things that a run leaves behind, and where its work is kept until they are there.

    Attributes:
        output: the stained slide; a folder for OME-Zarr.
        file_format: of the output.
    """

    output: Path
    file_format: FileFormat

    @property
    def preview(self) -> Path:
        """``<output without its ending>.preview.png``, beside the output."""
        name = self.output.name
        ending = next((e for e in ENDINGS[self.file_format] if name.lower().endswith(e)), "")
        return self.output.with_name(f"{name[: len(name) - len(ending)]}.preview.png")

    @property
    def record(self) -> Path:
        """``<output>.json``, beside the output."""
        return self.output.with_name(f"{self.output.name}.json")

    @property
    def work(self) -> Path:
        """Folder beside the output that keeps finished work until the output is there."""
        return work_folder(self.output)

    @property
    def publishing(self) -> Path:
        """Is there while the three are given their names: what then lies at the output may be replaced."""
        return self.work / PUBLISHING


def destination(
    output: Path | None, file_format: FileFormat | None, slide_name: str, labels: Sequence[str], panel_size: int
) -> Destination:
    """Settle name and format of an output.

    Args:
        output: what the user gave: a name, an existing folder to put the default name in, or None for the default name
            in the current folder.
        file_format: what the user gave; None: by the name's ending, else OME-TIFF.
        slide_name: stem of the slide's file name.
        labels: targets as the user spelled them, one each.
        panel_size: number of markers the model has: that many targets are called "all".

    Raises:
        UsageError: the name's ending is of no known format, or not of the one asked for.
    """
    if output is not None and (_format_of(output) is not None or not output.is_dir()):
        return Destination(output, _settled_format(output, file_format))
    chosen = file_format or "ome-tiff"
    name = f"{slide_name}.{target_label(labels, panel_size)}{ENDINGS[chosen][0]}"
    return Destination((output or Path()) / name, chosen)


def target_label(labels: Sequence[str], panel_size: int) -> str:
    """The targets in a file name: ``CD8``, ``CD8+CD3e``, ``4-markers`` or ``all``."""
    if len(labels) == panel_size > 1:
        return "all"
    if len(labels) > MAX_NAMED_TARGETS:
        return f"{len(labels)}-markers"
    return "+".join(_file_safe(label) for label in labels)


def check_destination(place: Destination, slide_path: Path, *, overwrite: bool) -> None:
    """Whether a run may write there.

    Raises:
        OutputError: the folder is missing or not writable, something is there already, or it is the slide itself.
    """
    folder = place.output.parent
    if not folder.is_dir():
        raise OutputError(f"output folder {folder} does not exist; create it, or choose another with -o")
    slide = slide_path.resolve()
    for path in (place.output, place.preview, place.record):
        if _is_part_of(path, slide):
            raise OutputError(f"output {path} would overwrite the slide itself; choose another name with -o")
    if place.output.exists() or place.output.is_symlink():
        if not overwrite and not place.publishing.exists():
            raise OutputError(f"{place.output} exists; give --overwrite to replace it, or another name with -o")
        if place.output.is_dir() != (place.file_format == "ome-zarr"):
            raise OutputError(f"{place.output} exists and is not {place.file_format}; choose another name with -o")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"output folder {folder} is not writable ({error.strerror}); choose another with -o"
        ) from error


def check_free_disk(place: Destination, needed: int) -> None:
    """Whether the estimate fits, beside what an interrupted run has left, which counts as part of it.

    Args:
        place: of the output.
        needed: bytes, temporary files included.

    Raises:
        OutputError: it does not.
    """
    folder = place.output.parent
    needed -= sum(part.stat().st_size for part in place.work.glob("*") if part.is_file())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"not enough free disk in {folder}: about {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free; "
            "free some space, or choose another folder with -o"
        )


def _settled_format(output: Path, file_format: FileFormat | None) -> FileFormat:
    by_name = _format_of(output)
    if by_name is None:
        raise UsageError(f"output name {output.name!r} has no known ending; end it in .ome.tiff or .ome.zarr")
    if file_format is not None and file_format != by_name:
        ending = ENDINGS[file_format][0]
        raise UsageError(f"output name {output.name!r} does not fit --format {file_format}; end it in {ending}")
    return by_name


def _format_of(path: Path) -> FileFormat | None:
    name = path.name.lower()
    return next((f for f, endings in ENDINGS.items() if name.endswith(endings)), None)


def _file_safe(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label.strip()).strip("-.") or "target"


def _is_part_of(path: Path, slide: Path) -> bool:
    """Whether a path is the slide (resolved), by whatever name or link, or lies inside the folder that the slide is."""
    target = path.resolve()
    if target == slide or slide in target.parents:
        return True
    return path.exists() and slide.exists() and path.samefile(slide)
