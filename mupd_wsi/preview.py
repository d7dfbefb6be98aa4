"""The preview picture: H&E and stain side by side, gathered while tiles stream by: the output is never read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mupd_wsi.drawing import PANEL_SIDE, Panel, Sheet, as_png, compose_sheet
from mupd_wsi.geometry import Region, Size
from mupd_wsi.layout import as_picture
from mupd_wsi.record import write_atomically
from mupd_wsi.writers.pyramid import halved
from mupd_wsi.writers.spec import Channel

#: Reads the H&E: region in pixels of the given um/px (anchored at the slide's origin) -> uint8 (h, w, 3).
ReadHE = Callable[[Region, float], NDArray[np.uint8]]

#: The overview of a fluorescence image averages single cells away; each channel may be brightened up to this much.
MAX_OVERVIEW_GAIN: Final = 4.0
#: How places are marked that could not be read: a colour that no stain has, and pixels of the overview.
DAMAGE_COLOR: Final = (255, 0, 200)
DAMAGE_LINE: Final = 2


@dataclass(frozen=True, slots=True)
class PreviewText:
    """The words in the picture.

    Attributes:
        title: the slide's name.
        subtitle: targets, model, read-out.
        slide: caption of the slide's panels.
        stain: caption of the stain's panels.
        channels: of fluorescence, shown in their colours and windows; empty for brightfield.
        warnings: shown in a strip of their own.
        notices: shown at the foot.
        damaged: parts of the slide that could not be read, output pixels; framed and crossed out.
    """

    title: str
    subtitle: str
    slide: str
    stain: str
    channels: tuple[Channel, ...]
    warnings: tuple[str, ...]
    notices: tuple[str, ...]
    damaged: tuple[Region, ...] = ()


@dataclass(frozen=True, slots=True)
class PreviewPart:
    """What one of several collectors has gathered of full-width rows.

    Attributes:
        top: first row, in the overview's own pixels.
        overview: uint8 (samples, h, w), the rows.
        best: score, core (output pixels) and pixels of the core with the most stain; None where no tile came.
    """

    top: int
    overview: NDArray[np.uint8]
    best: tuple[float, Region, NDArray[np.uint8]] | None


class PreviewCollector:
    """Keeps a small picture of the whole output, and the tile with the most stain at full resolution.

    Memory bound: ``samples x (2 x 768)^2`` bytes for the overview at most, and one tile. Taken from one thread.

    Args:
        region: the part of the slide that is stained, output pixels.
        core: pitch of the tile grid, output pixels.
        samples: planes of the image.
        background: grey level where no tile comes.
    """

    def __init__(self, region: Region, core: int, samples: int, background: int) -> None:
        self.region = region
        self.factor = _overview_factor(region.size, core)
        k = self.factor
        self._frame = Region(
            region.x // k, region.y // k, -(-region.right // k) - region.x // k, -(-region.bottom // k) - region.y // k
        )
        shape = (samples, self._frame.height, self._frame.width)
        self._overview = np.full(shape, background, np.uint8)
        self._best: tuple[float, Region, NDArray[np.uint8]] | None = None

    @property
    def overview(self) -> tuple[Region, NDArray[np.uint8]]:
        """Where (pixels ``factor`` times the output's) and uint8 (samples, h, w)."""
        return self._frame, self._overview

    @property
    def detail(self) -> tuple[Region, NDArray[np.uint8]] | None:
        """The core with the most stain (output pixels) and uint8 (samples, h, w); None where no tile came."""
        return None if self._best is None else self._best[1:]

    def add(self, core: Region, pixels: NDArray[np.uint8], positivity: float) -> None:
        """Take a finished core.

        Args:
            core: output pixels; its grid cell starts at a multiple of the grid's pitch.
            pixels: uint8 (samples, h, w).
            positivity: mean brightness of what was stained for, 0-255.
        """
        score = positivity * core.size.area
        if self._best is None or score > self._best[0]:
            self._best = (score, core, pixels.copy("K"))
        k = self.factor
        x, y = core.x // k, core.y // k
        small = _shrunk(pixels, core, k)
        top, left = y - self._frame.y, x - self._frame.x
        self._overview[:, top : top + small.shape[1], left : left + small.shape[2]] = small

    def part(self, rows: Region) -> PreviewPart:
        """What was gathered of some rows, for another collector of the same region.

        Args:
            rows: output pixels; they begin and end on the tile grid, or at the region's edge.
        """
        top, bottom = rows.y // self.factor - self._frame.y, -(-rows.bottom // self.factor) - self._frame.y
        return PreviewPart(top, self._overview[:, top:bottom].copy(), self._best)

    def merge(self, part: PreviewPart) -> None:
        """Take what another collector of the same region has gathered; the order of the parts does not matter."""
        self._overview[:, part.top : part.top + part.overview.shape[1]] = part.overview
        if part.best is not None and (self._best is None or _rank(part.best) > _rank(self._best)):
            self._best = part.best


def save_preview(path: Path, gathered: PreviewCollector, read_he: ReadHE, mpp: float, text: PreviewText) -> None:
    """Draw the picture and write it as PNG, complete or not at all.

    Args:
        path: of the PNG.
        gathered: the stain.
        read_he: of the slide.
        mpp: um per output pixel.
        text: the words in it.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomically(path, as_png(np.asarray(draw_preview(gathered, read_he, mpp, text))))


def draw_preview(gathered: PreviewCollector, read_he: ReadHE, mpp: float, text: PreviewText) -> Image.Image:
    """The picture: an overview pair, and below it a detail pair where the overview does not show cells."""
    frame, overview = gathered.overview
    pitch = mpp * gathered.factor
    window = _within(gathered.region, frame, gathered.factor)
    stain = compose(overview, text.channels, brighten=True)
    he = read_he(frame, pitch)
    for picture in (he, stain):
        _cross_out(picture, text.damaged, frame, gathered.factor)
    rows = [(Panel(text.slide, he, pitch, window), Panel(text.stain, stain, pitch, window))]
    mark = None
    if gathered.detail is not None and max(gathered.region.width, gathered.region.height) > PANEL_SIDE:
        core, pixels = gathered.detail
        mark = _shares(core, gathered.region)
        he_panel = Panel(f"{text.slide}, the framed part", read_he(core, mpp), mpp)
        rows.append((he_panel, Panel(f"{text.stain}, the framed part", compose(pixels, text.channels), mpp)))
    legend = tuple((channel.name, channel.color) for channel in text.channels)
    sheet = Sheet(text.title, text.subtitle, legend, text.warnings, text.notices)
    return compose_sheet(sheet, rows, mark)


def compose(planes: NDArray[np.uint8], channels: tuple[Channel, ...], *, brighten: bool = False) -> NDArray[np.uint8]:
    """Planes as a picture: RGB as it is; fluorescence channels in their colours on black, added up as light.

    Args:
        planes: uint8 (samples, h, w).
        channels: names, colours and windows; empty for RGB.
        brighten: raise each faint channel, so that its 99.5 % quantile nears full brightness: averaged over many pixels
            single cells fade.

    Returns:
        uint8 (h, w, 3).
    """
    if not channels:
        return as_picture(planes).copy()
    dark = np.ones((*planes.shape[1:], 3), np.float32)
    for plane, channel in zip(planes, channels, strict=True):
        start, end = channel.window
        level = np.clip((plane.astype(np.float32) - start) / (end - start), 0, 1)
        if brighten:
            level *= min(MAX_OVERVIEW_GAIN, 1 / max(float(np.quantile(level, 0.995)), 1e-3))
        dark *= 1 - np.clip(level, 0, 1)[..., None] * (np.array(channel.color, np.float32) / 255)
    light: NDArray[np.uint8] = np.rint((1 - dark) * 255).astype(np.uint8)
    return light


def _cross_out(picture: NDArray[np.uint8], damaged: tuple[Region, ...], frame: Region, factor: int) -> None:
    """Frame places (output pixels) in a picture, uint8 (h, w, 3), of a frame (pixels ``factor`` times as large)."""
    for place in damaged:
        left, top = place.x // factor - frame.x, place.y // factor - frame.y
        right, bottom = -(-place.right // factor) - frame.x - 1, -(-place.bottom // factor) - frame.y - 1
        cv2.rectangle(picture, (left, top), (right, bottom), DAMAGE_COLOR, DAMAGE_LINE)
        cv2.line(picture, (left, top), (right, bottom), DAMAGE_COLOR, DAMAGE_LINE)
        cv2.line(picture, (left, bottom), (right, top), DAMAGE_COLOR, DAMAGE_LINE)


def _overview_factor(size: Size, core: int) -> int:
    """Largest power of two that divides the grid's pitch and leaves the overview no smaller than its panel."""
    factor = 1
    while core % (factor * 2) == 0 and max(size.width, size.height) / (factor * 2) >= PANEL_SIDE:
        factor *= 2
    return factor


def _shrunk(pixels: NDArray[np.uint8], core: Region, factor: int) -> NDArray[np.uint8]:
    """Each ``factor`` x ``factor`` block of the absolute grid as the pyramid has it; blocks that the core cuts repeat
    its edge. The factor is a power of two."""
    left, top = core.x % factor, core.y % factor
    right, bottom = -core.right % factor, -core.bottom % factor
    if left or top or right or bottom:
        pixels = np.pad(pixels, ((0, 0), (top, bottom), (left, right)), mode="edge")
    for _ in range(factor.bit_length() - 1):
        pixels = halved(pixels)
    return pixels


def _rank(best: tuple[float, Region, NDArray[np.uint8]]) -> tuple[float, int, int]:
    """The higher score first, and of equal ones the core that comes first in raster order."""
    score, core, _ = best
    return score, -core.y, -core.x


def _within(region: Region, frame: Region, factor: int) -> tuple[float, float, float, float]:
    """The region inside its frame: left, top, right, bottom in the frame's pixels, with fractions."""
    return (
        region.x / factor - frame.x,
        region.y / factor - frame.y,
        region.right / factor - frame.x,
        region.bottom / factor - frame.y,
    )


def _shares(part: Region, whole: Region) -> tuple[float, float, float, float]:
    """Where a part lies, as shares of the whole: x, y, width, height."""
    return (
        (part.x - whole.x) / whole.width,
        (part.y - whole.y) / whole.height,
        part.width / whole.width,
        part.height / whole.height,
    )
