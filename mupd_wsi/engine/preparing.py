"""From a request to a checked job: everything that can be refused is refused here, before anything is written."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.engine.destination import check_destination, check_free_disk, destination
from mupd_wsi.engine.facts import (
    base_facts,
    not_he,
    relative_strength,
    slide_warnings,
    staining_warnings,
    weak_markers,
)
from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.journal import journal_bytes
from mupd_wsi.engine.looking import look_at
from mupd_wsi.errors import NotHEError, RegionError, UnknownTargetError, UsageError
from mupd_wsi.geometry import Mpp, Region, Size, output_size
from mupd_wsi.markers import NUCLEAR_MARKER, Marker, Panel, canonical
from mupd_wsi.model.protocol import as_stepwise, tile_and_halo
from mupd_wsi.normalising import StainProfile, StainTransfer
from mupd_wsi.request import Fuse, SampleOptions, StainOptions, Style
from mupd_wsi.slides import Slide
from mupd_wsi.tiling import TileGrid
from mupd_wsi.writers import estimated_bytes
from mupd_wsi.writers.spec import Channel, ImageSpec

if TYPE_CHECKING:
    from mupd_wsi.model import TileStainer
    from mupd_wsi.model.protocol import Card

MAX_READERS: Final = 4
#: Which of the model's measured tables holds for a read-out.
MEASURED: Final = {"mean": "dev", "sample": "dev_sample"}
#: Grey levels of a standard deviation that viewers should show as black and as full colour.
SPREAD_WINDOW: Final = (0, 96)
#: Grid positions that differ by less than this many pixels are the same.
ROUNDING: Final = 1e-6


def prepare_job(
    slide: Slide, stainer: TileStainer, targets: str | Sequence[str], output: Path | None, options: StainOptions
) -> StainJob:
    """Check a request against the slide, the model and the disk.

    Args:
        slide: open.
        stainer: the model.
        targets: names in any spelling, commas allowed, or ``"all"``.
        output: a file name, an existing folder, or None for the default name in the current folder.
        options: the rest.

    Raises:
        UsageError: unknown target or ending, or a style that cannot hold the targets.
        PixelSizeError: the slide's um/px is missing or absurd.
        RegionError: the ROI is not inside the slide.
        NotHEError: the slide does not look like H&E, and ``strict`` was asked for.
        OutputError: the output cannot be written there.
    """
    info = stainer.info
    labels = target_labels(targets, info.panel)
    style = choose_style(options.style or ("mif" if options.samples > 1 else None), len(labels), info)
    readout = options.reads_out
    fuse, rings = settled_fuse(stainer, options)
    channels = tuple(labels) if info.painted else channels_to_ask(style, tuple(labels), info.panel)
    region = output_region(options.roi, slide.size, slide.mpp, info.mpp)
    place = destination(output, options.file_format, slide.name, tuple(labels.values()), len(info.panel))
    check_destination(place, slide.path, overwrite=options.overwrite)
    look = look_at(slide, info.mpp)
    if options.strict and not look.guess.is_he:
        raise NotHEError(f"{not_he(look.guess)}; without --strict it is stained all the same")
    fraction = look.tissue.fraction(region, info.mpp)
    recolor = _recolor(look.staining, info.stain_reference, options)
    strength = relative_strength(look.staining, info.stain_reference)
    markers = tuple(info.panel.markers[i] for i in labels)
    warnings = (
        *slide_warnings(look.guess, slide.mpp, info.mpp, fraction, options),
        *staining_warnings(strength, recolored=recolor is not None),
        *weak_markers(info.metrics.get(MEASURED[readout], {}), markers),
    )
    windows = tuple(info.display_window[readout][c] for c in channels)
    facts = base_facts(slide, stainer, options, style) | {
        "targets": [info.panel.names[i] for i in labels],
        "display_window": {info.panel.names[c]: list(shown) for c, shown in zip(channels, windows, strict=True)},
        "output_region": asdict(region),
        "slide_looks_like": asdict(look.guess),
        "staining": {
            "profile": asdict(look.staining) if look.staining else None,
            "strength_over_training": strength,
            "normalised": recolor is not None,
        },
        "tissue_fraction": round(fraction, 6),
        "warnings": list(warnings),
    }
    described = () if style == "ihc" else tuple(map(_channel, markers, windows))
    kept = _rendered_windows(style, windows * 3 if info.painted else windows)
    if options.samples > 1:
        described += tuple(map(spread_channel, markers))
        kept = np.concatenate([kept, kept])
    spec = _image_spec(slide.name, markers, described, region, info.mpp, facts)
    covered = fraction if options.tissue_mask else 1.0
    check_free_disk(place, estimated_bytes(spec, covered, place.file_format) + journal_bytes(spec, covered))
    return StainJob(
        slide=slide,
        stainer=stainer,
        sampling=_sampling(options),
        samples=options.samples,
        style=style,
        markers=markers,
        channels=channels,
        scored=tuple(range(3)) if info.painted else _scored(channels, info.panel),
        windows=kept,
        grid=_grid(output_size(slide.size, slide.mpp, info.mpp), region, info, options),
        recolor=recolor,
        tissue=look.tissue,
        tissue_fraction=fraction,
        looks_like_he=look.guess.is_he,
        masked=options.tissue_mask,
        fuse=fuse,
        rings=rings,
        place=place,
        spec=spec,
        workers=options.workers or min(MAX_READERS, os.cpu_count() or 1),
        warnings=warnings,
        facts=facts,
    )


def target_labels(targets: str | Sequence[str], panel: Panel) -> dict[int, str]:
    """The channels asked for, in order, each with the user's own spelling of it.

    Args:
        targets: one string or several, each with one or more names between commas; ``"all"`` means every marker.
        panel: of the model.

    Raises:
        UnknownTargetError: a name is unknown, or none was given.
    """
    given = [targets] if isinstance(targets, str) else list(targets)
    labels: dict[int, str] = {}
    for spelled in (name.strip() for text in given for name in text.split(",") if name.strip()):
        chosen = panel.select([spelled])
        for index in chosen:
            own = spelled if len(chosen) == 1 and spelled.isascii() else panel.names[index]
            labels.setdefault(index, own)
    if not labels:
        raise UnknownTargetError(f"no target given; this model has: {', '.join(panel.names)}")
    return labels


def choose_style(style: Style | None, targets: int, info: Card) -> Style:
    """Brightfield for one target, fluorescence for several, unless the user says otherwise.

    Raises:
        UsageError: several targets as one brightfield image, or fluorescence of a model that paints brightfield.
    """
    if info.painted and (style == "mif" or targets > 1):
        raise UsageError(f"{info.name} paints brightfield pictures: give one --target, without --as mif")
    if style == "ihc" and targets > 1:
        raise UsageError(
            f"--as ihc paints one target, got {targets}; give one --target, or use --as mif for one channel a target"
        )
    return style or ("ihc" if targets == 1 else "mif")


def settled_fuse(stainer: TileStainer, options: StainOptions) -> tuple[Fuse, int]:
    """How overlaps are joined, and how many rings of tiles around its own a place then depends on.

    Raises:
        UsageError: the model cannot be drawn from, or cannot be asked step by step.
    """
    if options.reads_out not in stainer.info.display_window:
        raise UsageError(f"{stainer.info.name} cannot be drawn from; leave out --readout, --steps and --samples")
    fuse = options.fuse or stainer.info.fuse
    if fuse == "joint":
        stepwise = as_stepwise(stainer)
        if stepwise is None:
            raise UsageError(
                f"--fuse joint asks a model step by step, and {stainer.info.name} cannot be; use --fuse blend or crop"
            )
        return fuse, len(stepwise.times(_sampling(options))) - 1
    return fuse, 1 if fuse == "blend" else 0


def channels_to_ask(style: Style, targets: tuple[int, ...], panel: Panel) -> tuple[int, ...]:
    """Channels of the panel that the network is asked for: brightfield needs the nuclei, first.

    Raises:
        UsageError: brightfield from a model without a nuclear channel.
    """
    if style == "mif":
        return targets
    try:
        nuclei = panel.index(NUCLEAR_MARKER)
    except UnknownTargetError as error:
        raise UsageError(f"this model has no {NUCLEAR_MARKER} channel to paint nuclei from; use --as mif") from error
    return tuple(dict.fromkeys((nuclei, *targets)))


def output_region(roi: Region | None, slide_size: Size, slide_mpp: Mpp, out_mpp: float) -> Region:
    """The output pixels that a part of the slide touches.

    Args:
        roi: level-0 pixels; None: the whole slide.
        slide_size: level-0 pixels.
        slide_mpp: um per level-0 pixel.
        out_mpp: um per output pixel.

    Returns:
        Output pixels of the whole slide's grid.

    Raises:
        RegionError: the ROI is not inside the slide.
    """
    image = output_size(slide_size, slide_mpp, out_mpp)
    if roi is None:
        return Region(0, 0, image.width, image.height)
    if not Region(0, 0, slide_size.width, slide_size.height).contains(roi):
        raise RegionError(
            f"ROI {roi} is not inside the slide of {slide_size}; give --roi X,Y,W,H in level-0 pixels within it"
        )
    x, right = _covering(roi.x, roi.right, out_mpp / slide_mpp.x, image.width)
    y, bottom = _covering(roi.y, roi.bottom, out_mpp / slide_mpp.y, image.height)
    return Region(x, y, right - x, bottom - y)


def _covering(start: int, stop: int, scale: float, size: int) -> tuple[int, int]:
    first = min(math.floor(start / scale + ROUNDING), size - 1)
    return first, max(first + 1, min(math.ceil(stop / scale - ROUNDING), size))


def _recolor(own: StainProfile | None, reference: StainProfile | None, options: StainOptions) -> StainTransfer | None:
    """How the slide's staining is brought to the one that the model was trained on; None leaves it as it is."""
    if own is None or reference is None or not options.normalise:
        return None
    return StainTransfer(own, reference)


