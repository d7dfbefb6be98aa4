"""Stand-ins for the network and the writer: quick, exact, and simple enough to be oracles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from mupd_wsi.geometry import Region
from mupd_wsi.markers import Marker, Panel
from mupd_wsi.model.memory import BatchWidth
from mupd_wsi.writers.spec import ImageSpec

PANEL = Panel((Marker("Hoechst", (64, 96, 255)), Marker("CD8a", (0, 255, 0)), Marker("Pan-CK", (255, 0, 0))))


class StandInInfo:
    """A model card with small tiles."""

    name = "stand-in"
    version = "1"
    license = "Apache-2.0"
    credit = "nobody"
    weights_sha256 = "0" * 64
    steps = 4
    panel = PANEL
    stain_reference = None
    period = 1
    painted = False
    fuse = "crop"
    metrics: Mapping[str, Any] = {}
    display_window: Mapping[str, tuple[tuple[float, float], ...]] = {
        "mean": ((0.0, 255.0), (0.0, 255.0), (0.0, 255.0)),
        "sample": ((0.0, 255.0), (0.0, 255.0), (0.0, 255.0)),
    }

    def __init__(self, mpp: float = 1.3, tile: int = 96, halo: int = 16) -> None:
        self.mpp, self.tile, self.halo = mpp, tile, halo

    def halo_of(self, steps: int) -> int:
        del steps
        return self.halo


class StandInStainer:
    """A network whose marker c is the darkness of colour c: what comes out tells where it came from."""

    device = "cpu"
    precision = "fp32"

    def __init__(self, mpp: float = 1.3, tile: int = 96, halo: int = 16, batch_size: int = 2) -> None:
        self.info = StandInInfo(mpp, tile, halo)
        self.batch_size = batch_size
        self.fitting = BatchWidth(batch_size)
        self.origins: list[tuple[int, int]] = []

    def stain(
        self,
        rgb: NDArray[np.uint8],
        origins: Sequence[tuple[int, int]],
        options: Any,
        channels: Sequence[int] | None = None,
        margin: int = 0,
        parts: Any = None,
    ) -> NDArray[np.float32]:
        del options, parts
        channels = range(len(PANEL)) if channels is None else channels
        assert rgb.shape == (len(origins), self.info.tile, self.info.tile, 3)
        self.origins += list(origins)
        inner = slice(margin, -margin or None)
        return np.moveaxis(255 - rgb[:, inner, inner, list(channels)].astype(np.float32), 3, 1)

    @property
    def own_origins(self) -> list[tuple[int, int]]:
        """Tiles of the slide's own grid, without those that the seam check stains on a shifted one."""
        core, halo = self.info.tile - 2 * self.info.halo, self.info.halo
        return [origin for origin in self.origins if all((v + halo) % core == 0 for v in origin)]

    def close(self) -> None:
        """Nothing is held."""


class MemoryWriter:
    """Keeps the image, and checks that bands come as the protocol says."""

    def __init__(self, path: Path, spec: ImageSpec) -> None:
        self.path, self.spec = path, spec
        self.pixels = np.zeros((spec.samples, spec.size.height, spec.size.width), np.uint8)
        self.rows = 0
        self.finished = self.aborted = False

    def write(self, rows: Region, pixels: NDArray[np.uint8]) -> None:
        assert (rows.x, rows.width, rows.y) == (0, self.spec.size.width, self.rows)
        assert pixels.shape == (self.spec.samples, rows.height, rows.width)
        assert pixels.dtype == np.uint8
        self.pixels[:, rows.y : rows.bottom] = pixels
        self.rows = rows.bottom

    def finish(self) -> Path:
        assert self.rows == self.spec.size.height
        self.finished = True
        self.path.touch()
        return self.path

    def abort(self) -> None:
        self.aborted = not self.finished


def levels_of(path: Path) -> list[NDArray[np.uint8]]:
    """All levels of an output, OME-TIFF or OME-Zarr, largest first."""
    if path.suffix == ".zarr":
        group = zarr.open_group(str(path), mode="r")
        return [np.asarray(group[str(level)]) for level in range(len(list(group.array_keys())))]
    with tifffile.TiffFile(path) as tiff:
        return [level.asarray() for level in tiff.series[0].levels]


def save_slide(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """Write pixels, uint8 (h, w, 3), as a PNG, which is a flat slide without um/px."""
    Image.fromarray(pixels).save(path)
    return path


def he_texture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Something pink with violet specks all over, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = (226, 160, 196)
    coarse = rng.random((-(-height // 6), -(-width // 6))) < 0.3
    picture[np.kron(coarse, np.ones((6, 6), bool))[:height, :width]] = (98, 66, 142)
    noise = rng.integers(-12, 13, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)
