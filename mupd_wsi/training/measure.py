"""Measures a model on a split of a folder of paired tiles.

``python -m mupd_wsi.training.measure mupd-mini --data ../shared/data/orion-crc01`` prints the tables of the model card.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.evaluation.agreement import PATCHES, Agreement
from mupd_wsi.model.loading import load_model
from mupd_wsi.model.protocol import TileStainer
from mupd_wsi.request import SampleOptions
from mupd_wsi.training.neighbours import SlideOfTiles, SquareReader, stain_tiles
from mupd_wsi.training.telling import told_in_a_line
from mupd_wsi.training.tiles import PairedTiles, load_tiles

LEFT_OUT_OF_MEAN = "Autofluorescence"  # no stain: what the tissue does by itself
MEAN_ROW = "mean"

Table = dict[str, dict[str, float]]


def measure(stainer: TileStainer, data: Path, options: SampleOptions, split: str = "dev") -> Table:
    """Agreement with the real markers over all pixels of a split, glass included.

    Args:
        stainer: the model.
        data: folder of paired tiles.
        options: the read-out to measure.
        split: which tiles.

    Returns:
        A row a marker (see :meth:`Agreement.summary`), and "mean": the correlations' mean over the markers but
        autofluorescence.
    """
    tiles = load_tiles(data, split, stainer.info.panel.names)
    return measure_tiles(stainer, tiles, SlideOfTiles(data), options)


def measure_tiles(stainer: TileStainer, tiles: PairedTiles, around: SquareReader, options: SampleOptions) -> Table:
    """The same for tiles from anywhere.

    Args:
        stainer: the model; its panel is the tiles' channels.
        tiles: real.
        around: their H&E with its neighbours.
        options: the read-out to measure.
    """
    stained = stain_tiles(stainer, around, tiles.places, options)
    return agreement_table(stainer.info.panel.names, zip(tiles.markers, stained, strict=True))


def agreement_table(names: tuple[str, ...], tiles: Iterable[tuple[NDArray[np.uint8], NDArray[np.float32]]]) -> Table:
    """The table of predictions from anywhere.

    Args:
        names: of the channels.
        tiles: real and virtual intensities, (C, H, W) each.

    Returns:
        As :func:`measure`; what cannot be measured, as a marker that is nowhere or a prediction that does not vary,
        is left out.
    """
    agreement = Agreement(len(names))
    for real, virtual in tiles:
        agreement.add(real, virtual)
    rows: Table = {
        name: {key: value for key, value in row.items() if np.isfinite(value)}
        for name, row in zip(names, agreement.summary(), strict=True)
    }
    kept = [row for marker, row in rows.items() if marker != LEFT_OUT_OF_MEAN]
    columns = {key: [row[key] for row in kept if key in row] for key in (f"pearson_{p}px" for p in PATCHES)}
    return rows | {MEAN_ROW: {key: round(float(np.mean(values)), 4) for key, values in columns.items() if values}}


def markdown_table(table: Mapping[str, Mapping[str, float]]) -> str:
    """A table as Markdown, the best marker first and the mean last."""
    columns = [*(f"pearson_{p}px" for p in PATCHES), "mean_ratio"]
    head = (
        "| marker | Pearson, pixel | Pearson, 8 px | Pearson, 64 px | mean, virtual / real |\n|---|---|---|---|---|\n"
    )
    by_quality = sorted((m for m in table if m != MEAN_ROW), key=lambda m: -table[m].get("pearson_1px", -1.0))
    lines = [
        f"| {m} | " + " | ".join(f"{table[m][c]:.2f}" if c in table[m] else "" for c in columns) + " |"
        for m in [*by_quality, MEAN_ROW]
    ]
    return head + "\n".join(lines) + "\n"


@told_in_a_line
def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m mupd_wsi.training.measure", description=__doc__)
    parser.add_argument("model", help="a shipped model's name, or a bundle's folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of paired tiles with tiles.csv")
    parser.add_argument("--readout", choices=("mean", "sample"), default="mean")
    parser.add_argument("--steps", type=int, help="network evaluations of a sample (default: the model's)")
    parser.add_argument("--split", default="dev")
    arguments = parser.parse_args()
    options = SampleOptions(arguments.readout, arguments.steps)
    table = measure(load_model(arguments.model), arguments.data, options, arguments.split)
    sys.stdout.write(markdown_table(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
