"""The pictures of a model's card: which regions, and what is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from standins import StandInStainer

from mupd_wsi.training.pictures import REGIONS, SIDE, draw_regions, ranked_regions
from mupd_wsi.training.tiles import load_tiles

MARKERS = ("Hoechst", "CD8a", "Pan-CK")


def test_regions_are_ranked_by_how_well_they_are_stained(paired_folder: Path) -> None:
    tiles = load_tiles(paired_folder, "train", MARKERS)
    virtual = [planes.astype(np.float32) for planes in tiles.markers]
    virtual[0][:, :, SIDE:] = virtual[0][::-1, :, SIDE:]  # there the markers are each other's
    ranked = ranked_regions(tiles, virtual, (0, 1, 2))
    assert [region.agreement for region in ranked[:-1]] == pytest.approx([1.0] * (len(ranked) - 1))
    assert (ranked[-1].tile, ranked[-1].x, ranked[-1].y) == (0, SIDE, SIDE)
    assert ranked[-1].agreement < 0.5
    # The upper quarter of each tile is glass, so its upper regions are left out.
    assert all(region.y == SIDE for region in ranked)


def test_sheets_show_the_slide_beside_its_stain(paired_folder: Path) -> None:
    sheets = draw_regions(StandInStainer(), paired_folder, MARKERS, "train")
    assert set(sheets) == {"best", "worst"}
    tiles = load_tiles(paired_folder, "train", MARKERS)
    pink = np.median(tiles.he[0, SIDE:].reshape(-1, 3), axis=0)
    for sheet in sheets.values():
        pixels = np.asarray(sheet).reshape(-1, 3)
        assert sheet.height > 2 * REGIONS * SIDE  # two rows of pictures for each region
        # A quarter of the pictures is H&E, most of which is the pink between the nuclei.
        assert (np.abs(pixels - pink).max(axis=1) < 6).mean() > 0.08
    assert isinstance(sheets["best"], Image.Image)