def _scored(channels: tuple[int, ...], panel: Panel) -> tuple[int, ...]:
    """Places among the asked channels that are stained for: the nuclei count where nothing else was asked for."""
    nuclear = canonical(NUCLEAR_MARKER)
    others = tuple(place for place, c in enumerate(channels) if canonical(panel.names[c]) != nuclear)
    return others or tuple(range(len(channels)))


def _grid(size: Size, region: Region, info: Card, options: StainOptions) -> TileGrid:
    return TileGrid(size, region, *tile_and_halo(info, _sampling(options)))


def _sampling(options: StainOptions) -> SampleOptions:
    return SampleOptions(options.reads_out, options.steps, options.seed)


def _rendered_windows(style: Style, windows: tuple[tuple[float, float], ...]) -> NDArray[np.float32]:
    """Which intensities become grey levels 0 and 255.

    Fluorescence keeps all there is, from 0 on, and leaves the lower end of the display window to the viewer.
    Brightfield is a picture already: what lies below the window stays unstained. Its counterstain, first, keeps all.
    """
    kept = np.array(windows, np.float32)
    kept[: 1 if style == "ihc" else None, 0] = 0
    return kept


def _channel(marker: Marker, window: tuple[float, float]) -> Channel:
    """A fluorescence channel whose grey level 255 is the upper end of its display window."""
    low, high = window
    return Channel(marker.name, marker.color, (round(255 * low / high), 255))


def spread_channel(marker: Marker) -> Channel:
    """The standard deviation of several draws, in the grey levels of the marker's own channel: 10 there is 10 here."""
    return Channel(f"{marker.name} SD", marker.color, SPREAD_WINDOW)


def _image_spec(
    slide_name: str,
    markers: tuple[Marker, ...],
    channels: tuple[Channel, ...],
    region: Region,
    mpp: float,
    facts: dict[str, Any],
) -> ImageSpec:
    return ImageSpec(
        name=f"{slide_name} {'+'.join(marker.name for marker in markers)} (virtual)",
        size=region.size,
        mpp=mpp,
        channels=channels,
        origin_um=(region.x * mpp, region.y * mpp),
        provenance=facts,
    )
