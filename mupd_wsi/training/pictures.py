"""Draws the regions that a model stains best and worst: H&E, real stain, read-out and a draw, side by side.

``python -m mupd_wsi.training.pictures mupd-mini --data ../shared/data/orion-crc01 -o docs/models`` draws those of the
model's card, ``mupd-mini-best.jpg`` and ``mupd-mini-worst.jpg``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mupd_wsi.drawing import Panel, Sheet, compose_sheet
from mupd_wsi.model.loading import load_model
from mupd_wsi.model.protocol import TileStainer
from mupd_wsi.preview import compose
from mupd_wsi.request import NOTICE, SampleOptions
from mupd_wsi.training.neighbours import SlideOfTiles, stain_tiles
from mupd_wsi.training.telling import told_in_a_line
from mupd_wsi.training.tiles import PATCH, PairedTiles, load_tiles, patch_means
from mupd_wsi.writers.spec import Channel

#: Side of a region, px.
SIDE: Final = 256
#: Regions of a sheet, each of another tile.
REGIONS: Final = 2
#: Share of a region that has to be tissue.
TISSUE: Final = 0.9
#: Side of the squares that real and virtual stain are compared over, px: about a cell.
SQUARE: Final = 8
MARKERS: Final = "Hoechst,Pan-CK,alpha-SMA,CD45,Ki67"
JPEG_QUALITY: Final = 88


@dataclass(frozen=True, slots=True)
class RankedRegion:
    """A square of a tile, and how well it is stained.

    Attributes:
        tile: number of the tile.
        x: left edge in the tile, px.
        y: top edge.
        agreement: correlation of real and virtual stain, over all its squares and markers.
    """

    tile: int
    x: int
    y: int
    agreement: float

    def of(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Its part of a tile's planes, (..., H, W)."""
        return pixels[..., self.y : self.y + SIDE, self.x : self.x + SIDE]


def ranked_regions(
    tiles: PairedTiles, virtual: Sequence[NDArray[np.float32]], shown: Sequence[int]
) -> list[RankedRegion]:
    """Regions full of tissue, those that are stained best first.

    Compared are means over squares, each marker in units of its own standard deviation over all tiles, so that what is
    bright and what is rare count alike, and that something is absent where it should be counts too.

    Args:
        tiles: H&E and real stain.
        virtual: of each tile, (C, H, W), 0-255.
        shown: channels that count.
    """
    real = patch_means(tiles.markers[:, list(shown)], SQUARE)
    made = patch_means(np.stack([planes[list(shown)] for planes in virtual]), SQUARE)
    middle, spread = real.mean(axis=(0, 2, 3), keepdims=True), real.std(axis=(0, 2, 3), keepdims=True)
    real, made = ((means - middle) / np.maximum(spread, 1e-6) for means in (real, made))
    found = []
    for number, tissue in enumerate(tiles.patch_tissue):
        height, width = (side * PATCH for side in tissue.shape)
        for y in range(0, height - SIDE + 1, SIDE):
            for x in range(0, width - SIDE + 1, SIDE):
                if tissue[y // PATCH : (y + SIDE) // PATCH, x // PATCH : (x + SIDE) // PATCH].mean() < TISSUE:
                    continue
                part = np.s_[number, :, y // SQUARE : (y + SIDE) // SQUARE, x // SQUARE : (x + SIDE) // SQUARE]
                found.append(
                    RankedRegion(number, x, y, float(np.corrcoef(real[part].ravel(), made[part].ravel())[0, 1]))
                )
    return sorted(found, key=lambda region: -region.agreement)


def draw_regions(stainer: TileStainer, data: Path, names: Sequence[str], split: str = "dev") -> dict[str, Image.Image]:
    """Two sheets, ``best`` and ``worst``; real stain, read-out and draw at the same display range.

    Args:
        stainer: the model.
        data: folder of paired tiles.
        names: of the markers to show, in any spelling.
        split: which tiles.
    """
    info = stainer.info
    shown = info.panel.select(list(names))
    tiles, slide = load_tiles(data, split, info.panel.names), SlideOfTiles(data)
    expected = list(stain_tiles(stainer, slide, tiles.places, SampleOptions("mean")))
    ranked = ranked_regions(tiles, expected, shown)
    windows = info.display_window["sample"]
    channels = tuple(
        Channel(info.panel.names[c], info.panel.markers[c].color, (round(windows[c][0]), round(windows[c][1])))
        for c in shown
    )

    def rows(region: RankedRegion) -> list[tuple[Panel, Panel]]:
        place = tiles.places[region.tile]
        (drawn,) = stain_tiles(stainer, slide, (place,), SampleOptions("sample"))
        real, mean, draw = (
            compose(np.rint(region.of(planes[list(shown)])).astype(np.uint8), channels)
            for planes in (tiles.markers[region.tile], expected[region.tile], drawn)
        )
        he = compose(region.of(np.moveaxis(tiles.he[region.tile], 2, 0)), ())
        return [
            (
                Panel(f"H&E, tile {place.x}_{place.y} at {region.x},{region.y} px", he, info.mpp),
                Panel("real stain", real, info.mpp),
            ),
            (
                Panel(f"read-out, correlation {region.agreement:.2f}", mean, info.mpp),
                Panel("draw, seed 0", draw, info.mpp),
            ),
        ]

    def sheet(name: str, chosen: Sequence[RankedRegion]) -> Image.Image:
        told = f"{split} columns; correlation over squares of {SQUARE} px, all markers shown"
        legend = tuple((channel.name, channel.color) for channel in channels)
        words = Sheet(f"{info.name} {info.version}: {name} regions", told, legend, (), (NOTICE, info.credit))
        return compose_sheet(words, [row for region in chosen for row in rows(region)], None)

    chosen = {"best": _of_different_tiles(ranked), "worst": _of_different_tiles(ranked[::-1])}
    return {name: sheet(name, regions) for name, regions in chosen.items()}


def _of_different_tiles(regions: Sequence[RankedRegion]) -> list[RankedRegion]:
    first: dict[int, RankedRegion] = {}
    for region in regions:
        first.setdefault(region.tile, region)
    return list(first.values())[:REGIONS]


@told_in_a_line
def main() -> int:
    """Parse the command line, draw, write."""
    parser = argparse.ArgumentParser(prog="python -m mupd_wsi.training.pictures", description=__doc__)
    parser.add_argument("model", help="a shipped model's name, or a bundle's folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of paired tiles with tiles.csv")
    parser.add_argument("--markers", default=MARKERS, help=f"to show, with commas (default: {MARKERS})")
    parser.add_argument("--split", default="dev")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the pictures")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with closing(load_model(arguments.model)) as stainer:
        sheets = draw_regions(stainer, arguments.data, arguments.markers.split(","), arguments.split)
    for name, sheet in sheets.items():
        sheet.save(arguments.output / f"{stainer.info.name}-{name}.jpg", quality=JPEG_QUALITY)
    return 0


if __name__ == "__main__":
    sys.exit(main())
