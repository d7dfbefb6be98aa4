"""Row bands written by several workers are the image that one process writes."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest
import tifffile
import zarr
from damaged import jpeg_slide, without_bytes
from numpy.typing import NDArray
from standins import StandInStainer, he_texture, save_slide

from mupd_wsi.batch import bands, one_slide
from mupd_wsi.batch.bands import split
from mupd_wsi.batch.one_slide import stain_on_cluster
from mupd_wsi.engine import work
from mupd_wsi.engine.resources import opened_job
from mupd_wsi.errors import ClusterError, OutputError
from mupd_wsi.geometry import Region, Size
from mupd_wsi.pipeline import stain_slide
from mupd_wsi.request import Progress, StainOptions, StainResult
from mupd_wsi.tiling import TileGrid
from mupd_wsi.validation import validate_slide
from mupd_wsi.writers.pyramid import TILE
from mupd_wsi.writers.sharing import SharedImage, join_fragments

OPTIONS = StainOptions(mpp=1.3, style="mif")
OneProcess = Callable[[int, int, str], StainResult]


class DoneFuture:
    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work

    def result(self) -> Any:
        return self._work()

    def release(self) -> None:
        """Nothing is held."""


class HereClient:
    """A cluster of this thread; its bands end in an order of its own, and some are done twice."""

    def __init__(self, threads: int = 3) -> None:
        self._threads = threads
        self.bands = 0

    def nthreads(self) -> dict[str, int]:
        return {"here": self._threads}

    def submit(self, work: Callable[..., Any], *arguments: Any, **_: Any) -> DoneFuture:
        def run() -> Any:
            if work is bands.stain_band and self.bands == 0:
                work(*arguments)  # its worker has died after all was written
            self.bands += work is bands.stain_band
            return work(*arguments)

        return DoneFuture(run)

    def cancel(self, futures: list[DoneFuture], force: bool) -> None:
        del futures, force


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> Any:
    def opened(slide: Any, targets: Any, model: Any, output: Any, options: StainOptions, watch: Any) -> Any:
        del model
        plain = replace(options, device="auto", batch_size=None)
        return opened_job(
            slide, targets, StandInStainer(tile=160, batch_size=options.batch_size or 1), output, plain, watch
        )

    def shuffled(futures: list[DoneFuture]) -> list[DoneFuture]:
        return random.Random(len(futures)).sample(futures, len(futures))

    monkeypatch.setattr(bands, "opened_job", opened)
    monkeypatch.setattr(one_slide, "opened_job", opened)
    monkeypatch.setattr(distributed, "as_completed", shuffled)
    yield
    bands.release()


def levels(path: Path) -> list[NDArray[np.uint8]]:
    if path.is_dir():
        group: Any = zarr.open_group(path, mode="r")
        return [np.asarray(group[name][:]) for name in sorted(group.array_keys())]
    with tifffile.TiffFile(path) as tiff:
        return [level.asarray() for level in tiff.series[0].levels]


@pytest.mark.parametrize("ending", [".ome.zarr", ".ome.tiff"])
@pytest.mark.parametrize(("width", "height"), [(200, 1700), (1100, 1200), (200, 150), (130, 512), (130, 513)])
def test_the_same_image_preview_and_record(ending: str, width: int, height: int, tmp_path: Path) -> None:
    pixels = he_texture(height, width)
    pixels[height // 3 : height // 2] = 243
    slide = save_slide(tmp_path / "s.png", pixels)
    alone = stain_slide(slide, "all", model=StandInStainer(tile=160), output=tmp_path / f"a{ending}", options=OPTIONS)
    told: list[Progress] = []
    together = stain_on_cluster(
        slide, "all", HereClient(), output=tmp_path / f"b{ending}", options=OPTIONS, progress=told.append
    )
    for one, other in zip(levels(alone.output), levels(together.output), strict=True):
        assert np.array_equal(one, other)
    assert alone.preview.read_bytes() == together.preview.read_bytes()
    assert validate_slide(together.output).ok
    differing = {"created", "seconds", "workers", "cluster", "output", "seams"}
    differing |= {"batch_size", "batch_size_that_fitted", "expected_peak_bytes"}  # of a process
    assert {k: v for k, v in together.details.items() if k not in differing} == {
        k: v for k, v in alone.details.items() if k not in differing
    }
    assert told[-1] == Progress(alone.details["tiles"]["stained"], alone.details["tiles"]["stained"])
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_damage_that_workers_meet_is_told(tmp_path: Path) -> None:
    slide = without_bytes(jpeg_slide(tmp_path / "s.tif", he_texture(1400, 1400)), 3 * 11 + 4)
    alone = stain_slide(slide, "all", model=StandInStainer(tile=160), output=tmp_path / "a.ome.zarr", options=OPTIONS)
    together = stain_on_cluster(slide, "all", HereClient(), output=tmp_path / "b.ome.zarr", options=OPTIONS)
    assert together.details["damaged_tiles"] == alone.details["damaged_tiles"]
    assert together.details["damaged_tiles"]["left_as_background"] == 1
    assert together.warnings == alone.warnings
    assert alone.preview.read_bytes() == together.preview.read_bytes()


@pytest.mark.parametrize("roi", [Region(0, 0, 200, 1100), Region(70, 333, 137, 922), Region(5, 900, 60, 10)])
@pytest.mark.parametrize("style", ["mif", "ihc"])
def test_a_part_of_a_slide(roi: Region, style: str, tmp_path: Path) -> None:
    slide = save_slide(tmp_path / "s.png", he_texture(1400, 240))
    options = replace(OPTIONS, roi=roi, style=style, tissue_mask=False)
    run = partial(stain_slide, model=StandInStainer(tile=160))
    alone = run(slide, "CD8", output=tmp_path / "a.ome.zarr", options=options)
    together = stain_on_cluster(slide, "CD8", HereClient(7), output=tmp_path / "b.ome.zarr", options=options)
    assert all(map(np.array_equal, levels(alone.output), levels(together.output)))
    assert alone.preview.read_bytes() == together.preview.read_bytes()


@pytest.mark.parametrize("core", [64, 288, 512, 700])
@pytest.mark.parametrize("workers", [1, 2, 50])
def test_bands_cover_the_region_and_no_shard_lies_in_three(core: int, workers: int) -> None:
    for y, height in ((0, 10_000), (333, 4321), (0, 100), (500, 512), (77, 1025)):
        region = Region(40, y, 900, height)
        found = split(TileGrid(Size(1000, 12_000), region, core + 20, 10), workers)
        assert (found[0].y, found[-1].bottom) == (region.y, region.bottom)
        assert all(a.bottom == b.y and b.y % core == 0 for a, b in itertools.pairwise(found))
        assert all(band.height >= min(TILE, height) for band in found)


def test_workers_that_would_stain_otherwise_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = save_slide(tmp_path / "s.png", he_texture(900, 300))
    real = bands.facts_here

    def other(request: Any) -> Any:
        facts = real(request)
        return replace(facts, facts=dict(facts.facts) | {"model": {"precision": "bf16"}})

    monkeypatch.setattr(one_slide, "facts_here", other)
    with pytest.raises(ClusterError, match="disagree on model"):
        stain_on_cluster(slide, "CD8", HereClient(), output=tmp_path / "x.ome.zarr", options=OPTIONS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.png"]


class Stop(Exception):  # noqa: N818
    """Stands for whatever ends a client."""


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> OneProcess:
    """What one process makes of a slide, given by height, width and ending."""

    @cache
    def made(height: int, width: int, ending: str) -> StainResult:
        folder = tmp_path_factory.mktemp("alone")
        slide = save_slide(folder / "s.png", he_texture(height, width))
        return stain_slide(slide, "all", model=StandInStainer(tile=160), output=folder / f"a{ending}", options=OPTIONS)

    return made


def fatal(function: Callable[..., Any]) -> Callable[..., Any]:
    """Ends a run where it is called; not the thread that syncs the log by the clock."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            raise Stop
        return function(*arguments, **keywords)

    return call


