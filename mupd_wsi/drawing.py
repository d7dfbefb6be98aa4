"""A sheet of captioned picture pairs with scale bars, drawn with Pillow and its built-in font."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

SHEET_WIDTH: Final = 1600
MARGIN: Final = 24
GAP: Final = 16
#: Side of the square that each picture is fitted into, px.
PANEL_SIDE: Final = (SHEET_WIDTH - 2 * MARGIN - GAP) // 2
#: Small pictures are enlarged up to this much.
MAX_ENLARGEMENT: Final = 3.0
#: Strips of text that are remembered, half a megabyte each: the slides of a batch share most of them.
_REMEMBERED: Final = 8
#: ISA-L's; a preview takes a thirtieth of the time of zlib's usual level, and is a tenth larger.
PNG_LEVEL: Final = 1
_PNG_UP: Final = 2
#: A scale bar is at most this share of its picture's width.
BAR_SHARE: Final = 0.3

PAPER: Final = (250, 250, 248)
INK: Final = (28, 32, 38)
FAINT_INK: Final = (98, 104, 112)
RULE: Final = (206, 208, 212)
WARNING_PAPER: Final = (255, 236, 196)
WARNING_INK: Final = (120, 62, 0)
FRAME: Final = (255, 196, 0)


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of a sheet.

    Attributes:
        caption: shown above it.
        pixels: uint8 (h, w, 3).
        pitch: um per pixel.
        window: the part to show: left, top, right, bottom, pixels with fractions; None: all.
    """

    caption: str
    pixels: NDArray[np.uint8]
    pitch: float
    window: tuple[float, float, float, float] | None = None

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The part to show: left, top, right, bottom, pixels with fractions."""
        return self.window or (0.0, 0.0, float(self.pixels.shape[1]), float(self.pixels.shape[0]))


@dataclass(frozen=True, slots=True)
class Sheet:
    """The words of a sheet.

    Attributes:
        title: large, at the top.
        subtitle: below it.
        legend: name and colour of each channel, below the first pair.
        warnings: in a strip of their own; no strip where there are none.
        notices: at the foot.
    """

    title: str
    subtitle: str
    legend: tuple[tuple[str, Color], ...]
    warnings: tuple[str, ...]
    notices: tuple[str, ...]


def compose_sheet(
    sheet: Sheet, rows: Sequence[tuple[Panel, Panel]], mark: tuple[float, float, float, float] | None
) -> Image.Image:
    """Draw a sheet.

    Args:
        sheet: its words.
        rows: pairs of pictures, from top to bottom.
        mark: a frame to draw into the first pair: x, y, width, height as shares of the picture.
    """
    blocks = [_header(sheet), *_warning_strips(sheet.warnings)]
    for number, pair in enumerate(rows):
        blocks.append(_pair(pair, mark if number == 0 else None))
        if number == 0 and sheet.legend:
            blocks.append(_legend(sheet.legend))
    blocks.append(_footer(sheet.notices))
    height = sum(block.height for block in blocks) + GAP * (len(blocks) - 1) + 2 * MARGIN
    page = Image.new("RGB", (SHEET_WIDTH, height), PAPER)
    y = MARGIN
    for block in blocks:
        page.paste(block, (MARGIN, y))
        y += block.height + GAP
    return page


def as_png(picture: NDArray[np.uint8]) -> bytes:
    """A PNG file (RFC 2083) of uint8 (h, w, 3), RGB: each row as its difference from the one above, packed by ISA-L."""
    height, width, _ = picture.shape
    flat = picture.reshape(height, 3 * width)
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0], rows[0, 1:] = _PNG_UP, flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a sample, RGB
    parts = ((b"IHDR", head), (b"IDAT", isal_zlib.compress(rows, PNG_LEVEL)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"".join((b"\x89PNG\r\n\x1a\n", *chunks))


def scale_bar(um_per_px: float, width: int) -> tuple[float, str]:
    """A round length that fits a picture.

    Args:
        um_per_px: of the picture as drawn.
        width: of the picture as drawn, px.

    Returns:
        The bar's length in px (fractional), and its label such as ``"200 um"`` or ``"2 mm"``. Pillow's own font has
        no micro sign.
    """
    room = um_per_px * width * BAR_SHARE
    decade = 10.0 ** math.floor(math.log10(room))
    um = max(step * decade for step in (1, 2, 5) if step * decade <= room)
    label = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} um"
    return um / um_per_px, label


def draw_panel(panel: Panel, mark: tuple[float, float, float, float] | None) -> Image.Image:
    """One picture, fitted into its square, with its scale bar."""
    left, top, right, bottom = panel.box
    scale = min(PANEL_SIDE / (right - left), PANEL_SIDE / (bottom - top), MAX_ENLARGEMENT)
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    way = Image.Resampling.LANCZOS if scale < 2 else Image.Resampling.BICUBIC
    picture = Image.fromarray(panel.pixels).resize(size, way, box=panel.box)
    draw = ImageDraw.Draw(picture)
    if mark is not None:
        x, y, width, height = (v * s for v, s in zip(mark, (*size, *size), strict=True))
        draw.rectangle((x, y, x + width - 1, y + height - 1), outline=FRAME, width=3)
    _draw_bar(picture, panel.pitch * (right - left) / size[0])
    return picture


def _draw_bar(picture: Image.Image, um_per_px: float) -> None:
    length, label = scale_bar(um_per_px, picture.width)
    font = _font(18)
    text_width = math.ceil(font.getlength(label))
    width = max(round(length), text_width) + 20
    if picture.width < width + 16 or picture.height < 60:
        return  # too small a picture for a bar that could be read
    box = Image.new("RGBA", (width, 44), (255, 255, 255, 215))
    draw = ImageDraw.Draw(box)
    draw.text((width / 2, 4), label, fill=(*INK, 255), font=font, anchor="ma")
    start = (width - round(length)) // 2
    draw.rectangle((start, 31, start + round(length) - 1, 36), fill=(*INK, 255))
    picture.paste(box, (12, picture.height - 44 - 12), box)


def _pair(pair: tuple[Panel, Panel], mark: tuple[float, float, float, float] | None) -> Image.Image:
    pictures = [draw_panel(panel, mark) for panel in pair]
    block = _block(28 + max(picture.height for picture in pictures) + 2)
    draw = ImageDraw.Draw(block)
    for column, (panel, picture) in enumerate(zip(pair, pictures, strict=True)):
        x = column * (PANEL_SIDE + GAP) + (PANEL_SIDE - picture.width) // 2
        draw.text((x, 0), panel.caption, fill=INK, font=_font(20))
        block.paste(picture, (x, 29))
        draw.rectangle((x - 1, 28, x + picture.width, 29 + picture.height), outline=RULE)
    return block


def _header(sheet: Sheet) -> Image.Image:
    block = _block(78)
    draw = ImageDraw.Draw(block)
    draw.text((0, 0), _fitted(sheet.title, 38, block.width), fill=INK, font=_font(38))
    draw.text((0, 50), _fitted(sheet.subtitle, 22, block.width), fill=FAINT_INK, font=_font(22))
    return block


@lru_cache(_REMEMBERED)
def _warning_strips(warnings: tuple[str, ...]) -> list[Image.Image]:
    if not warnings:
        return []
    lines = [line for text in warnings for line in _wrapped(f"Warning: {text}", 22, SHEET_WIDTH - 2 * MARGIN - 32)]
    block = Image.new("RGB", (SHEET_WIDTH - 2 * MARGIN, 30 * len(lines) + 20), WARNING_PAPER)
    draw = ImageDraw.Draw(block)
    draw.rectangle((0, 0, 6, block.height), fill=FRAME)
    for number, line in enumerate(lines):
        draw.text((20, 10 + 30 * number), line, fill=WARNING_INK, font=_font(22))
    return [block]


def _legend(legend: Sequence[tuple[str, Color]]) -> Image.Image:
    font = _font(20)
    places, x, y = [], 0, 0
    for name, color in legend:
        width = 30 + math.ceil(font.getlength(name)) + 24
        if x and x + width > SHEET_WIDTH - 2 * MARGIN:
            x, y = 0, y + 30
        places.append((x, y, name, color))
        x += width
    block = _block(y + 26)
    draw = ImageDraw.Draw(block)
    for x, y, name, color in places:
        draw.rounded_rectangle((x, y + 2, x + 20, y + 22), 4, fill=color, outline=FAINT_INK)
        draw.text((x + 30, y), name, fill=INK, font=font)
    return block


@lru_cache(_REMEMBERED)
def _footer(notices: tuple[str, ...]) -> Image.Image:
    lines = [line for text in notices for line in _wrapped(text, 22, SHEET_WIDTH - 2 * MARGIN)]
    block = _block(8 + 30 * len(lines))
    draw = ImageDraw.Draw(block)
    draw.line((0, 0, block.width, 0), fill=RULE)
    for number, line in enumerate(lines):
        draw.text((0, 10 + 30 * number), line, fill=INK, font=_font(22))
    return block


def _block(height: int) -> Image.Image:
    return Image.new("RGB", (SHEET_WIDTH - 2 * MARGIN, height), PAPER)


def _fitted(text: str, size: int, width: int) -> str:
    """The text, cut with an ellipsis where it is too wide."""
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _wrapped(text: str, size: int, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and _font(size).getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType; install Pillow from its wheels")
    return font
