"""Measures whether a model's draws look like the real stain on a split of a folder of paired tiles.

``python -m mupd_wsi.training.measure_draw mupd-mini --data ../shared/data/orion-crc01`` prints a table of the card.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.evaluation.agreement import Agreement
from mupd_wsi.evaluation.cells import find_cells, nuclear_threshold
from mupd_wsi.evaluation.realism import WAVELENGTHS, Realism
from mupd_wsi.markers import NUCLEAR_MARKER
from mupd_wsi.model.loading import load_model
from mupd_wsi.model.protocol import TileStainer
from mupd_wsi.request import SampleOptions
from mupd_wsi.training.fitting import HIGH_QUANTILE, POSITIVE_SHARE
from mupd_wsi.training.measure import LEFT_OUT_OF_MEAN
from mupd_wsi.training.neighbours import SlideOfTiles, stain_tiles
from mupd_wsi.training.telling import told_in_a_line
from mupd_wsi.training.tiles import PairedTiles, load_tiles

REQUIRED_MARKERS = 12

Table = dict[str, dict[str, Any]]


def positive_thresholds(tiles: PairedTiles) -> NDArray[np.float64]:
    """From which intensity on a pixel is positive: a share of the real stain's high end, one a channel."""
    levels = [sum(np.bincount(tile[c].ravel(), minlength=256) for tile in tiles.markers) for c in _channels(tiles)]
    high = [np.searchsorted(np.cumsum(counts) / np.sum(counts), HIGH_QUANTILE) for counts in levels]
    return np.maximum(POSITIVE_SHARE * np.array(high, np.float64), 1.0)


def measure_draw(stainer: TileStainer, data: Path, options: SampleOptions, split: str = "dev") -> Table:
    """How a draw compares with the real stain and with the read-out.

    Args:
        stainer: the model.
        data: folder of paired tiles; thresholds are taken from its train split.
        options: of the draw.
        split: which tiles.

    Returns:
        A row a marker; see :meth:`Realism.summary`.
    """
    names = stainer.info.panel.names
    realism = Realism(positive_thresholds(load_tiles(data, "train", names)))
    tiles, slide = load_tiles(data, split, names), SlideOfTiles(data)
    nuclear = names.index(NUCLEAR_MARKER)
    parting = nuclear_threshold(tiles.markers[:, nuclear].astype(np.float32))
    drawn, expected = Agreement(len(names)), Agreement(len(names))
    draws = stain_tiles(stainer, slide, tiles.places, options)
    readouts = stain_tiles(stainer, slide, tiles.places, SampleOptions("mean"))
    for real, draw, readout in zip(tiles.markers, draws, readouts, strict=True):
        cells = find_cells(real[nuclear].astype(np.float32), parting, stainer.info.mpp)
        realism.add(real, draw, readout, cells)
        drawn.add(real, draw)
        expected.add(real, readout)
    pearson = [np.array([row["pearson_64px"] for row in a.summary()]) for a in (drawn, expected)]
    return dict(zip(names, realism.summary(*pearson), strict=True))


def draw_table(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as Markdown, the markers that keep most first."""
    bands = ", ".join(f"{a}-{b}" for a, b in pairwise(WAVELENGTHS))
    head = (
        "| marker | area, draw / real | quantiles 90, 99, 99.9 %, real | draw | "
        f"power, draw / real, {bands} px | cell error, draw / read-out / ideal draw | "
        "64 px Pearson, draw / read-out | missed |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    rows = sorted(table.items(), key=lambda item: -sum(item[1]["kept"].values()))
    return head + "".join(_line(name, row) for name, row in rows) + f"\n{kept_sentence(table)}\n"


def kept_sentence(table: Mapping[str, Mapping[str, Any]]) -> str:
    """How many markers keep everything."""
    rows = {name: row for name, row in table.items() if name != LEFT_OUT_OF_MEAN}
    kept = [name for name, row in rows.items() if all(row["kept"].values())]
    return f"{len(kept)} of {len(rows)} markers keep all: {', '.join(kept) or 'none'}."


def _line(name: str, row: Mapping[str, Any]) -> str:
    real, drawn = (" / ".join(f"{v:g}" for v in row[key]) for key in ("real_quantiles", "draw_quantiles"))
    power = " / ".join(f"{v:.2f}" for v in row["spectrum_ratio"])
    missed = ", ".join(what for what, kept in row["kept"].items() if not kept) or "-"
    errors = " / ".join(f"{row[key]:.3f}" for key in ("cell_error", "readout_cell_error", "ideal_cell_error"))
    ratio = row["pearson_64px_ratio"]
    return f"| {name} | {row['area_ratio']:.2f} | {real} | {drawn} | {power} | {errors} | {ratio:.2f} | {missed} |\n"


def _channels(tiles: PairedTiles) -> range:
    return range(tiles.markers.shape[1])


@told_in_a_line
def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m mupd_wsi.training.measure_draw", description=__doc__)
    parser.add_argument("model", help="a shipped model's name, or a bundle's folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of paired tiles with tiles.csv")
    parser.add_argument("--steps", type=int, help="network evaluations of a draw (default: the model's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="dev")
    arguments = parser.parse_args()
    options = SampleOptions("sample", arguments.steps, arguments.seed)
    table = measure_draw(load_model(arguments.model), arguments.data, options, arguments.split)
    sys.stdout.write(draw_table(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
