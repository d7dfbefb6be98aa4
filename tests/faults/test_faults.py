"""Real faults under a run: full disks, limits, slides that break. Finished tiles are kept, and told what happened."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from damaged import jpeg_slide, without_bytes
from PIL import Image
from standins import StandInStainer, he_texture

from mupd_wsi.errors import DeviceMemoryError, OutputError, SlideError, SlideLostError, WorkerError
from mupd_wsi.geometry import Region
from mupd_wsi.model import SampleOptions, load_model
from mupd_wsi.model.memory import BatchWidth
from mupd_wsi.pipeline import Progress, StainOptions, stain_slide
from mupd_wsi.preview import DAMAGE_COLOR
from mupd_wsi.request import StainResult
from mupd_wsi.slides import Slide, open_slide
from mupd_wsi.slides.cache import TileCache

OPTIONS = StainOptions(style="mif", tissue_mask=False, overwrite=True)
MPP = 1.3
WORK = ".o.mupd-part"


def run(slide: Slide | Path, output: Path, stainer: StandInStainer | None = None, **keywords: Any) -> StainResult:
    used = stainer or StandInStainer(tile=128, batch_size=1)
    return stain_slide(slide, "all", model=used, output=output, options=keywords.pop("options", OPTIONS), **keywords)


def level0(path: Path) -> Any:
    with tifffile.TiffFile(path) as tiff:
        return tiff.series[0].levels[0].asarray()


# ---------------------------------------------------------------------------------------------- disks


@pytest.mark.parametrize("name", ["o.ome.tiff", pytest.param("o.ome.zarr", marks=pytest.mark.faults)])
def test_a_full_disk(
    name: str, small_disk: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mupd_wsi.engine.preparing.estimated_bytes", lambda *_: 0)
    monkeypatch.setattr("mupd_wsi.engine.preparing.journal_bytes", lambda *_: 0)
    slide, disk = jpeg_slide(tmp_path / "s.tif", he_texture(900, 900)), small_disk("1500k")
    with pytest.raises(OutputError, match="No space left on device"):
        run(slide, disk / name)
    assert [path.name for path in disk.iterdir()] == [WORK]
    subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
    result = run(slide, disk / name)
    assert result.details["tiles"]["resumed"] > 3
    whole = run(slide, tmp_path / "whole.ome.tiff")
    if name.endswith("tiff"):
        assert np.array_equal(level0(result.output), level0(whole.output))


@pytest.mark.faults
def test_a_disk_that_is_too_small_is_told_before_any_work(small_disk: Callable[..., Path], tmp_path: Path) -> None:
    slide, disk = jpeg_slide(tmp_path / "s.tif", he_texture(900, 900)), small_disk("500k")
    with pytest.raises(OutputError, match="not enough free disk"):
        run(slide, disk / "o.ome.tiff")
    assert list(disk.iterdir()) == []


@pytest.mark.faults
def test_a_read_only_disk(small_disk: Callable[..., Path], tmp_path: Path) -> None:
    slide, disk = jpeg_slide(tmp_path / "s.tif", he_texture(300, 300)), small_disk("5m", "ro")
    with pytest.raises(OutputError, match="not writable"):
        run(slide, disk / "o.ome.tiff")


def test_a_file_size_limit(tmp_path: Path) -> None:
    """As ``ulimit -f`` sets it."""
    slide = jpeg_slide(tmp_path / "s.tif", he_texture(900, 900))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, before[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            run(slide, tmp_path / "o.ome.tiff")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name for path in tmp_path.iterdir()} == {"s.tif", WORK}
    assert run(slide, tmp_path / "o.ome.tiff").details["tiles"]["resumed"] > 0


# ---------------------------------------------------------------------------------------------- slides


@pytest.mark.faults
def test_a_slide_that_becomes_unreadable_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off while it is read, as by a copy that replaces it; then put back."""
    slide = jpeg_slide(tmp_path / "s.tif", he_texture(1300, 1300))
    content = slide.read_bytes()

    def cut(progress: Progress) -> None:
        if progress.done == 20:
            os.truncate(slide, len(content) // 2)

    with open_slide(slide) as opened:
        monkeypatch.setattr(opened, "_cache", TileCache(0))
        with pytest.raises(SlideLostError, match="put it back"):
            run(opened, tmp_path / "o.ome.tiff", progress=cut)
    slide.write_bytes(content)
    stainer = StandInStainer(tile=128, batch_size=1)
    result = run(slide, tmp_path / "o.ome.tiff", stainer)
    assert result.details["tiles"]["resumed"] >= 10
    assert result.details["damaged_tiles"]["left_as_background"] == 0
    whole = run(slide, tmp_path / "whole.ome.tiff")
    assert np.array_equal(level0(result.output), level0(whole.output))


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """One of 121 tiles is zeros."""
    return without_bytes(jpeg_slide(tmp_path / "s.tif", he_texture(1400, 1400)), 3 * 11 + 4)


def test_a_damaged_tile_is_background_counted_and_shown(damaged: Path, tmp_path: Path) -> None:
    result = run(damaged, tmp_path / "o.ome.tiff")
    image = level0(result.output)
    hole = image[:, 3 * 128 : 4 * 128, 4 * 128 : 5 * 128]
    assert (hole == 0).all()
    assert (image[:, 3 * 128 : 4 * 128, 3 * 128 : 4 * 128] != 0).mean() > 0.9
    told = json.loads(result.record.read_text())
    assert told["damaged_tiles"]["left_as_background"] == 1
    assert told["damaged_tiles"]["tiles"] == [{"level": 0, "row": 3, "column": 4, "region": [512, 384, 128, 128]}]
    assert any("1 damaged tile" in warning for warning in told["warnings"])
    assert any("tile 4,3 of level 0" in warning for warning in result.warnings)
    with Image.open(result.preview) as picture:
        crossed = (np.asarray(picture.convert("RGB"), int) - DAMAGE_COLOR) ** 2
    assert (crossed.sum(axis=2) < 2000).sum() > 50


@pytest.mark.faults
def test_more_than_one_in_a_hundred_is_an_error_and_work_is_kept(damaged: Path, tmp_path: Path) -> None:
    without_bytes(damaged, 7 * 11 + 7)
    with pytest.raises(SlideError, match="2 of 121 tiles are damaged, more than 1%"):
        run(damaged, tmp_path / "o.ome.tiff", StandInStainer(tile=128, batch_size=1))
    assert {path.name for path in tmp_path.iterdir()} <= {"s.tif", WORK}


def stopped(slide: Path, output: Path, after: int) -> None:
    def stop(progress: Progress) -> None:
        if progress.done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(slide, output, progress=stop)


@pytest.mark.faults
def test_damage_is_remembered_when_work_goes_on(damaged: Path, tmp_path: Path) -> None:
    whole = run(damaged, tmp_path / "whole.ome.tiff")
    stopped(damaged, tmp_path / "o.ome.tiff", 140)
    result = run(damaged, tmp_path / "o.ome.tiff")
    assert result.details["tiles"]["resumed"] >= 130
    assert result.details["damaged_tiles"] == whole.details["damaged_tiles"]
    assert np.array_equal(level0(result.output), level0(whole.output))


@pytest.mark.faults
def test_a_slide_that_was_mended_is_stained_there(tmp_path: Path) -> None:
    """The fingerprint, of the first and the last MiB, does not see it."""
    slide = jpeg_slide(tmp_path / "s.tif", he_texture(1400, 1400), quality=100)
    content = slide.read_bytes()
    assert len(content) > 2.5 * 2**20
    whole = run(slide, tmp_path / "whole.ome.tiff")
    without_bytes(slide, 5 * 11 + 5)
    stopped(slide, tmp_path / "o.ome.tiff", 140)
    slide.write_bytes(content)
    result = run(slide, tmp_path / "o.ome.tiff")
    assert result.details["tiles"]["resumed"] > 100
    assert np.array_equal(level0(result.output), level0(whole.output))


@pytest.mark.faults
def test_a_damaged_tile_of_a_smaller_level_is_computed_from_the_larger(tmp_path: Path) -> None:
    from scripts import load_script

    slide = tmp_path / "s.svs"
    load_script("make_synthetic_slide").make_synthetic_slide(slide, 4000, 3000, mpp=0.25, style="svs", seed=0)
    with open_slide(slide) as opened:
        assert len(opened.levels) > 1
        place = Region(10, 10, 200, 200)
        right = opened.read_level(1, place)
    with tifffile.TiffFile(slide) as tiff:
        smaller = [p.aspage() for p in tiff.pages if p.aspage().is_tiled][1]
        offset, count = smaller.dataoffsets[0], smaller.databytecounts[0]
    with slide.open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(count))
    with open_slide(slide) as opened:
        with pytest.raises(SlideError):
            opened.read_level(1, place)
        with opened.forgiving():
            mended = opened.read_level(1, place)
            assert [(tile.level, tile.row, tile.column) for tile in opened.damaged] == [(1, 0, 0)]
            assert not opened.damaged[0].is_lost
    assert np.abs(mended.astype(int) - right).mean() < 4


