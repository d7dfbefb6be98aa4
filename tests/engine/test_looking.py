"""How a slide is judged before a run."""

from __future__ import annotations

import numpy as np
import pytest

from mupd_wsi.engine.looking import PROBES, look_at, probe_places
from mupd_wsi.geometry import Region, Size, output_size
from mupd_wsi.normalising import stain_profile
from mupd_wsi.slides import Slide, open_slide
from mupd_wsi.tiling import TileGrid
from mupd_wsi.tissue import TissueMask, glass_color


def test_probes_lie_on_tissue_and_are_spread():
    mask = np.zeros((200, 100), bool)
    mask[20:180, 30:70] = True
    places = probe_places(TissueMask(mask, 26.0), Size(2000, 4000), 1.3)
    assert len(places) == PROBES
    assert all(TissueMask(mask, 26.0).fraction(place, 1.3) >= 0.8 for place in places)
    assert max(p.y for p in places) - min(p.y for p in places) > 2000


@pytest.mark.parametrize("fixture", ["eas2_slide", "cmu_slide", "tcga_slide"])
def test_hardly_a_tile_of_glass_is_run(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the shipped model's tiles at most 1.10 are run for each that holds tissue itself, and not its margin alone."""
    with open_slide(request.getfixturevalue(fixture), mpp=0.25 if fixture == "tcga_slide" else None) as slide:
        run = _tissue_tiles(slide)
        monkeypatch.setattr("mupd_wsi.tissue._MARGIN_UM", 0.0)
        hold = _tissue_tiles(slide)
    assert hold > 0
    assert run <= 1.10 * hold


def test_slide_without_tissue_has_no_probes():
    assert probe_places(TissueMask(np.zeros((10, 10), bool), 26.0), Size(200, 200), 1.3) == ()


def test_scattered_tissue_is_probed_where_most_of_it_is():
    mask = np.zeros((50, 50), bool)
    mask[10:13, 10:13] = True
    places = probe_places(TissueMask(mask, 26.0), Size(1000, 1000), 1.3)
    assert len(places) == 1
    assert places[0].intersection(Region(200, 200, 60, 60)) is not None


def test_pale_biopsy_is_weaker_than_the_dense_section(cmu_slide, eas2_slide):
    strengths = []
    for path in (eas2_slide, cmu_slide):
        with open_slide(path) as slide:
            look = look_at(slide, 1.3)
            assert look.guess.is_he
            assert look.tissue.fraction(Region(0, 0, *_whole(slide)), 1.3) > 0.02
            assert look.staining is not None
            strengths.append(look.staining.strength[0])
    assert strengths[0] < 1.2 * strengths[1]


def test_the_thumbnail_of_a_small_slide_gives_what_reading_it_again_gives(synthetic_slide):
    with open_slide(synthetic_slide(1300, 900, 0.5)) as slide:
        look, size = look_at(slide, 1.3), Size(*_whole(slide))
        read = [slide.read(place, 1.3) for place in probe_places(look.tissue, size, 1.3)]
        white = glass_color(slide.read(Region(0, 0, size.width, size.height), 1.3))
    assert look.staining is not None
    assert look.staining == stain_profile(np.concatenate([one.reshape(-1, 3) for one in read]), white)


def test_fluorescence_has_no_staining(fluorescence_slide):
    with open_slide(fluorescence_slide) as slide:
        assert look_at(slide, 1.3).staining is None


def _whole(slide):
    size = output_size(slide.size, slide.mpp, 1.3)
    return size.width, size.height


def _tissue_tiles(slide: Slide) -> int:
    """Tiles of 736 px with a halo of 112 px, at 1.3 um/px, whose cores touch tissue."""
    tissue, size = look_at(slide, 1.3).tissue, Size(*_whole(slide))
    grid = TileGrid(size, Region(0, 0, size.width, size.height), 736, 112)
    return sum(tissue.covers(tile.core, 1.3) for tile in grid.tiles())
