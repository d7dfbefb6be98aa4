"""What a checked request tells the user beforehand."""

from __future__ import annotations

from mupd_wsi.engine.facts import weak_markers
from mupd_wsi.markers import Marker
from mupd_wsi.model import find_bundle, read_info

STRONG, WEAK = Marker("Hoechst", (0, 0, 255)), Marker("FOXP3", (255, 0, 0))


def test_weakly_predicted_markers_are_told_with_their_figure() -> None:
    measured = {"Hoechst": {"pearson_8px": 0.9}, "FOXP3": {"pearson_8px": 0.3049}}
    (sentence,) = weak_markers(measured, (STRONG, WEAK))
    assert "FOXP3 0.30" in sentence
    assert "Hoechst" not in sentence


def test_nothing_is_told_of_good_or_unmeasured_markers() -> None:
    assert weak_markers({"Hoechst": {"pearson_8px": 0.9}}, (STRONG,)) == []
    assert weak_markers({}, (WEAK,)) == []


def test_the_shipped_model_is_weak_for_pd_l1_and_not_for_nuclei() -> None:
    info = read_info(find_bundle("mupd-mini"))
    markers = {marker.name: marker for marker in info.panel.markers}
    for table in ("dev", "dev_sample"):
        assert weak_markers(info.metrics[table], (markers["PD-L1"],))
        assert not weak_markers(info.metrics[table], (markers["Hoechst"],))