@pytest.mark.faults
def test_openslide_goes_on_after_a_damaged_tile(fluorescence_slide: Path, tmp_path: Path) -> None:
    """OpenSlide itself answers nothing any more after the first error."""
    if fluorescence_slide.suffix != ".ndpi":
        pytest.skip("needs a real NDPI slide")
    data = bytearray(fluorescence_slide.read_bytes())
    middle = len(data) // 4
    data[middle : middle + 3000] = bytes(3000)
    path = tmp_path / fluorescence_slide.name
    path.write_bytes(data)
    with open_slide(fluorescence_slide) as whole, open_slide(path) as slide:
        size, same, lost = slide.size, 0, 0
        for y in range(0, size.height - 512, 512):
            place = Region(0, y, size.width, 512)
            try:
                same += int(np.array_equal(slide.read_level(0, place), whole.read_level(0, place)))
            except SlideError:
                lost += 1
    assert lost > 0
    assert same > 0


# ---------------------------------------------------------------------------------------------- memory and threads


class SmallDevice(StandInStainer):
    """Has memory for so many tiles at a time; a real allocator fails in the same way."""

    def __init__(self, fits: int, **shape: int) -> None:
        super().__init__(**shape)
        self.fits, self.tried = fits, list[int]()

    def stain(self, rgb: Any, origins: Any, options: Any, channels: Any, margin: int, tissue: Any = None) -> Any:
        parts: dict[int, Any] = {}

        def work(part: slice, width: int) -> None:
            self.tried.append(width)
            if width > self.fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            parts[part.start] = StandInStainer.stain(self, rgb[part], origins[part], options, channels, margin, tissue)

        self.fitting.in_parts(len(rgb), work)
        return np.concatenate(list(parts.values()))


