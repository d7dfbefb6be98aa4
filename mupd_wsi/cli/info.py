"""``mupd-wsi info``: what a slide file holds, before anything is done with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mupd_wsi.cli.console import Console, json_option, verbose_option
from mupd_wsi.errors import PixelSizeError

if TYPE_CHECKING:
    from mupd_wsi.slides import Slide

#: Longer side of the thumbnail that the stain is guessed from, px.
THUMBNAIL_SIDE: Final = 1024


@click.command()
@click.argument("slide", type=click.Path(path_type=Path))
@json_option
@verbose_option
@click.pass_obj
def info(console: Console, slide: Path) -> None:
    """Show format, size, levels, um/px and its source, magnification, and a guess of the stain.

    \b
    Example:
      mupd-wsi info slide.svs
    """
    from mupd_wsi.slides import open_slide

    with open_slide(slide) as opened:
        values = describe(opened)
    console.result(_as_text(values), values)


def describe(slide: Slide) -> dict[str, Any]:
    """All that ``info`` tells, as JSON values. A missing or absurd pixel size is told, not raised."""
    from mupd_wsi.tissue import stain_guess

    guess = stain_guess(slide.thumbnail(THUMBNAIL_SIDE))
    mpp, problem = _pixel_size(slide)
    return {
        "path": str(slide.path),
        "name": slide.name,
        "format": slide.format,
        "backend": slide.backend,
        "width": slide.size.width,
        "height": slide.size.height,
        "mpp": mpp,
        "mpp_problem": problem,
        "magnification": slide.magnification,
        "levels": [
            {
                "width": level.size.width,
                "height": level.size.height,
                "downsample": level.downsample,
                "um_per_px": None if mpp is None else (mpp["x"] + mpp["y"]) / 2 * level.downsample,
            }
            for level in slide.levels
        ],
        "stain": {"label": guess.label, "confidence": round(guess.confidence, 3), "reason": guess.reason},
    }


def _pixel_size(slide: Slide) -> tuple[dict[str, Any] | None, str | None]:
    try:
        mpp = slide.mpp
    except PixelSizeError as error:
        return None, str(error)
    return {"x": mpp.x, "y": mpp.y, "source": mpp.source}, None


def _as_text(values: dict[str, Any]) -> str:
    mpp, stain = values["mpp"], values["stain"]
    magnification = "not stated" if values["magnification"] is None else f"{values['magnification']:g}x"
    pixel_size = f"{mpp['x']:.4g} x {mpp['y']:.4g} (from {mpp['source']})" if mpp else f"none: {values['mpp_problem']}"
    lines = [
        f"slide          {values['path']}",
        f"format         {values['format']} (read by {values['backend']})",
        f"size           {values['width']} x {values['height']} px",
        f"um/px          {pixel_size}",
        f"magnification  {magnification}",
        f"stain          {stain['label']} (confidence {stain['confidence']:.2f}: {stain['reason']})",
        "levels",
    ]
    for number, level in enumerate(values["levels"]):
        size = f"{level['width']:>7} x {level['height']:<7}"
        pitch = "" if level["um_per_px"] is None else f"  {level['um_per_px']:.4g} um/px"
        lines.append(f"  {number:>2}  {size}  downsample {level['downsample']:<7.5g}{pitch}".rstrip())
    return "\n".join(lines)
