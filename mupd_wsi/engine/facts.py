"""What is told of a run: warnings in sentences, and the facts that the output itself and its record state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from mupd_wsi.geometry import Mpp
from mupd_wsi.markers import Marker
from mupd_wsi.normalising import StainProfile
from mupd_wsi.request import IHC_NOTICE, NOTICE, PAINTED_NOTICE, StainOptions, Style
from mupd_wsi.slides import Slide
from mupd_wsi.tissue import StainGuess
from mupd_wsi.writers.omexml import software

if TYPE_CHECKING:
    from mupd_wsi.model import TileStainer

#: Dyes this many times stronger or weaker than the training slide's are told to the user.
MAX_STRENGTH: Final = 2.0
#: A slide may be this much coarser than the model before the user is warned.
MAX_ENLARGEMENT: Final = 1.25
#: A marker whose correlation with the real stain over squares of 8 px is lower is told to the user.
WEAK_PEARSON: Final = 0.35
#: What the channels of standard deviations hold, for the record.
SPREAD_NOTE: Final = (
    "channels named '<marker> SD': standard deviation of the draws, in grey levels of the marker's channel"
)


def slide_warnings(
    guess: StainGuess, own: Mpp, out_mpp: float, tissue_fraction: float, options: StainOptions
) -> list[str]:
    """What is doubtful about a slide.

    Args:
        guess: what it is stained with.
        own: um per level-0 pixel.
        out_mpp: um per output pixel.
        tissue_fraction: of what is to be stained, 0-1.
        options: of the run.
    """
    found = []
    if not guess.is_he:
        found.append(f"{not_he(guess)}: do not trust this stain")
    if own.mean > out_mpp * MAX_ENLARGEMENT:
        found.append(f"the slide's {own.mean:.3g} um/px is coarser than the model's {out_mpp:g}: cells are blurred")
    if tissue_fraction == 0 and options.tissue_mask:
        found.append("no tissue was found and the output is empty: --no-tissue-mask stains everything")
    return found


def relative_strength(own: StainProfile | None, reference: StainProfile | None) -> tuple[float, float] | None:
    """Amounts of haematoxylin and eosin over those of the slide that the model was trained on."""
    if own is None or reference is None:
        return None
    h, e = (a / b for a, b in zip(own.strength, reference.strength, strict=True))
    return round(h, 3), round(e, 3)


def staining_warnings(strength: tuple[float, float] | None, *, recolored: bool) -> list[str]:
    """A sentence about dyes that are much stronger or weaker than where the model was trained.

    Args:
        strength: of haematoxylin and eosin (:func:`relative_strength`); None where it is not known.
        recolored: whether the slide is brought to the training slide's staining.
    """
    if strength is None or all(1 / MAX_STRENGTH <= value <= MAX_STRENGTH for value in strength):
        return []
    what = "it was recoloured to match" if recolored else "it was not recoloured"
    return [
        f"haematoxylin is {strength[0]:.2g} and eosin {strength[1]:.2g} times as strong as on the slide that the model "
        f"was trained on; {what}, and the stain is less certain"
    ]


def weak_markers(measured: Mapping[str, Mapping[str, float]], markers: tuple[Marker, ...]) -> list[str]:
    """A sentence about what the model hardly predicts, with its figures.

    Args:
        measured: by marker, its agreement with the real stain on columns that training did not see.
        markers: that are asked for.
    """
    rows = {marker.name: measured[marker.name] for marker in markers if marker.name in measured}
    weak = [f"{n} {row['pearson_8px']:.2f}" for n, row in rows.items() if row.get("pearson_8px", 1) < WEAK_PEARSON]
    if not weak:
        return []
    return [
        f"weakly predicted, do not read single cells off it: {', '.join(weak)} (correlation with the real stain over "
        "squares of 8 px, about a cell, on the model's test columns)"
    ]


def not_he(guess: StainGuess) -> str:
    """What a slide looks like that is no H&E."""
    return f"this slide does not look like H&E but like {guess.label} ({guess.reason})"


def base_facts(slide: Slide, stainer: TileStainer, options: StainOptions, style: Style) -> dict[str, Any]:
    """How the image is made, as the output itself and the record tell it. No time and no path: runs stay comparable."""
    info, own = stainer.info, slide.mpp
    return {
        "notice": NOTICE,
        "rendering": _rendering(style, painted=info.painted),
        "software": software(),
        "model": {
            "name": info.name,
            "version": info.version,
            "license": info.license,
            "weights_sha256": info.weights_sha256,
            "precision": stainer.precision,
        },
        "readout": options.reads_out,
        "steps": 1 if options.reads_out == "mean" else options.steps or info.steps,
        "seed": options.seed if options.reads_out == "sample" else None,
        "samples": options.samples,
        "fuse": options.fuse or info.fuse,
        "spread": SPREAD_NOTE if options.samples > 1 else None,
        "mpp": info.mpp,
        "slide": {
            "name": slide.path.name,
            "format": slide.format,
            "width": slide.size.width,
            "height": slide.size.height,
            "mpp": {"x": own.x, "y": own.y, "source": own.source},
            "fingerprint": slide.fingerprint(),
        },
        "roi": asdict(options.roi) if options.roi else None,
        "tissue_mask": options.tissue_mask,
    }


def _rendering(style: Style, *, painted: bool) -> str:
    if painted:
        return f"brightfield {PAINTED_NOTICE}"
    return f"IHC {IHC_NOTICE}" if style == "ihc" else "predicted immunofluorescence"
