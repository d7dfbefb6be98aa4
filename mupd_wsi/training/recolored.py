"""Measures a model on test tiles that are recoloured as other laboratories stain.

``python -m mupd_wsi.training.recolored mupd-mini --data ../shared/data/orion-crc01 --like A.svs --like B.svs``

The markers stay what they are; the H&E gets the dyes' colours and amounts of another slide, rounded to 8 bits as that
slide's file would hold it. It is then stained as such a slide is: brought back by what is found of its staining, or, to
see what that is good for, as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.engine.looking import look_at
from mupd_wsi.errors import SlideError, UsageError
from mupd_wsi.model.loading import load_model
from mupd_wsi.model.protocol import TileStainer
from mupd_wsi.normalising import StainProfile, StainTransfer
from mupd_wsi.request import SampleOptions
from mupd_wsi.slides import open_slide
from mupd_wsi.training.fitting import fit_stain_reference
from mupd_wsi.training.measure import MEAN_ROW, Table, measure_tiles
from mupd_wsi.training.neighbours import SlideOfTiles, SquareReader
from mupd_wsi.training.telling import told_in_a_line
from mupd_wsi.training.tiles import PairedTiles, load_tiles

PATCHES = ("pearson_1px", "pearson_8px", "pearson_64px")


class RecoloredTiles:
    """Tiles whose H&E goes through transfers of staining as it is read; a :class:`SquareReader`.

    Args:
        tiles: the H&E.
        transfers: applied one after the other, each rounding to 8 bits.
    """

    def __init__(self, tiles: SquareReader, *transfers: StainTransfer) -> None:
        self._tiles, self._transfers = tiles, transfers

    @property
    def tile(self) -> int:
        """Side of a tile, px."""
        return self._tiles.tile

    def read(self, x: int, y: int, side: int) -> NDArray[np.uint8]:
        """A square of recoloured H&E, uint8 (side, side, 3)."""
        rgb = self._tiles.read(x, y, side)
        for transfer in self._transfers:
            rgb = transfer.apply(rgb)
        return rgb


def staining_of(path: Path, mpp: float) -> StainProfile:
    """A slide's haematoxylin and eosin, as they are found when it is stained.

    Raises:
        SlideError: they cannot be told.
    """
    with open_slide(path) as slide:
        found = look_at(slide, mpp).staining
    if found is None:
        raise SlideError(f"the haematoxylin and eosin of {path} cannot be told; give another slide of H&E")
    return found


def measure_recolored(
    stainer: TileStainer, tiles: PairedTiles, around: SquareReader, like: StainProfile
) -> tuple[Table, Table]:
    """Tables of the read-out (:func:`mupd_wsi.training.measure.measure`) on recoloured tiles.

    Args:
        stainer: the model; its card has to know the staining that it was trained on.
        tiles: real, with the H&E as it is.
        around: their H&E with its neighbours.
        like: the staining that they are given.

    Returns:
        Brought back as on reading, and left as it is.
    """
    own = stainer.info.stain_reference
    if own is None:
        raise UsageError(f"{stainer.info.name} does not know the staining that it was trained on")
    away = StainTransfer(own, like)
    he = np.stack([away.apply(tile) for tile in tiles.he])
    found = fit_stain_reference(he, tiles.patch_tissue)
    if found is None:
        raise SlideError("the staining of the recoloured tiles cannot be told")
    back, left = RecoloredTiles(around, away, StainTransfer(found, own)), RecoloredTiles(around, away)
    normalised, plain = (measure_tiles(stainer, tiles, reader, SampleOptions("mean")) for reader in (back, left))
    return normalised, plain


def lines(stainer: TileStainer, data: Path, split: str, slides: list[Path]) -> Iterator[str]:
    """A Markdown table, a row a staining, as it comes."""
    tiles, around = load_tiles(data, split, stainer.info.panel.names), SlideOfTiles(data)
    as_they_are = measure_tiles(stainer, tiles, around, SampleOptions("mean"))
    yield "| staining | brought back on reading | of the original | left as it is |"
    yield "|---|---|---|---|"
    yield f"| as it is | {_shown(as_they_are)} | | |"
    for path in slides:
        normalised, plain = measure_recolored(stainer, tiles, around, staining_of(path, stainer.info.mpp))
        shares = (normalised[MEAN_ROW][p] / as_they_are[MEAN_ROW][p] for p in PATCHES)
        kept = " / ".join(f"{share:.0%}" for share in shares)
        yield f"| of {path.name} | {_shown(normalised)} | {kept} | {_shown(plain)} |"


def _shown(table: Table) -> str:
    return " / ".join(f"{table[MEAN_ROW][p]:.3f}" for p in PATCHES)


@told_in_a_line
def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m mupd_wsi.training.recolored", description=__doc__)
    parser.add_argument("model", help="a shipped model's name, or a bundle's folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of paired tiles with tiles.csv")
    parser.add_argument("--like", type=Path, action="append", required=True, help="a slide; may be given again")
    parser.add_argument("--split", default="dev")
    arguments = parser.parse_args()
    with closing(load_model(arguments.model)) as stainer:
        for line in lines(stainer, arguments.data, arguments.split, arguments.like):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