@pytest.mark.faults
def test_a_full_device_halves_its_batch_and_the_record_says_so(tmp_path: Path) -> None:
    slide = jpeg_slide(tmp_path / "s.tif", he_texture(900, 900))
    whole = run(slide, tmp_path / "whole.ome.tiff")
    stainer = SmallDevice(3, tile=128, batch_size=16)
    result = run(slide, tmp_path / "o.ome.tiff", stainer)
    assert (result.details["batch_size"], result.details["batch_size_that_fitted"]) == (16, 2)
    assert stainer.tried.count(16) <= 2  # two batches are in flight
    assert np.array_equal(level0(result.output), level0(whole.output))


def test_a_device_without_memory_for_one_tile_is_an_error(tmp_path: Path) -> None:
    slide = jpeg_slide(tmp_path / "s.tif", he_texture(300, 300))
    with pytest.raises(DeviceMemoryError, match="--device cpu"):
        run(slide, tmp_path / "o.ome.tiff", SmallDevice(0, tile=128, batch_size=4))


def test_other_errors_of_a_device_are_not_taken_for_that() -> None:
    def broken(part: slice, width: int) -> None:
        raise RuntimeError(f"device-side assert at {part} of {width}")

    with pytest.raises(RuntimeError, match="device-side assert"):
        BatchWidth(8).in_parts(8, broken)


def test_the_real_stainer_meets_a_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's own call fails as torch's allocator does; the tiles come out the same."""
    stainer = load_model("mupd-mini", device="cpu", precision="fp32", batch_size=2)
    side = stainer.info.tile
    rgb = np.stack([he_texture(side, side, seed) for seed in range(2)])
    ask = ([(0, 0), (512, 0)], SampleOptions(), [7], stainer.info.halo)
    right = stainer.stain(rgb, *ask)
    real, failures = stainer._planes, [1]

    def failing(*arguments: Any) -> Any:
        if failures:
            failures.pop()
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return real(*arguments)

    monkeypatch.setattr(stainer, "_planes", failing)
    assert np.array_equal(stainer.stain(rgb, *ask), right)
    assert stainer.fitting.width == 1
    stainer.close()


@pytest.mark.parametrize("place", ["render", *(pytest.param(p, marks=pytest.mark.faults) for p in ("read", "stain"))])
def test_a_thread_that_dies(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends as a thread ends that calls ``sys.exit``: quietly."""
    slide, stainer = jpeg_slide(tmp_path / "s.tif", he_texture(900, 900)), StandInStainer(tile=128, batch_size=1)
    holder = {"read": Slide, "stain": stainer, "render": sys.modules["mupd_wsi.engine.job"].StainJob}[place]
    real, left = getattr(holder, place), [60 if place == "read" else 30]

    def dying(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            sys.exit(0)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(holder, place, dying)
        with pytest.raises(WorkerError, match="ended by itself"):
            run(slide, tmp_path / "o.ome.tiff", stainer)
    assert run(slide, tmp_path / "o.ome.tiff").details["tiles"]["resumed"] > 0
