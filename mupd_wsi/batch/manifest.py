"""A list of slides as CSV: columns slide, target, mpp, roi, output; all but the first may be absent or empty."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mupd_wsi.batch.remote import is_url
from mupd_wsi.errors import MupdError, UsageError
from mupd_wsi.geometry import Mpp, Region, parse_region

COLUMNS: Final = ("slide", "target", "mpp", "roi", "output")
#: More bad rows than this are counted.
MAX_NAMED_ROWS: Final = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """A slide as it was listed.

    Attributes:
        slide: path or URL.
        place: folder below the batch's folder that its output goes to, with forward slashes; empty for the top.
        targets: instead of the batch's own; empty takes those.
        mpp: um per level-0 pixel; None takes the batch's, else the file's.
        roi: level-0 pixels; None for the whole slide.
        output: name below the batch's folder; None for the default.
        origin: where it was listed, for messages; empty for the command line.
    """

    slide: str
    place: str = ""
    targets: tuple[str, ...] = ()
    mpp: float | None = None
    roi: Region | None = None
    output: str | None = None
    origin: str = ""


def read_manifest(path: Path) -> list[Entry]:
    """Read a list of slides. Relative slide paths are taken from the list's own folder.

    Raises:
        UsageError: not readable as CSV, no column "slide", an unknown column, or bad rows, which are named by line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"manifest {path} cannot be read as UTF-8 text: {error}") from error
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True, strict=True)
    entries, bad = [], []
    try:
        _check_columns(path, reader.fieldnames or ())
        for row in reader:
            if any((value or "").strip() for value in row.values() if not isinstance(value, list)):
                try:
                    entries.append(_entry(path, reader.line_num, row))
                except MupdError as error:
                    bad.append(f"line {reader.line_num}: {error}")
    except csv.Error as error:
        raise UsageError(f"manifest {path} line {reader.reader.line_num}: {error}; write it as CSV") from error
    if bad:
        more = f"; and {len(bad) - MAX_NAMED_ROWS} more" if len(bad) > MAX_NAMED_ROWS else ""
        raise UsageError(f"manifest {path} has {len(bad)} bad row(s): {'; '.join(bad[:MAX_NAMED_ROWS])}{more}")
    return entries


def _check_columns(path: Path, names: Sequence[str]) -> None:
    found = [name.strip().lower() for name in names]
    unknown = [name for name in found if name not in COLUMNS]
    if "slide" not in found or unknown or len(set(found)) < len(found):
        raise UsageError(
            f"manifest {path} line 1: expected the columns slide and any of {', '.join(COLUMNS[1:])}, "
            f"got {', '.join(found) or 'nothing'}"
        )


def _entry(path: Path, line: int, row: Mapping[str | None, str | list[str] | None]) -> Entry:
    cells: dict[str, str] = {}
    for name, value in row.items():
        if name is None or isinstance(value, list):
            raise UsageError("more cells than columns; quote a cell that holds commas")
        cells[name.strip().lower()] = (value or "").strip()
    if not cells["slide"]:
        raise UsageError("no slide")
    slide = cells["slide"]
    if not is_url(slide):
        slide = str(path.parent / slide)
    return Entry(
        slide=slide,
        targets=tuple(name for name in [cells.get("target", "")] if name),
        mpp=_mpp(cells.get("mpp", "")),
        roi=parse_region(cells["roi"]) if cells.get("roi") else None,
        output=cells.get("output") or None,
        origin=f"{path} line {line}",
    )


def _mpp(text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"mpp {text!r} is no number") from None
    return Mpp(value, value, "the manifest").x
