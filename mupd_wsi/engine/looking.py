"""What a run wants to know of a slide before it starts: where its tissue is, its stain, and how strong that is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from mupd_wsi.geometry import Region, Size, output_size
from mupd_wsi.normalising import StainProfile, stain_profile
from mupd_wsi.slides import Slide
from mupd_wsi.tissue import StainGuess, TissueMask, glass_color, stain_guess

#: Longer side of the thumbnail that tissue and stain are judged from, px.
THUMBNAIL_SIDE: Final = 2048
#: The staining is measured on this many squares of tissue, spread evenly over the slide.
PROBES: Final = 24
PROBE_SIDE: Final = 256
#: A square is taken where at least this share of it is tissue, or, on slides of scattered tissue, where the most is.
PROBE_TISSUE: Final = 0.8


@dataclass(frozen=True, slots=True)
class SlideLook:
    """How a slide looks.

    Attributes:
        tissue: where its tissue is.
        guess: what it is stained with.
        staining: its haematoxylin and eosin; None where they cannot be told, or where it is not H&E.
    """

    tissue: TissueMask
    guess: StainGuess
    staining: StainProfile | None


def look_at(slide: Slide, mpp: float) -> SlideLook:
    """Judge the whole slide, whatever part is to be stained: a part then comes out like the same part of the whole.

    The thumbnail is read at a pitch in um, so that its pixels are square on slides whose own are not.

    Args:
        slide: open.
        mpp: um per output pixel; the staining is measured at this resolution, where nuclei can be seen.
    """
    own = slide.mpp
    pitch = max(mpp, slide.size.width * own.x / THUMBNAIL_SIDE, slide.size.height * own.y / THUMBNAIL_SIDE)
    size = output_size(slide.size, own, pitch)
    thumbnail = slide.read(Region(0, 0, size.width, size.height), pitch)
    with ThreadPoolExecutor(1, "mupd-look") as beside:
        guessed = beside.submit(stain_guess, thumbnail)
        tissue = TissueMask.from_thumbnail(thumbnail, pitch)
        guess = guessed.result()
    probes = probe_places(tissue, output_size(slide.size, own, mpp), mpp) if guess.is_he else ()
    if not probes:
        return SlideLook(tissue, guess, None)
    if pitch == mpp:  # a small slide: its thumbnail shows the same pixels
        squares = [thumbnail[place.y : place.bottom, place.x : place.right] for place in probes]
    else:
        squares = [slide.read(place, mpp) for place in probes]
    pixels = np.concatenate([square.reshape(-1, 3) for square in squares])
    return SlideLook(tissue, guess, stain_profile(pixels, glass_color(thumbnail)))


def probe_places(tissue: TissueMask, image: Size, mpp: float) -> tuple[Region, ...]:
    """Squares of tissue spread over the slide, output pixels; none where there is no tissue."""
    columns, rows = ([*range(0, side, PROBE_SIDE), side] for side in (image.width, image.height))
    shares = tissue.fractions(columns, rows, mpp)
    full = np.argwhere(shares >= min(PROBE_TISSUE, float(shares.max())) if shares.max() > 0 else shares > 0)
    spread = np.unique(np.linspace(0, len(full) - 1, min(PROBES, len(full))).round().astype(int))
    return tuple(
        Region(columns[column], rows[row], columns[column + 1] - columns[column], rows[row + 1] - rows[row])
        for row, column in full[spread].tolist()
    )
