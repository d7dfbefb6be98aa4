from __future__ import annotations

import pytest

from mupd_wsi.slides import RawMpp, pixelsize

OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">{}</Image></OME>'


def test_aperio() -> None:
    text = "Aperio Image Library v11.2.1 \r\n46000x32914 (240x240) JPEG/RGB Q=30|AppMag = 20|MPP = 0.4990|Left = 25.6"
    assert pixelsize.from_aperio(text) == (RawMpp(0.499, 0.499, "aperio.MPP"), 20.0)
    assert pixelsize.from_aperio("Aperio Image Library|MPP = unknown") == (None, None)


@pytest.mark.parametrize(
    ("size", "unit", "um"),
    [("0.25", None, 0.25), ("250", "nm", 0.25), ("2.5e-4", "mm", 0.25), ("0.25", "\u00b5m", 0.25), ("2500", "Å", 0.25)],
)
def test_ome_units(size: str, unit: str | None, um: float) -> None:
    units = f'PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"' if unit else ""
    xml = OME.format(f'<Pixels PhysicalSizeX="{size}" PhysicalSizeY="{size}" {units}/>')
    found, _ = pixelsize.from_ome_xml(xml)
    assert found is not None
    assert (found.x, found.y) == pytest.approx((um, um))


def test_ome_without_a_usable_size() -> None:
    pixels = '<Pixels PhysicalSizeX="1" PhysicalSizeY="1" PhysicalSizeXUnit="pixel" PhysicalSizeYUnit="pixel"/>'
    assert pixelsize.from_ome_xml(OME.format(pixels)) == (None, None)
    assert pixelsize.from_ome_xml("<not xml") == (None, None)


@pytest.mark.parametrize(("unit", "um"), [(3, 0.25), (2, 0.635), (None, 0.635)])
def test_tiff_resolution(unit: int | None, um: float) -> None:
    found = pixelsize.from_tiff_resolution((40000, 1), (80000, 2), unit)
    assert found is not None
    assert (found.x, found.y) == pytest.approx((um, um))


def test_tiff_resolution_that_says_nothing() -> None:
    assert pixelsize.from_tiff_resolution((1, 1), (1, 1), 1) is None
    assert pixelsize.from_tiff_resolution((0, 1), (1, 1), 3) is None
    assert pixelsize.from_tiff_resolution(None, None, 3) is None


@pytest.mark.parametrize("dpi", [(72, 72), (96.0, 96.0), (300, 300), None, (0, 0), (float("inf"), 1.0)])
def test_printing_resolutions_are_no_pixel_size(dpi: tuple[float, float] | None) -> None:
    assert pixelsize.from_dpi(dpi) is None


def test_microscopic_dots_per_inch() -> None:
    found = pixelsize.from_dpi((50800.0, 50800.0))
    assert found is not None
    assert (found.x, found.y) == (0.5, 0.5)
    assert pixelsize.drop_print_resolution(found) is found
    assert pixelsize.drop_print_resolution(RawMpp(352.8, 352.8, "tags")) is None


@pytest.mark.parametrize("text", ["", "abc", "nan", "-1", "0", "inf"])
def test_nonsense_out_of_openslide(text: str) -> None:
    assert pixelsize.from_openslide({"openslide.mpp-x": text, "openslide.mpp-y": "0.5"}) == (None, None)
