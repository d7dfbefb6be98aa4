"""Make a synthetic H&E slide of any size: tissue-like texture with nuclei, and blank glass around it.

    python sample_data/make_synthetic_slide.py big.svs --size 20000x20000 --mpp 0.25
    python sample_data/make_synthetic_slide.py small.tif --size 3000x2000 --mpp 0.5 --style tiff

It is for tests and benchmarks: a pathologist would not believe it. The slide is a pyramid of JPEG tiles, made from
top to bottom. Memory bound: two rows of tiles of each level and float32 work on one, about 50 * width * 256 bytes in
all; the encoded tiles of the lower levels wait in a temporary file.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

TILE: Final = 256
_TEXTURE: Final = 1024
_GLASS: Final = (243, 243, 244)
_EOSIN: Final = (226, 150, 190)
_NUCLEUS: Final = (92, 60, 140)
_MIN_LEVEL_SIDE: Final = 512

Style = Literal["svs", "tiff"]


@dataclass
class _LowerLevel:
    """A level above 0 while it grows: the rows that do not make up a tile yet, and where its encoded tiles lie."""

    width: int
    height: int
    rows: list[NDArray[np.uint8]] = field(default_factory=list)
    pending: int = 0
    tiles: list[tuple[int, int]] = field(default_factory=list)


class SyntheticTissue:
    """The pixels of an endless synthetic slide, each a function of its place and the seed alone.

    Args:
        width: of the slide, px; tissue lies within an ellipse in it.
        height: of the slide, px.
        seed: of the texture and of the tissue's outline.
    """

    def __init__(self, width: int, height: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self._size = (width, height)
        self._texture = _texture(random)
        self._waves = [(random.uniform(2, 9), random.uniform(2, 9), *random.uniform(0, 6.28, 2)) for _ in range(6)]

    def rows(self, top: int, bottom: int) -> NDArray[np.uint8]:
        """Full-width rows, uint8 (bottom - top, width, 3)."""
        width, height = self._size
        v = (np.arange(top, bottom, dtype=np.float32) + 0.5)[:, None] / height
        u = (np.arange(width, dtype=np.float32) + 0.5)[None, :] / width
        field_ = 1.15 - 2.6 * np.hypot(u - 0.5, v - 0.5)
        for across, down, first, second in self._waves:
            field_ += 0.12 * np.sin(6.28 * across * u + first) * np.sin(6.28 * down * v + second)
        tissue = np.clip((field_ - 0.25) * 40, 0, 1)[..., None]
        repeats = -(-width // _TEXTURE)
        wrapped = np.arange(top, bottom) % _TEXTURE
        texture = np.tile(self._texture[wrapped], (1, repeats, 1))[:, :width]
        glass = np.array(_GLASS, np.float32)
        return cast("NDArray[np.uint8]", (glass + tissue * (texture - glass) + 0.5).astype(np.uint8))


def make_synthetic_slide(
    path: Path,
    width: int,
    height: int,
    *,
    mpp: float | None = 0.5,
    style: Style = "svs",
    seed: int = 0,
    quality: int = 80,
) -> Path:
    """Write a synthetic pyramidal slide.

    Args:
        path: of the file to write; an existing one is replaced.
        width: level-0 px.
        height: level-0 px.
        mpp: um/px to state, in the Aperio description or in the resolution tags; None states none.
        style: ``"svs"`` for an Aperio slide, ``"tiff"`` for a generic tiled TIFF.
        seed: of the picture.
        quality: of JPEG, 1-100.

    Returns:
        ``path``.
    """
    tissue = SyntheticTissue(width, height, seed)
    lower = _lower_levels(width, height)
    with tempfile.TemporaryFile() as spool, tifffile.TiffWriter(path, bigtiff=width * height > 2**32) as writer:
        tiles = _encode_slide(tissue, (width, height), lower, spool, quality)
        writer.write(tiles, shape=(height, width, 3), **_page_options(width, height, mpp, style, 0))
        for index, level in enumerate(lower, start=1):
            writer.write(
                _spooled(spool, level.tiles),
                shape=(level.height, level.width, 3),
                **_page_options(level.width, level.height, mpp, style, index),
            )
    return path


def _texture(random: np.random.Generator) -> NDArray[np.float32]:
    """A square of stroma and nuclei that wraps around, float32 (1024, 1024, 3)."""
    margin = 64
    noise = np.pad(random.normal(0, 1, (_TEXTURE, _TEXTURE)).astype(np.float32), margin, mode="wrap")
    fibres = cv2.GaussianBlur(noise, (0, 0), 12, sigmaY=3)[margin:-margin, margin:-margin]
    fibres = fibres / fibres.std() * 9
    picture = np.array(_EOSIN, np.float32) + fibres[..., None] * np.array([0.4, 1.0, 0.6], np.float32)
    nuclei = np.zeros((_TEXTURE, _TEXTURE), np.float32)
    for x, y in random.uniform(0, _TEXTURE, (900, 2)):
        axes = (int(random.integers(4, 9)), int(random.integers(3, 6)))
        angle = float(random.uniform(0, 180))
        darkness = float(random.uniform(0.6, 1))
        for shift_x, shift_y in itertools.product((-_TEXTURE, 0, _TEXTURE), repeat=2):
            cv2.ellipse(nuclei, (int(x) + shift_x, int(y) + shift_y), axes, angle, 0, 360, darkness, -1)
    nuclei = cv2.GaussianBlur(np.pad(nuclei, margin, mode="wrap"), (0, 0), 0.8)[margin:-margin, margin:-margin, None]
    picture += nuclei * (np.array(_NUCLEUS, np.float32) - picture)
    return cast("NDArray[np.float32]", np.clip(picture + random.normal(0, 3, picture.shape), 0, 255).astype(np.float32))


def _lower_levels(width: int, height: int) -> list[_LowerLevel]:
    levels = []
    while max(width, height) > _MIN_LEVEL_SIDE and min(width, height) > 1:
        width, height = width // 2, height // 2
        levels.append(_LowerLevel(width, height))
    return levels


def _encode_slide(
    tissue: SyntheticTissue, size: tuple[int, int], lower: list[_LowerLevel], spool: IO[bytes], quality: int
) -> Iterator[bytes]:
    """Level 0's encoded tiles in order; on the way the lower levels are made, each before its last tile is needed."""
    width, height = size
    for top in range(0, height, TILE):
        rows = tissue.rows(top, min(top + TILE, height))
        _feed(lower, 0, rows, spool, quality)  # before the last tile is handed out: the writer asks for no more
        if top + TILE >= height:
            for index in range(len(lower)):
                _flush(lower, index, spool, quality)
        for x in range(0, width, TILE):
            yield _encode(rows[:, x : x + TILE], quality)


