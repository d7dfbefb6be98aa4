"""Slides for all tests: the real ones where they are, else synthetic ones of the same kind: nothing is skipped."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import tifffile
from hypothesis import settings
from numpy.typing import NDArray
from scripts import ROOT, load_script

# ``make test-long`` runs property tests on many more examples: pytest --hypothesis-profile=long.
settings.register_profile("quick", deadline=None, max_examples=100)
settings.register_profile("long", deadline=None, max_examples=3000)
settings.load_profile("quick")

REAL_SLIDES = ROOT.parent / "shared" / "data" / "slides"


class SyntheticSlide(Protocol):
    """Makes a slide once a session; the same request gives the same file."""

    def __call__(
        self, width: int = 1300, height: int = 900, mpp: float | None = 0.5, style: str = "svs", seed: int = 0
    ) -> Path: ...


def write_tiled(path: Path, pixels: NDArray[np.uint8], mpp: float | None) -> Path:
    """A generic tiled TIFF of one level; losslessly compressed."""
    density = 1e4 / mpp if mpp else 1
    tifffile.imwrite(
        path,
        pixels,
        tile=(256, 256),
        photometric="rgb",
        compression="deflate",
        resolution=(density, density),
        resolutionunit="CENTIMETER" if mpp else "NONE",
        metadata=None,
    )
    return path


@pytest.fixture(scope="session")
def synthetic_slide(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    folder = tmp_path_factory.mktemp("synthetic")
    script = load_script("make_synthetic_slide")

    def make(width: int = 1300, height: int = 900, mpp: float | None = 0.5, style: str = "svs", seed: int = 0) -> Path:
        path = folder / f"synthetic-{width}x{height}-{mpp}-{seed}.{'svs' if style == 'svs' else 'tif'}"
        if not path.exists():
            script.make_synthetic_slide(path, width, height, mpp=mpp, style=style, seed=seed)
        return path

    return make


@pytest.fixture(scope="session")
def cmu_slide(synthetic_slide: SyntheticSlide) -> Path:
    """Aperio JPEG, one level, 0.499 um/px, H&E."""
    for place in (REAL_SLIDES, ROOT / "sample_data"):
        if (place / "CMU-1-Small-Region.svs").is_file():
            return place / "CMU-1-Small-Region.svs"
    return synthetic_slide(2220, 2967, 0.499)


@pytest.fixture(scope="session")
def eas2_slide(synthetic_slide: SyntheticSlide) -> Path:
    """Aperio JPEG pyramid, 0.263 um/px, H&E; 1.26 gigapixels where the real one is."""
    return _real("EAS2-HE1.svs") or synthetic_slide(5001, 7003, 0.263018)


@pytest.fixture(scope="session")
def tcga_slide(synthetic_slide: SyntheticSlide) -> Path:
    """Aperio slide (JPEG 2000 where the real one is) without a pixel size, H&E."""
    return _real("TCGA-CR-7395-01A-01-TS1.svs") or synthetic_slide(2221, 1783, None)


@pytest.fixture(scope="session")
def wrong_mpp_slide(synthetic_slide: SyntheticSlide) -> Path:
    """Generic tiled TIFF whose tags state 1000 um/px."""
    return _real("A_BB_563479_1.svs") or synthetic_slide(2480, 2560, 1000.0, "tiff")


@pytest.fixture(scope="session")
def ihc_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DAB IHC slide whose tags state 1000 um/px."""
    if real := _real("ihc-dab-wrong-mpp.tif"):
        return real
    pixels = np.full((1024, 1024, 3), 243, np.uint8)
    pixels[200:800, 200:800] = (190, 198, 215)
    pixels[300:500, 300:700] = (130, 90, 50)
    return write_tiled(tmp_path_factory.mktemp("ihc") / "ihc.tif", pixels, 1000.0)


@pytest.fixture(scope="session")
def fluorescence_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fluorescence slide: blue nuclei on black, 0.228 um/px."""
    if real := _real("fluorescence-DAPI.ndpi"):
        return real
    pixels = np.zeros((1024, 1024, 3), np.uint8)
    pixels[100:900:24, 100:900:24, 2] = 230
    return write_tiled(tmp_path_factory.mktemp("fluorescence") / "dapi.tif", pixels, 0.228)


def _real(name: str) -> Path | None:
    path = REAL_SLIDES / name
    return path if path.is_file() else None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a small file system in memory; where that is not allowed there is nothing to test."""
    mounted: list[Path] = []

    def mount(size: str, *options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "none", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a file system here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)
