"""Going on where a run was: what is done is not done again, and the result is the same to the pixel."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from standins import StandInStainer, he_texture, levels_of, save_slide

from mupd_wsi.engine.journal import Core, Journal
from mupd_wsi.errors import OutputError
from mupd_wsi.pipeline import Progress, StainOptions, stain_slide
from mupd_wsi.request import StainResult

OPTIONS = StainOptions(mpp=0.5, style="mif", tissue_mask=False)
TILES, COLUMNS = 24, 6


class Stop(Exception):  # noqa: N818
    """Stands for whatever ends a run."""


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return save_slide(tmp_path / "s.png", he_texture(600, 900))


@pytest.fixture(autouse=True)
def quick_preview(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of such a short run; the tests that look at pictures have real ones."""
    if "real_preview" not in request.fixturenames:
        monkeypatch.setattr("mupd_wsi.pipeline.save_preview", lambda path, *_: path.touch())


@pytest.fixture
def real_preview() -> None:
    """Asks for real preview pictures."""


def run(slide: Path, output: Path, stainer: StandInStainer | None = None, **keywords: Any) -> StainResult:
    options = keywords.pop("options", OPTIONS)
    return stain_slide(slide, "all", model=stainer or StandInStainer(), output=output, options=options, **keywords)


def stopped(slide: Path, output: Path, after: int, **keywords: Any) -> None:
    """A run that ends after some tiles were handed to the writer."""

    def stop(progress: Progress) -> None:
        if progress.done >= after:
            raise Stop

    with pytest.raises(Stop):
        run(slide, output, StandInStainer(batch_size=1), progress=stop, **keywords)


def same(one: Path, other: Path) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(levels_of(one), levels_of(other), strict=True))


@pytest.mark.usefixtures("real_preview")
@pytest.mark.parametrize("name", ["o.ome.tiff", "o.ome.zarr"])
def test_work_goes_on_where_it_was(name: str, slide: Path, tmp_path: Path) -> None:
    whole = run(slide, tmp_path / f"whole-{name}")
    assert whole.details["tiles"]["stained"] == TILES
    stopped(slide, tmp_path / name, 9)
    stopped(slide, tmp_path / name, 20)
    stainer, seen = StandInStainer(batch_size=1), list[Progress]()
    result = run(slide, tmp_path / name, stainer, progress=seen.append)
    resumed = result.details["tiles"]["resumed"]
    assert 15 <= resumed <= 20
    assert len(stainer.own_origins) == TILES - resumed
    assert seen[0] == Progress(resumed, TILES, resumed)
    assert same(result.output, whole.output)
    assert result.preview.read_bytes() == whole.preview.read_bytes()
    assert not (tmp_path / ".o.mupd-part").exists()


def test_blended_work_goes_on_too(slide: Path, tmp_path: Path) -> None:
    """Tiles that depend on each other run again, and cores that are kept are not written twice."""
    options = StainOptions(mpp=0.5, style="mif", tissue_mask=False, fuse="blend")
    whole = run(slide, tmp_path / "whole.ome.tiff", options=options)
    stopped(slide, tmp_path / "o.ome.tiff", 9, options=options)
    seen = list[Progress]()
    result = run(slide, tmp_path / "o.ome.tiff", progress=seen.append, options=options)
    assert result.details["tiles"]["resumed"] > 0
    assert seen[-1].done == seen[-1].total == TILES
    assert same(result.output, whole.output)