def _feed(lower: list[_LowerLevel], index: int, rows: NDArray[np.uint8], spool: IO[bytes], quality: int) -> None:
    """Halve rows of the level above (TILE is even, so bands start on even rows) and add them to a lower level."""
    if index == len(lower):
        return
    level = lower[index]
    halved = rows[: rows.shape[0] // 2 * 2, : level.width * 2]
    if halved.shape[0]:
        small = cv2.resize(halved, (level.width, halved.shape[0] // 2), interpolation=cv2.INTER_AREA)
        level.rows.append(cast("NDArray[np.uint8]", small))
        level.pending += small.shape[0]
    if level.pending >= TILE:
        _flush(lower, index, spool, quality)


def _flush(lower: list[_LowerLevel], index: int, spool: IO[bytes], quality: int) -> None:
    """Encode the rows that a lower level holds (one row of tiles at most) and pass them on."""
    level = lower[index]
    if not level.rows:
        return
    band = np.concatenate(level.rows)
    level.rows, level.pending = [], 0
    for x in range(0, level.width, TILE):
        data = _encode(band[:, x : x + TILE], quality)
        level.tiles.append((spool.tell(), len(data)))
        spool.write(data)
    _feed(lower, index + 1, band, spool, quality)


def _encode(pixels: NDArray[np.uint8], quality: int) -> bytes:
    height, width = pixels.shape[:2]
    full = np.pad(pixels, ((0, TILE - height), (0, TILE - width), (0, 0)), mode="edge")
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(full), level=quality, subsampling="420"))


def _spooled(spool: IO[bytes], tiles: list[tuple[int, int]]) -> Iterator[bytes]:
    for offset, count in tiles:
        spool.seek(offset)
        yield spool.read(count)


def _page_options(width: int, height: int, mpp: float | None, style: Style, level: int) -> dict[str, Any]:
    """How tifffile writes one page of the pyramid. ``mpp`` is of level 0."""
    options: dict[str, Any] = {
        "dtype": "uint8",
        "tile": (TILE, TILE),
        "compression": "jpeg",
        "photometric": "ycbcr",
        "subsampling": (2, 2),
        "metadata": None,
        "subfiletype": 1 if level and style == "tiff" else 0,
    }
    if style == "tiff":
        density = 1e4 / (mpp * 2**level) if mpp else 1
        unit = "CENTIMETER" if mpp else "NONE"
        return options | {"resolution": (density, density), "resolutionunit": unit}
    stated = f"|AppMag = {10 / mpp:g}|MPP = {mpp:.6g}" if mpp else ""
    return options | {"description": f"Aperio Image Library v0\r\n{width}x{height} (256x256) JPEG{stated}"}


def main() -> None:
    """Read the command line and write the slide."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path, help="the slide to write")
    parser.add_argument("--size", default="20000x20000", metavar="WxH", help="level-0 pixels (default: %(default)s)")
    parser.add_argument("--mpp", type=float, default=0.25, help="um/px to state (default: %(default)s)")
    parser.add_argument("--style", choices=("svs", "tiff"), default="svs", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the picture (default: %(default)s)")
    given = parser.parse_args()
    width, height = (int(side) for side in given.size.lower().split("x"))
    print(make_synthetic_slide(given.path, width, height, mpp=given.mpp, style=given.style, seed=given.seed))


if __name__ == "__main__":
    main()