def stopped(slide: Path, output: Path, after: int, **keywords: Any) -> int:
    """A run that ends when some bands are there; returns the tiles of these."""
    told: list[Progress] = []

    def stop(progress: Progress) -> None:
        told.append(progress)
        if len(told) > after:
            raise Stop

    with pytest.raises(Stop):
        stain_on_cluster(slide, "all", HereClient(3), output=output, options=OPTIONS, progress=stop, **keywords)
    return told[-1].done


@pytest.mark.parametrize("ending", [".ome.zarr", ".ome.tiff"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_client_that_was_stopped_goes_on(ending: str, after: int, one_process: OneProcess, tmp_path: Path) -> None:
    slide = save_slide(tmp_path / "s.png", he_texture(2100, 200))
    alone = one_process(2100, 200, ending)
    output = tmp_path / f"b{ending}"
    tiles = stopped(slide, output, after)
    assert 0 < tiles < alone.details["tiles"]["stained"]
    client, told = HereClient(threads=50), list[Progress]()  # more workers do not change how the slide was cut
    together = stain_on_cluster(slide, "all", client, output=output, options=OPTIONS, progress=told.append)
    assert told[0] == Progress(tiles, alone.details["tiles"]["stained"], tiles)
    assert together.details["tiles"]["resumed"] == tiles
    assert client.bands == 4 - after
    assert all(map(np.array_equal, levels(alone.output), levels(together.output)))
    assert alone.preview.read_bytes() == together.preview.read_bytes()
    assert validate_slide(together.output).ok
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("stage", ["save_preview", "_finish_pyramid", "write_record", "_complete"])
def test_a_client_that_was_stopped_at_the_end_stains_nothing(
    stage: str, one_process: OneProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = save_slide(tmp_path / "s.png", he_texture(1300, 600))
    output, client = tmp_path / "b.ome.zarr", HereClient()

    def stop(*_: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(one_slide, stage, stop)
        with pytest.raises(Stop):
            stain_on_cluster(slide, "all", HereClient(), output=output, options=OPTIONS)
    together = stain_on_cluster(slide, "all", client, output=output, options=OPTIONS)
    assert client.bands == 0
    alone = one_process(1300, 600, ".ome.zarr")
    assert all(map(np.array_equal, levels(alone.output), levels(together.output)))
    assert alone.preview.read_bytes() == together.preview.read_bytes()


@pytest.mark.parametrize("name", ["move_file", "move_folder", "sync_folder"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_client_that_was_stopped_while_names_were_given_stains_nothing(
    name: str, overwrite: bool, one_process: OneProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any name is given, before the output's, and after it; also where an old output is replaced."""
    slide = save_slide(tmp_path / "s.png", he_texture(1300, 600))
    output, client = tmp_path / "b.ome.zarr", HereClient()
    if overwrite:
        stain_on_cluster(slide, "CD8", HereClient(), output=output, options=OPTIONS)

    with monkeypatch.context() as patch:
        patch.setattr(f"mupd_wsi.engine.work.{name}", fatal(getattr(work, name)))
        with pytest.raises(Stop):
            stain_on_cluster(slide, "all", HereClient(), output=output, options=replace(OPTIONS, overwrite=overwrite))
    together = stain_on_cluster(slide, "all", client, output=output, options=OPTIONS)
    assert client.bands == 0
    alone = one_process(1300, 600, ".ome.zarr")
    assert all(map(np.array_equal, levels(alone.output), levels(together.output)))
    assert alone.preview.read_bytes() == together.preview.read_bytes()
    assert validate_slide(output).ok
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_somebody_else_has_put_there_meanwhile_is_not_taken_for_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, output = save_slide(tmp_path / "s.png", he_texture(2100, 200)), tmp_path / "b.ome.zarr"

    with monkeypatch.context() as patch:
        patch.setattr("mupd_wsi.engine.work.sync_folder", fatal(work.sync_folder))
        with pytest.raises(Stop):
            stain_on_cluster(slide, "all", HereClient(), output=output, options=OPTIONS)
    output.rename(tmp_path / "c.ome.zarr")
    output.mkdir()
    client = HereClient()
    stain_on_cluster(slide, "all", client, output=output, options=OPTIONS)
    assert client.bands == 4
    assert validate_slide(output).ok


def test_a_band_whose_notes_are_damaged_is_stained_again(one_process: OneProcess, tmp_path: Path) -> None:
    slide, alone = save_slide(tmp_path / "s.png", he_texture(2100, 200)), one_process(2100, 200, ".ome.zarr")
    stopped(slide, tmp_path / "b.ome.zarr", 4)
    for part in (tmp_path / ".b.mupd-part").glob("bands-*.npz"):
        part.write_bytes(part.read_bytes()[:100])
    client = HereClient()
    together = stain_on_cluster(slide, "all", client, output=tmp_path / "b.ome.zarr", options=OPTIONS)
    assert client.bands == 4
    assert all(map(np.array_equal, levels(alone.output), levels(together.output)))


def test_two_clients_of_one_output(tmp_path: Path) -> None:
    """The second one leaves at once, and so does a single process; the first one does not notice."""
    slide, output, refused = save_slide(tmp_path / "s.png", he_texture(1300, 200)), tmp_path / "b.ome.zarr", []

    def others(_: Progress) -> None:
        for run in (
            partial(stain_on_cluster, client=HereClient()),
            partial(stain_slide, model=StandInStainer(tile=160)),
        ):
            with pytest.raises(OutputError, match="already working") as caught:
                run(slide, "all", output=output, options=OPTIONS)
            refused.append(caught.value)

    stain_on_cluster(slide, "all", HereClient(), output=output, options=OPTIONS, progress=others)
    assert refused
    assert validate_slide(output).ok


def test_one_process_does_not_go_on_with_bands_nor_delete_them(tmp_path: Path) -> None:
    slide = save_slide(tmp_path / "s.png", he_texture(2100, 200))
    stopped(slide, tmp_path / "b.ome.zarr", 2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("bands-*/**/*")}
    run = partial(stain_slide, slide, "all", model=StandInStainer(tile=160), output=tmp_path / "b.ome.zarr")
    with pytest.raises(OutputError, match="cluster was true, now not given"):
        run(options=OPTIONS)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("bands-*/**/*")}
    assert run(options=replace(OPTIONS, restart=True)).details["tiles"]["resumed"] == 0
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_rows_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="same storage"):
        join_fragments(SharedImage(tmp_path, 900, 0), 1)
    writer = bands.RowWriter(SharedImage(tmp_path / "nowhere", 900, 0), 0)
    with pytest.raises(OutputError, match="is gone"):
        writer.write(np.ones((1, 600, 10), np.uint8))
