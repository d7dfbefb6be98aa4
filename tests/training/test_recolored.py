"""What is measured on recoloured tiles."""

from __future__ import annotations

import numpy as np
import pytest
from pairs import write_rgb

from mupd_wsi.errors import SlideError
from mupd_wsi.normalising import StainProfile, StainTransfer
from mupd_wsi.training import recolored
from mupd_wsi.training.fitting import fit_stain_reference
from mupd_wsi.training.neighbours import SlideOfTiles
from mupd_wsi.training.tiles import load_tiles

PALE = StainProfile((240.0, 238.0, 242.0), (0.55, 0.75, 0.36), (0.12, 0.92, 0.38), (0.5, 0.35))


@pytest.fixture
def tiles(paired_folder):
    return load_tiles(paired_folder, "dev", ("Hoechst",)), SlideOfTiles(paired_folder)


def test_recoloured_tiles_have_the_other_staining_and_come_back(tiles):
    dev, around = tiles
    own = fit_stain_reference(dev.he, dev.patch_tissue)
    away = StainTransfer(own, PALE)
    place = (dev.places[0].x * around.tile, dev.places[0].y * around.tile, around.tile)
    pale = recolored.RecoloredTiles(around, away)
    assert pale.tile == around.tile
    rgb = pale.read(*place)
    assert np.array_equal(rgb, away.apply(dev.he[0]))
    found = fit_stain_reference(rgb[None], dev.patch_tissue[:1])
    assert found.strength == pytest.approx(PALE.strength, rel=0.35)  # two flat colours are no tissue
    back = recolored.RecoloredTiles(around, away, StainTransfer(PALE, own)).read(*place)
    assert np.abs(back.astype(int) - dev.he[0]).mean() < 4  # what rounding to 8 bits of a pale slide costs


def test_a_slide_without_two_dyes_is_no_example(tmp_path):
    write_rgb(tmp_path / "blank.tif", np.full((600, 600, 3), 240, np.uint8), 1.3)
    with pytest.raises(SlideError, match="cannot be told"):
        recolored.staining_of(tmp_path / "blank.tif", 1.3)
