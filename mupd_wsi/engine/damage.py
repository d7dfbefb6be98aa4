"""What a run tells of the parts of its slide that could not be read, and remembers of them when it is stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.journal import Journal
from mupd_wsi.errors import RegionError
from mupd_wsi.geometry import Region
from mupd_wsi.slides import Slide
from mupd_wsi.slides.damage import DamagedTile

#: Named in a record; the rest is counted.
MAX_LISTED: Final = 100


def told(job: StainJob) -> StainJob:
    """The job with what was found to be damaged among its warnings and its facts."""
    found = job.slide.damaged
    warnings = tuple(_sentences(found))
    facts = dict(job.facts) | {"warnings": [*job.facts["warnings"], *warnings], "damaged_tiles": _facts(found)}
    return replace(job, warnings=(*job.warnings, *warnings), facts=facts)


def remember(journal: Journal, found: Iterable[DamagedTile], known: set[tuple[int, int, int]]) -> None:
    """Note in a journal what is not ``known`` yet (level, row, column; grows)."""
    for tile in found:
        place = (tile.level, tile.row, tile.column)
        if place not in known:
            journal.note(json.dumps({"damaged": place, "region": tile.region}).encode())
            known.add(place)


def settle_damage(journal: Journal, slide: Slide) -> set[tuple[int, int, int]]:
    """Look again at what an earlier run could not read: where it can be read now, all that was made of it is left out.

    Returns:
        The places (level, row, column) that still cannot be read.
    """
    noted = [note for note in map(json.loads, journal.notes) if "damaged" in note]
    for note in noted:
        look_again(slide, note["damaged"][0], Region(*note["region"]))
    damaged = {(tile.level, tile.row, tile.column) for tile in slide.damaged}
    before: set[tuple[int, int, int]] = {(note["damaged"][0], note["damaged"][1], note["damaged"][2]) for note in noted}
    if not before <= damaged:
        journal.forget_damaged()
    return before & damaged


def look_again(slide: Slide, level: int, region: Region) -> None:
    """Read where another process, or an earlier one, met a damaged tile: what is damaged still is then known here too.

    Args:
        slide: open, and forgiving.
        level: of the tile.
        region: of the tile, level-0 pixels.
    """
    try:
        down = slide.levels[level].downsample
        slide.read_level(level, Region(round(region.x / down), round(region.y / down), 1, 1))
    except (IndexError, RegionError):  # another slide's, after all
        return


def _sentences(found: Sequence[DamagedTile]) -> Iterable[str]:
    lost, mended = ([tile for tile in found if tile.is_lost is kind] for kind in (True, False))
    if lost:
        yield f"{len(lost)} damaged tile(s) of the slide were left as background, the first: {lost[0].reason}"
    if mended:
        yield (
            f"{len(mended)} damaged tile(s) of the slide's smaller levels were computed from the larger level, "
            f"the first: {mended[0].reason}"
        )


def _facts(found: Sequence[DamagedTile]) -> dict[str, Any]:
    lost = sum(tile.is_lost for tile in found)
    return {
        "left_as_background": lost,
        "computed_from_finer_level": len(found) - lost,
        "tiles": [
            {"level": tile.level, "row": tile.row, "column": tile.column, "region": list(tile.region)}
            for tile in found[:MAX_LISTED]
        ],
    }