def test_everything_kept_takes_no_network(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mupd_wsi.pipeline.save_preview", _raiser(Stop()))
        with pytest.raises(Stop):
            run(slide, tmp_path / "o.ome.tiff")
    stainer = StandInStainer()
    result = run(slide, tmp_path / "o.ome.tiff", stainer)
    assert stainer.own_origins == []
    assert result.details["tiles"]["resumed"] == TILES


def test_the_network_does_not_wait_for_kept_tiles_to_be_written_again(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it makes meanwhile waits in the log: the writer has read one tile when the last one is stained."""
    whole = run(slide, tmp_path / "whole.ome.tiff")
    stopped(slide, tmp_path / "o.ome.tiff", 9)
    gate, replay, reports = threading.Event(), Journal.replay, list[Progress]()

    def replay_at_last(journal: Journal, core: tuple[int, int, int], index: int) -> Core:
        assert gate.wait(30)
        return replay(journal, core, index)

    def look(progress: Progress) -> None:
        reports.append(progress)
        if progress.done == TILES:
            gate.set()

    monkeypatch.setattr(Journal, "replay", replay_at_last)
    result = run(slide, tmp_path / "o.ome.tiff", StandInStainer(batch_size=1), progress=look)
    assert reports[0].resumed > 0
    assert same(result.output, whole.output)


def test_a_hole_in_the_log_is_filled(slide: Path, tmp_path: Path) -> None:
    """Work may be kept in any order: what is missing is stained, and all of it is written in raster order."""
    whole = run(slide, tmp_path / "whole.ome.tiff")
    stopped(slide, tmp_path / "o.ome.tiff", 20)
    log = tmp_path / ".o.mupd-part" / "tiles.log"
    content = log.read_bytes()
    first = 8 + 32
    header = 4 + 8 + 8 + 4 + 4 + 4
    index = int.from_bytes(content[first + 4 : first + 12], "little")  # tiles are kept as they are rendered
    length = int.from_bytes(content[first + 24 : first + 28], "little")
    log.write_bytes(content[:first] + content[first + header + length :])
    stainer = StandInStainer()
    result = run(slide, tmp_path / "o.ome.tiff", stainer)
    assert (64 * (index % COLUMNS) - 16, 64 * (index // COLUMNS) - 16) in stainer.own_origins
    assert same(result.output, whole.output)


def test_restart_begins_anew(slide: Path, tmp_path: Path) -> None:
    stopped(slide, tmp_path / "o.ome.tiff", 9)
    stainer = StandInStainer()
    options = StainOptions(mpp=0.5, style="mif", tissue_mask=False, restart=True)
    result = run(slide, tmp_path / "o.ome.tiff", stainer, options=options)
    assert len(stainer.own_origins) == TILES
    assert result.details["tiles"]["resumed"] == 0


class Other(StandInStainer):
    def __init__(self, **facts: Any) -> None:
        super().__init__()
        for name, value in facts.items():
            setattr(self if hasattr(type(self), name) else self.info, name, value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: {"stainer": Other(weights_sha256="1" * 64)}, "the model's weights was 000"),
        (lambda: {"stainer": Other(version="2")}, "model.version was 1, now 2"),
        (lambda: {"stainer": Other(precision="bf16")}, "model.precision was fp32, now bf16"),
        (lambda: {"stainer": Other(device="cuda:1")}, "device was cpu, now cuda"),
        (lambda: {"options": StainOptions(mpp=0.5, style="mif")}, "tissue_mask was false, now true"),
        (lambda: {"options": StainOptions(mpp=0.51, style="mif", tissue_mask=False)}, "slide.mpp.x was 0.5, now 0.51"),
        (
            lambda: {"options": StainOptions(mpp=0.5, style="mif", tissue_mask=False, normalise=False)},
            "normalise was true, now false",
        ),
        (
            lambda: {"options": StainOptions(mpp=0.5, style="mif", tissue_mask=False, readout="sample", seed=5)},
            "readout was mean, now sample",
        ),
    ],
)
def test_a_difference_is_an_error_that_names_it(
    change: Callable[[], dict[str, Any]], named: str, slide: Path, tmp_path: Path
) -> None:
    stopped(slide, tmp_path / "o.ome.tiff", 9)
    log = (tmp_path / ".o.mupd-part" / "tiles.log").read_bytes()
    with pytest.raises(OutputError) as caught:
        run(slide, tmp_path / "o.ome.tiff", **change())
    assert named in str(caught.value)
    assert "--restart" in str(caught.value)
    assert (tmp_path / ".o.mupd-part" / "tiles.log").read_bytes() == log


def test_another_slide_and_another_ending_are_named(slide: Path, tmp_path: Path) -> None:
    stopped(slide, tmp_path / "o.ome.tiff", 9)
    with pytest.raises(OutputError, match=r"output was o\.ome\.tiff, now o\.ome\.zarr"):
        run(slide, tmp_path / "o.ome.zarr")
    save_slide(slide, he_texture(600, 900, seed=1))
    with pytest.raises(OutputError, match="the slide's content was"):
        run(slide, tmp_path / "o.ome.tiff")


def test_threads_and_batches_may_differ(slide: Path, tmp_path: Path) -> None:
    stopped(slide, tmp_path / "o.ome.tiff", 9)
    options = StainOptions(mpp=0.5, style="mif", tissue_mask=False, workers=3, overwrite=True)
    assert run(slide, tmp_path / "o.ome.tiff", StandInStainer(batch_size=5), options=options).details["tiles"][
        "resumed"
    ]


def test_a_damaged_manifest_says_restart(slide: Path, tmp_path: Path) -> None:
    stopped(slide, tmp_path / "o.ome.tiff", 9)
    (tmp_path / ".o.mupd-part" / "manifest.json").write_text("{")
    with pytest.raises(OutputError, match="--restart"):
        run(slide, tmp_path / "o.ome.tiff")


@pytest.mark.parametrize("left", [b"", bytes(700)])
def test_a_manifest_that_a_power_cut_has_emptied_is_written_anew(left: bytes, slide: Path, tmp_path: Path) -> None:
    stopped(slide, tmp_path / "o.ome.tiff", 9)
    (tmp_path / ".o.mupd-part" / "manifest.json").write_bytes(left)
    assert run(slide, tmp_path / "o.ome.tiff").details["tiles"]["resumed"] > 0
    stopped(slide, tmp_path / "p.ome.tiff", 9)
    (tmp_path / ".p.mupd-part" / "manifest.json").write_bytes(left)
    other = StainOptions(mpp=0.51, style="mif", tissue_mask=False)
    assert run(slide, tmp_path / "p.ome.tiff", options=other).details["tiles"]["resumed"] == 0


def test_a_disk_that_fails_when_it_is_synced_ends_the_run_and_work_is_kept(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log's thread hears of it; what the disk has is gone on with."""
    keepers: list[Any] = []

    class Kept(_work().Keeper):  # type: ignore[misc]
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            keepers.append(self)

    def fail(progress: Progress) -> None:
        if progress.done == 9:
            monkeypatch.setattr("os.fsync", _raiser(OSError(errno.EIO, "Input/output error")))
            keepers[0].sync()

    with monkeypatch.context() as patch:
        patch.setattr("mupd_wsi.engine.work.Keeper", Kept)
        with pytest.raises(OutputError, match="Input/output error"):
            run(slide, tmp_path / "o.ome.tiff", StandInStainer(batch_size=1), progress=fail)
    monkeypatch.undo()
    monkeypatch.setattr("mupd_wsi.pipeline.save_preview", lambda path, *_: path.touch())
    assert run(slide, tmp_path / "o.ome.tiff").details["tiles"]["resumed"] >= 5


def test_the_log_reaches_the_disk_after_the_manifest_it_is_judged_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr("os.fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink().name))
    keeper = _work().Keeper(tmp_path)
    keeper.sync()  # nothing to sync yet
    (tmp_path / "manifest.json").touch()
    keeper.journal = Journal(tmp_path / "tiles.log", b"k" * 32)
    keeper.sync()
    keeper.sync()
    assert synced == ["manifest.json", tmp_path.name, "tiles.log", "tiles.log"]
    keeper.close()
    keeper.sync()
    assert len(synced) == 4


@pytest.mark.parametrize("name", ["o.ome.tiff", "o.ome.zarr"])
@pytest.mark.parametrize("moved", range(4))
def test_stopped_while_names_are_given(
    name: str, moved: int, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two renames; without --overwrite, and with an old output that is being replaced."""
    whole = run(slide, tmp_path / "whole.ome.tiff")
    for overwrite in (False, True):
        options = StainOptions(mpp=0.5, style="mif", tissue_mask=False, overwrite=overwrite)
        with monkeypatch.context() as patch:
            calls = _after(moved, Stop())
            for move in ("move_file", "move_folder"):
                patch.setattr(f"mupd_wsi.engine.work.{move}", calls(getattr(_work(), move)))
            patch.setattr(Path, "replace", _but_the_mark(Path.replace))
            with pytest.raises(Stop):
                run(slide, tmp_path / name, options=options)
        stainer = StandInStainer()
        result = run(slide, tmp_path / name, stainer, options=OPTIONS)
        assert stainer.own_origins == []
        assert same(result.output, whole.output)
        assert json.loads(result.record.read_text())["tiles"]["resumed"] == TILES
        with pytest.raises(OutputError, match="--overwrite"):
            run(slide, tmp_path / name)
        assert not (tmp_path / ".o.mupd-part").exists()


def test_two_runs_of_one_output(slide: Path, tmp_path: Path) -> None:
    """The second one leaves at once, and the first one does not notice."""
    refused = []

    def second(progress: Progress) -> None:
        if progress.done == 6:
            with pytest.raises(OutputError, match="already working") as caught:
                run(slide, tmp_path / "o.ome.tiff")
            refused.append(caught.value)

    result = run(slide, tmp_path / "o.ome.tiff", progress=second)
    assert len(refused) == 1
    assert result.details["tiles"]["resumed"] == 0


def test_outputs_do_not_follow_links(slide: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    names = ["o.ome.tiff", "o.preview.png", "o.ome.tiff.json"]
    for name in names:
        (outside / name).write_text("precious")
        (tmp_path / name).symlink_to(outside / name)
    options = StainOptions(mpp=0.5, style="mif", tissue_mask=False, overwrite=True)
    result = run(slide, tmp_path / "o.ome.tiff", options=options)
    assert {(outside / name).read_text() for name in names} == {"precious"}
    assert not any((tmp_path / name).is_symlink() for name in names)
    assert result.output.stat().st_size > 1000


def test_a_work_folder_that_is_a_link_is_refused(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / ".o.mupd-part").symlink_to(tmp_path / "outside")
    with pytest.raises(OutputError, match="in the way"):
        run(slide, tmp_path / "o.ome.tiff")
    assert list((tmp_path / "outside").iterdir()) == []


def _work() -> Any:
    import mupd_wsi.engine.work as module

    return module


def _raiser(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


def _but_the_mark(replace: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
    """Fails at the last step of all, when every name is given."""

    def call(path: Path, target: Path) -> Path:
        if path.name == "publishing":
            raise Stop
        return replace(path, target)

    return call


def _after(count: int, error: Exception) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wraps functions that together work so often, and then raise."""
    left = [count]

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise error
            return function(*arguments, **keywords)

        return call

    return wrap
