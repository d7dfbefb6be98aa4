"""The way of tiles to a GPU and back, on a stand-in whose memory is the processor's: nothing here was run on CUDA."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from standins import he_texture, save_slide
from torch import Tensor

from mupd_wsi import StainOptions, stain_slide
from mupd_wsi.model import SampleOptions, Stainer, load_model
from mupd_wsi.model.devices import MAX_BATCH, TILE_BYTES_PER_PX, Gpu


class FakeGpu(Gpu):
    """Keeps account of what is asked of it.

    Args:
        free: bytes.
        fits: tiles that its allocator has room for.
    """

    def __init__(self, free: int = 2**33, fits: int = 64) -> None:
        super().__init__("cuda")
        self.free, self.fits = free, fits
        self.uploads: list[tuple[int, ...]] = []
        self.threads: set[str] = set()
        self.waits = self.settled = 0

    @property
    def place(self) -> torch.device:
        return torch.device("cpu")

    def free_bytes(self) -> int:
        return self.free

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self.threads.add(threading.current_thread().name)
        yield

    def settle(self) -> None:
        self.settled += 1

    def upload(self, values: NDArray[Any]) -> Tensor:
        self.uploads.append(values.shape)
        if len(values) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().upload(values)

    def _pinned(self, values: Tensor) -> Tensor:
        return values.clone()

    def _wait(self) -> None:
        self.waits += 1


def on(gpu: FakeGpu, batch_size: int | None = None) -> Stainer:
    loaded = load_model("mupd-mini", device="cpu", precision="fp32")
    return Stainer(loaded.info, loaded._network, "cuda", "fp32", batch_size, gpu)


@pytest.fixture(scope="module")
def tiles() -> NDArray[np.uint8]:
    return np.stack([he_texture(256, 256, seed) for seed in range(5)])


CORNERS = [(128 * i, 0) for i in range(5)]


def stained(stainer: Stainer, tiles: NDArray[np.uint8], **how: Any) -> NDArray[np.float32]:
    return np.asarray(stainer.stain(tiles, CORNERS, SampleOptions(**how), [0, 7], 32), np.float32)


@pytest.mark.parametrize(
    ("free", "expected"), [(0, 1), (2**30, 1), (4 * 2**30, 4), (80 * 2**30, MAX_BATCH), (10**15, MAX_BATCH)]
)
def test_a_batch_is_what_fits_into_half_of_the_free_memory(free: int, expected: int) -> None:
    fitting = FakeGpu(free).tiles_that_fit(736)
    assert fitting == expected
    assert fitting == 1 or 2 * fitting * TILE_BYTES_PER_PX * 736**2 < free


def test_the_model_takes_that_for_its_batch() -> None:
    assert on(FakeGpu(4 * 2**30)).batch_size == 4
    assert on(FakeGpu(4 * 2**30), batch_size=3).batch_size == 3


@pytest.mark.parametrize("how", [{}, {"readout": "sample", "steps": 1, "seed": 3}])
def test_tiles_come_back_as_from_a_processor(how: dict[str, Any], tiles: NDArray[np.uint8]) -> None:
    """Sums in another order: at most a grey level, in fewer than 1 pixel of 10,000."""
    gpu = FakeGpu()
    there = np.rint(stained(on(gpu, 2), tiles, **how))
    here = np.rint(stained(load_model("mupd-mini", device="cpu", precision="fp32"), tiles, **how))
    assert there.shape == here.shape == (5, 2, 192, 192)
    assert np.abs(there - here).max() <= 1
    assert (there != here).mean() < 1e-4
    assert gpu.uploads == [(2, 256, 256, 3)] * 3  # of one shape, the last filled up
    assert gpu.waits == 3


def test_weights_that_are_made_on_the_way_are_there_before_another_stream_uses_them(tiles: NDArray[np.uint8]) -> None:
    gpu = FakeGpu()
    stainer = on(gpu, 8)
    for _ in range(2):
        stained(stainer, tiles)
    assert gpu.settled == 1  # after the head of two channels was cut out


def test_a_full_memory_halves_the_batch(tiles: NDArray[np.uint8]) -> None:
    gpu = FakeGpu(fits=2)
    stainer = on(gpu, 5)
    found = stained(stainer, tiles)
    np.testing.assert_array_equal(found, stained(on(FakeGpu(), 2), tiles))
    assert (stainer.batch_size, stainer.fitting.width) == (5, 2)


def test_a_slide_comes_out_as_from_a_processor(tmp_path: Path) -> None:
    save_slide(tmp_path / "s.png", he_texture(1100, 700))
    options = StainOptions(mpp=1.3, style="mif", tissue_mask=False)
    gpu = FakeGpu()
    made = []
    for name, model in (("there", on(gpu)), ("here", load_model("mupd-mini", device="cpu", precision="fp32"))):
        place = tmp_path / f"{name}.ome.tiff"
        result = stain_slide(tmp_path / "s.png", "CD8", model=model, output=place, options=options)
        made.append(tifffile.imread(result.output).astype(int))
        assert result.details["device"] == {"there": "cuda", "here": "cpu"}[name]
    assert np.abs(made[0] - made[1]).max() <= 1
    assert (made[0] != made[1]).mean() < 1e-4
    assert all(name.startswith("mupd-batch") or name == "MainThread" for name in gpu.threads)
