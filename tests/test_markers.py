"""Targets are found whatever the spelling."""

from __future__ import annotations

import pytest

from mupd_wsi.errors import UnknownTargetError
from mupd_wsi.markers import ALIASES, Marker, Panel, fold
from mupd_wsi.model import find_bundle, read_info


@pytest.fixture(scope="module")
def panel():
    return read_info(find_bundle("mupd-mini")).panel


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("CD8", "CD8a"),
        ("cd8", "CD8a"),
        ("CD8a", "CD8a"),
        ("CD-8 A", "CD8a"),
        ("CD3", "CD3e"),
        ("CD3\u03b5", "CD3e"),
        ("panCK", "Pan-CK"),
        ("Pan-CK", "Pan-CK"),
        ("pan ck", "Pan-CK"),
        ("cytokeratin", "Pan-CK"),
        ("AE1/AE3", "Pan-CK"),
        ("SMA", "alpha-SMA"),
        ("aSMA", "alpha-SMA"),
        ("alpha-SMA", "alpha-SMA"),
        ("\u03b1-SMA", "alpha-SMA"),
        ("Ki-67", "Ki67"),
        ("ki67", "Ki67"),
        ("PDL1", "PD-L1"),
        ("pd-l1", "PD-L1"),
        ("PD1", "PD-1"),
        ("DAPI", "Hoechst"),
        ("Hoechst", "Hoechst"),
        ("ecad", "E-cadherin"),
        ("FoxP3", "FOXP3"),
    ],
)
def test_usual_spellings_find_their_marker(panel, spelling, name):
    assert panel.names[panel.index(spelling)] == name


def test_every_alias_leads_to_a_marker_and_hides_none(panel):
    folded = {fold(name) for name in panel.names}
    assert set(ALIASES.values()) <= folded
    assert not set(ALIASES) & folded


def test_unknown_target_lists_what_there_is(panel):
    with pytest.raises(UnknownTargetError, match=r"unknown target 'HER2'; this model has: Hoechst, .*alpha-SMA"):
        panel.index("HER2")


def test_selection_keeps_the_order_and_drops_repeats(panel):
    chosen = panel.select(["panCK", "CD8", "cytokeratin"])
    assert [panel.names[i] for i in chosen] == ["Pan-CK", "CD8a"]
    assert panel.select(["all"]) == tuple(range(18))
    with pytest.raises(UnknownTargetError, match="no target given"):
        panel.select([" "])


def test_panels_and_markers_check_themselves():
    with pytest.raises(ValueError, match="must differ"):
        Panel((Marker("CD8", (0, 0, 0)), Marker("cd-8", (1, 1, 1))))
    with pytest.raises(ValueError, match="letter or digit"):
        Marker("--", (0, 0, 0))
    with pytest.raises(ValueError, match="0-255"):
        Marker("CD8", (0, 0, 256))


@pytest.mark.parametrize("own", ["DAPI", "Haematoxylin", "Hoechst"])
def test_models_of_other_laboratories_may_be_named_by_an_alias(own):
    other = Panel((Marker(own, (0, 0, 255)), Marker("CD8", (0, 255, 0))))
    assert [other.index(name) for name in ("Hoechst", "DAPI", "CD8a", "cd8")] == [0, 0, 1, 1]
