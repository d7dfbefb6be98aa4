"""The checks that every format has to pass."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np

from mupd_wsi.errors import PixelSizeError
from mupd_wsi.geometry import Mpp, Region, Size
from mupd_wsi.validation.findings import Finding
from mupd_wsi.validation.image import ImageFacts, OutputImage
from mupd_wsi.writers.pyramid import TILE, halved

NOTICE_WORDS: Final = "research use only"
SAMPLED_PLACES: Final = 12  # tiles of each level that are compared with the level above
LOSSY_TOLERANCE: Final = 4.0  # mean grey levels: JPEG at quality 90 differs by below 2 on stained tissue
LOSSLESS_TOLERANCE: Final = 0.01
MPP_TOLERANCE: Final = 1e-3
MAX_BROKEN_SHOWN: Final = 5


def check_all(image: OutputImage) -> Iterator[Finding]:
    """Everything there is to find, cheap checks first."""
    facts = image.facts
    yield from _size(facts)
    yield from _pixel_size(facts)
    yield from _channels(facts)
    yield from _words(facts)
    for code, message in image.format_problems():
        yield Finding("error", code, message)
    broken = list(image.broken_tiles())
    for message in broken[:MAX_BROKEN_SHOWN]:
        yield Finding("error", "broken-tile", message)
    if len(broken) > MAX_BROKEN_SHOWN:
        yield Finding("error", "broken-tile", f"{len(broken) - MAX_BROKEN_SHOWN} further tiles cannot be decoded")
    if not broken:
        yield from _pyramid(image)


def _size(facts: ImageFacts) -> Iterator[Finding]:
    stored = facts.levels[0]
    if stored != facts.stated_size:
        yield Finding("error", "size", f"the metadata says {facts.stated_size}, the pixels are {stored}")
    if facts.samples != facts.stated_samples:
        message = f"the metadata names {facts.stated_samples} channels, {facts.samples} are stored"
        yield Finding("error", "channel-count", message)
    for level, (finer, coarser) in enumerate(pairwise(facts.levels), start=1):
        if not (_is_half(finer.width, coarser.width) and _is_half(finer.height, coarser.height)):
            yield Finding("error", "levels", f"level {level} is {coarser}, not half of the level above ({finer})")
    if max(facts.levels[-1].width, facts.levels[-1].height) > 4 * TILE:
        yield Finding("warning", "levels", f"the smallest level is still {facts.levels[-1]}: overviews will be slow")


def _is_half(fine: int, coarse: int) -> bool:
    return coarse in (fine // 2, (fine + 1) // 2)


def _pixel_size(facts: ImageFacts) -> Iterator[Finding]:
    if facts.mpp is None:
        yield Finding("error", "no-um-px", "the metadata states no um/px")
        return
    try:
        Mpp(*facts.mpp, "metadata")
    except PixelSizeError as error:
        yield Finding("error", "absurd-um-px", str(error))
    if facts.other_mpp is not None and not np.allclose(facts.mpp, facts.other_mpp, rtol=MPP_TOLERANCE):
        message = f"the metadata says {_shown(facts.mpp)} um/px, the TIFF tags say {_shown(facts.other_mpp)}"
        yield Finding("error", "um-px-differs", message)


def _shown(mpp: tuple[float, float]) -> str:
    return f"{mpp[0]:g} x {mpp[1]:g}"


def _channels(facts: ImageFacts) -> Iterator[Finding]:
    if facts.is_rgb:
        return
    for index, name in enumerate(facts.channel_names):
        if not name.strip():
            yield Finding("error", "no-name", f"channel {index} has no name")
    for index, colored in enumerate(facts.channel_colors):
        if not colored:
            yield Finding("warning", "no-color", f"channel {index} has no colour: viewers will choose one")
    if len(set(facts.channel_names)) < len(facts.channel_names):
        yield Finding("error", "same-name", "two channels have the same name")


def _words(facts: ImageFacts) -> Iterator[Finding]:
    if NOTICE_WORDS not in facts.notice:
        yield Finding("error", "no-notice", f"nothing in the file says {NOTICE_WORDS!r}: do not pass it on as it is")
    if not facts.has_provenance:
        yield Finding("error", "no-provenance", "nothing in the file tells which model made it")


def _pyramid(image: OutputImage) -> Iterator[Finding]:
    """Compare places of each level with the same places of the level above."""
    facts = image.facts
    tolerance = LOSSLESS_TOLERANCE if facts.lossless else LOSSY_TOLERANCE
    for level in range(1, len(facts.levels)):
        for place in _places(facts.levels[level], facts.levels[level - 1]):
            above = Region(2 * place.x, 2 * place.y, 2 * place.width, 2 * place.height)
            expected = halved(image.read(level - 1, above))
            difference = float(np.abs(image.read(level, place).astype(np.int16) - expected).mean())
            if difference > tolerance:
                message = f"level {level} differs from the level above at {place} by {difference:.1f} grey levels"
                yield Finding("error", "pyramid", message)
                break


def _places(coarse: Size, fine: Size) -> Iterator[Region]:
    """Some places of a level, evenly spread, that the level above holds wholly."""
    width, height = min(coarse.width, fine.width // 2), min(coarse.height, fine.height // 2)
    if width < 1 or height < 1:
        return
    across = np.linspace(0, max(0, width - TILE), 4).astype(int).tolist()
    down = np.linspace(0, max(0, height - TILE), SAMPLED_PLACES // 4).astype(int).tolist()
    for y in dict.fromkeys(down):
        for x in dict.fromkeys(across):
            yield Region(x, y, min(TILE, width - x), min(TILE, height - y))
