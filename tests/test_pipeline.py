from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from standins import MemoryWriter, StandInStainer, he_texture, save_slide

from mupd_wsi import pipeline
from mupd_wsi.errors import (
    BundleError,
    MupdError,
    NotHEError,
    OutputError,
    PixelSizeError,
    RegionError,
    SlideError,
    UnknownTargetError,
    UsageError,
)
from mupd_wsi.geometry import Region, output_size
from mupd_wsi.model.bundle import find_bundle
from mupd_wsi.pipeline import Progress, StainOptions, plan_stain, stain_slide
from mupd_wsi.rendering import to_brightfield
from mupd_wsi.slides import open_slide
from mupd_wsi.writers.spec import ImageSpec

Stain = Callable[..., MemoryWriter]


@pytest.fixture
def stain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stain:
    """Run ``stain_slide`` into memory, without a preview: returns the writer with the image in it."""
    writers: list[MemoryWriter] = []

    def open_memory(path: Path, spec: ImageSpec, *, format: str) -> MemoryWriter:
        assert format == "ome-tiff"
        writers.append(MemoryWriter(path, spec))
        return writers[-1]

    monkeypatch.setattr(pipeline, "open_writer", open_memory)
    monkeypatch.setattr(pipeline, "save_preview", lambda path, *_: path.touch())

    def run(slide: Path, targets: str, model: Any = None, **options: Any) -> MemoryWriter:
        stain_slide(
            slide,
            targets,
            model=model or StandInStainer(),
            output=tmp_path / "out.ome.tiff",
            options=StainOptions(**{"mpp": 0.5, "style": "mif", "tissue_mask": False, "overwrite": True} | options),
        )
        assert writers[-1].finished
        return writers[-1]

    return run


def darkness(slide: Path, mpp: float, out_mpp: float) -> NDArray[np.uint8]:
    """The whole slide read in one piece, as the stand-in would stain it: (3, h, w)."""
    with open_slide(slide, mpp=mpp) as opened:
        size = output_size(opened.size, opened.mpp, out_mpp)
        return 255 - np.moveaxis(opened.read(Region(0, 0, size.width, size.height), out_mpp), 2, 0)


@pytest.mark.parametrize("size", [(611, 433), (1, 1), (1, 700), (900, 1), (20, 13), (333, 166)])
@pytest.mark.parametrize("mpp", [0.25, 0.5, 1.3, 2.0])
def test_tiled_equals_whole_at_any_size(size: tuple[int, int], mpp: float, stain: Stain, tmp_path: Path) -> None:
    slide = save_slide(tmp_path / "s.png", he_texture(size[1], size[0]))
    image = stain(slide, "all", mpp=mpp).pixels
    assert np.array_equal(image, darkness(slide, mpp, 1.3))


@pytest.mark.parametrize("mpp", [0.25, 0.263, 0.5, 0.7, 1.3, 1.9])
def test_every_mark_lands_within_half_an_output_pixel(mpp: float, stain: Stain, tmp_path: Path) -> None:
    """Dark squares at known places of the slide, in its corners and at its edges too."""
    width, height, side = round(600 / mpp), round(410 / mpp), round(13 / mpp)
    pixels = np.full((height, width, 3), 255, np.uint8)
    places = [
        (round(fx * (width - side)), round(fy * (height - side))) for fx in (0, 0.3, 0.77, 1) for fy in (0, 0.41, 1)
    ]
    for x, y in places:
        pixels[y : y + side, x : x + side] = 0
    image = stain(save_slide(tmp_path / "s.png", pixels), "Hoechst", mpp=mpp).pixels[0].astype(float)
    scale = 1.3 / mpp
    for x, y in places:
        left, top = max(0, int(x / scale) - 5), max(0, int(y / scale) - 5)
        weight = image[top : int((y + side) / scale) + 6, left : int((x + side) / scale) + 6]
        rows, columns = top + np.arange(weight.shape[0]) + 0.5, left + np.arange(weight.shape[1]) + 0.5
        assert weight.sum(0) @ columns / weight.sum() == pytest.approx((x + side / 2) / scale, abs=0.5)
        assert weight.sum(1) @ rows / weight.sum() == pytest.approx((y + side / 2) / scale, abs=0.5)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_roi_is_the_crop_of_the_whole_bit_for_bit(data: st.DataObject, stain: Stain, tmp_path: Path) -> None:
    slide = tmp_path / "s.png"
    if not slide.exists():
        half = he_texture(500, 640)
        half[:, 300:] = 243
        save_slide(slide, half)
    masked = data.draw(st.booleans())
    x, y = data.draw(st.integers(0, 639)), data.draw(st.integers(0, 499))
    roi = Region(x, y, data.draw(st.integers(1, 640 - x)), data.draw(st.integers(1, 500 - y)))
    whole = stain(slide, "all", tissue_mask=masked).pixels
    part = stain(slide, "all", tissue_mask=masked, roi=roi)
    left, top = (round(v / 1.3) for v in part.spec.origin_um)
    size = part.spec.size
    assert np.array_equal(part.pixels, whole[:, top : top + size.height, left : left + size.width])
    scale = 1.3 / 0.5
    assert left * scale <= roi.x + 1e-3
    assert (left + size.width) * scale >= min(roi.right, 640) - 1e-3
    assert size.width <= roi.width / scale + 2


def test_threads_and_batches_do_not_change_a_byte(stain: Stain, tmp_path: Path) -> None:
    slide = save_slide(tmp_path / "s.png", he_texture(700, 900))
    images = [
        stain(slide, "all", StandInStainer(batch_size=batch), workers=workers).pixels
        for batch, workers in ((1, 1), (2, 3), (5, 8))
    ]
    assert all(np.array_equal(images[0], image) for image in images[1:])


def test_a_model_that_needs_no_torch_is_run_without_it(tmp_path: Path) -> None:
    slide = save_slide(tmp_path / "s.png", he_texture(300, 400))
    code = (
        "import sys; from pathlib import Path; from benchmarks.identity_run import Identity; import mupd_wsi\n"
        "options = mupd_wsi.StainOptions(tissue_mask=False, normalise=False, mpp=0.5)\n"
        "mupd_wsi.stain_slide(sys.argv[1], 'all', model=Identity(0.5), output=sys.argv[2], options=options)\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(slide), str(tmp_path / "out.ome.tiff")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True)
    assert done.stdout.strip() == "False"
    pixels = tifffile.imread(tmp_path / "out.ome.tiff")
    assert np.abs(pixels.astype(int) - he_texture(300, 400)).mean() < 8  # it is a JPEG


def test_the_network_sees_each_tile_of_the_slides_grid_once(stain: Stain, tmp_path: Path) -> None:
    stainer = StandInStainer(tile=96, halo=16)
    stain(save_slide(tmp_path / "s.png", he_texture(500, 640)), "all", stainer, roi=Region(200, 180, 400, 300))
    assert len(stainer.origins) == len(stainer.own_origins) + 1  # a place that the seam check stains a second time
    assert sorted(stainer.own_origins) == [(64 * x - 16, 64 * y - 16) for x in (1, 2, 3) for y in (1, 2)]


def test_glass_is_background_and_is_not_stained(stain: Stain, tmp_path: Path) -> None:
    pixels = np.full((1500, 2000, 3), 242, np.uint8)
    pixels[200:900, 100:800] = he_texture(700, 700)
    slide = save_slide(tmp_path / "s.png", pixels)
    for style, background in (("mif", 0), ("ihc", 255)):
        stainer = StandInStainer()
        image = stain(slide, "Hoechst", stainer, style=style, tissue_mask=True).pixels
        assert (image[:, :, 400:] == background).all()
        assert (image[:, 420:] == background).all()
        assert abs(image[:, 90:330, 50:290].astype(int) - background).mean() > 40
        assert len(stainer.origins) < 100


def test_ihc_is_painted_from_nuclei_and_marker(stain: Stain, tmp_path: Path) -> None:
    slide = save_slide(tmp_path / "s.png", he_texture(300, 400))
    planes = darkness(slide, 0.5, 1.3)
    image = stain(slide, "CD8", style=None)
    assert image.spec.is_rgb
    assert np.array_equal(image.pixels, to_brightfield(planes[0], planes[1]))
    assert np.array_equal(stain(slide, "DAPI", style="ihc").pixels, to_brightfield(planes[0], None))


def test_a_blank_slide_gives_an_empty_output_and_says_so(stain: Stain, tmp_path: Path) -> None:
    slide = save_slide(tmp_path / "s.png", np.full((400, 500, 3), 243, np.uint8))
    stainer = StandInStainer()
    image = stain(slide, "CD8", stainer, style="ihc", tissue_mask=True)
    assert stainer.origins == []
    assert (image.pixels == 255).all()
    assert any("no tissue" in warning for warning in image.spec.provenance["warnings"])


@pytest.mark.usefixtures("stain")
def test_progress_rises_to_the_number_of_tissue_tiles(tmp_path: Path) -> None:
    slide = save_slide(tmp_path / "s.png", he_texture(500, 640))
    seen: list[Progress] = []
    stain_slide(
        slide,
        "CD8",
        model=StandInStainer(batch_size=1),
        output=tmp_path / "p.ome.tiff",
        options=StainOptions(mpp=0.5),
        progress=seen.append,
    )
    assert seen[0].done == 0
    assert [p.done for p in seen] == sorted({p.done for p in seen})
    assert seen[-1].done == seen[-1].total == 16


# ---------------------------------------------------------------------------------------------- bad input


def run_bad(slide: Path, folder: Path, targets: str = "CD8", **keywords: Any) -> MupdError:
    """Stain what cannot be stained; returns the error after checking that nothing was written."""
    options = keywords.pop("options", StainOptions())
    output = keywords.pop("output", folder / "o.ome.tiff")
    before = sorted(folder.rglob("*"))
    with pytest.raises(MupdError) as caught:
        stain_slide(slide, targets, model=keywords.pop("model", StandInStainer()), output=output, options=options)
    assert sorted(folder.rglob("*")) == before
    assert "\n" not in str(caught.value.args[0])
    return caught.value


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return save_slide(tmp_path / "slide.png", he_texture(260, 300))


def test_files_that_are_no_slides(tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("not an image")
    (tmp_path / "empty.svs").touch()
    (tmp_path / "folder").mkdir()
    for name in ("text.svs", "empty.svs", "folder", "missing.svs"):
        assert isinstance(run_bad(tmp_path / name, tmp_path), SlideError)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_truncated_slide(share: float, cmu_slide: Path, tmp_path: Path) -> None:
    content = cmu_slide.read_bytes()
    (tmp_path / "cut.svs").write_bytes(content[: int(len(content) * share)])
    assert isinstance(run_bad(tmp_path / "cut.svs", tmp_path), SlideError)


def test_a_tampered_model(slide: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(find_bundle("mupd-mini"), bundle)
    weights = bytearray((bundle / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (bundle / "model.safetensors").write_bytes(weights)
    error = run_bad(slide, tmp_path, model=bundle, options=StainOptions(mpp=0.5))
    assert isinstance(error, BundleError)
    assert "damaged" in str(error)


def test_missing_and_absurd_pixel_sizes(slide: Path, tmp_path: Path) -> None:
    error = run_bad(slide, tmp_path)
    assert isinstance(error, PixelSizeError)
    assert "--mpp" in str(error)
    assert isinstance(run_bad(slide, tmp_path, options=StainOptions(mpp=1000)), PixelSizeError)


@pytest.mark.parametrize("roi", [Region(-1, 0, 10, 10), Region(0, 0, 301, 10), Region(500, 500, 10, 10)])
def test_a_roi_outside_the_slide(roi: Region, slide: Path, tmp_path: Path) -> None:
    error = run_bad(slide, tmp_path, options=StainOptions(mpp=0.5, roi=roi))
    assert isinstance(error, RegionError)
    assert "300 x 260" in str(error)


@pytest.mark.parametrize("targets", ["CD99", "CD8,CD99", "", " , "])
def test_unknown_and_missing_targets(targets: str, slide: Path, tmp_path: Path) -> None:
    error = run_bad(slide, tmp_path, targets, options=StainOptions(mpp=0.5))
    assert isinstance(error, UnknownTargetError)
    assert "Hoechst, CD8a, Pan-CK" in str(error)


def test_several_targets_as_brightfield(slide: Path, tmp_path: Path) -> None:
    error = run_bad(slide, tmp_path, "CD8,Pan-CK", options=StainOptions(mpp=0.5, style="ihc"))
    assert isinstance(error, UsageError)
    assert "--as mif" in str(error)


def test_options_that_would_be_ignored_are_refused(slide: Path, tmp_path: Path) -> None:
    assert isinstance(run_bad(slide, tmp_path, options=StainOptions(mpp=0.5, device="cpu")), UsageError)
    with open_slide(slide, mpp=0.5) as opened, pytest.raises(UsageError, match="open_slide"):
        stain_slide(opened, "CD8", model=StandInStainer(), options=StainOptions(mpp=0.5))


@pytest.mark.parametrize("name", ["steps", "batch_size", "workers"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} must be at least 1"):
        StainOptions(**{name: 0})


def test_not_he_is_a_warning_and_with_strict_an_error(slide: Path, stain: Stain, tmp_path: Path) -> None:
    fluorescent = np.zeros((400, 400, 3), np.uint8)
    fluorescent[100:200, 100:200, 2] = 200
    dark = save_slide(tmp_path / "dark.png", fluorescent)
    error = run_bad(dark, tmp_path, options=StainOptions(mpp=0.5, strict=True))
    assert isinstance(error, NotHEError)
    assert any("H&E" in warning for warning in stain(dark, "CD8").spec.provenance["warnings"])
    assert stain(slide, "CD8", strict=True).spec.provenance["warnings"] == []


def test_output_places_that_cannot_be_written(slide: Path, tmp_path: Path) -> None:
    options = StainOptions(mpp=0.5)
    for output in (tmp_path / "no" / "o.ome.tiff", Path("/proc/o.ome.tiff")):
        assert isinstance(run_bad(slide, tmp_path, output=output, options=options), OutputError)


def test_too_little_free_disk(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mupd_wsi.engine.preparing.estimated_bytes", lambda *_: 10**18)
    assert "free disk" in str(run_bad(slide, tmp_path, options=StainOptions(mpp=0.5)))


# ---------------------------------------------------------------------------------------------- failures under way


def assert_only_kept_work(folder: Path, *others: str) -> None:
    """A stopped run leaves its finished tiles, and what is needed to go on from them; or nothing."""
    work = folder / ".o.mupd-part"
    assert {entry.name for entry in folder.iterdir()} - {work.name} == set(others)
    if work.exists():
        assert {entry.name for entry in work.iterdir()} == {"lock", "manifest.json", "tiles.log"}
        assert (work / "tiles.log").stat().st_size > 1000


class _Failing:
    """Makes one method of an object fail from its n-th call on."""

    def __init__(self, method: Callable[..., Any], error: BaseException, after: int) -> None:
        self.method, self.error, self.left = method, error, after

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.method(*arguments, **keywords)


@pytest.mark.parametrize("place", ["read", "stain", "write", "finish", "progress"])
@pytest.mark.parametrize("error", [OutputError("disk full"), SlideError("corrupt"), KeyboardInterrupt()])
def test_a_failure_anywhere_surfaces_and_keeps_finished_tiles(
    place: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threading.enumerate())
    slide_file = save_slide(tmp_path / "s.png", he_texture(600, 700))
    stainer = StandInStainer(batch_size=1)
    progress: Callable[[Progress], None] = _Failing(lambda _: None, error, 2) if place == "progress" else lambda _: None
    opened_writers = []

    def open_memory(path: Path, spec: ImageSpec, **_: str) -> MemoryWriter:
        writer = MemoryWriter(path, spec)
        for name in {"write", "finish"} & {place}:
            monkeypatch.setattr(writer, name, _Failing(getattr(writer, name), error, 1 if name == "write" else 0))
        opened_writers.append(writer)
        return writer

    monkeypatch.setattr(pipeline, "open_writer", open_memory)
    if place == "stain":
        monkeypatch.setattr(stainer, "stain", _Failing(stainer.stain, error, 3))
    with open_slide(slide_file, mpp=0.5) as opened:
        if place == "read":
            monkeypatch.setattr(opened, "read", _Failing(opened.read, error, 5))
        with pytest.raises(type(error)):
            stain_slide(opened, "all", model=stainer, output=tmp_path / "o.ome.tiff", progress=progress)
    assert opened_writers[0].aborted
    assert_only_kept_work(tmp_path, "s.png")
    assert not [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("mupd-")]


INTERRUPTED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from standins import StandInStainer
from mupd_wsi.pipeline import StainOptions, stain_slide

class Slow(StandInStainer):
    def stain(self, *arguments):
        time.sleep(0.05)
        return super().stain(*arguments)

folder = Path(sys.argv[2])
def progress(p):
    if p.done:
        (folder / "started").touch()
try:
    stain_slide(folder / "s.png", "all", model=Slow(batch_size=1), output=folder / sys.argv[3],
                options=StainOptions(mpp=0.5, tissue_mask=False), progress=progress)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("output", ["o.ome.tiff", "o.ome.zarr"])
def test_ctrl_c_leaves_finished_tiles_alone(output: str, tmp_path: Path) -> None:
    save_slide(tmp_path / "s.png", he_texture(1500, 1500))
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(Path(__file__).parent), str(tmp_path), output],
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
    )
    while process.poll() is None and not (tmp_path / "started").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert_only_kept_work(tmp_path, "s.png", "started")
    assert (tmp_path / ".o.mupd-part").exists()


# ---------------------------------------------------------------------------------------------- real outputs


def test_everything_lies_beside_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    slide_file = save_slide(tmp_path / "my slide.png", he_texture(900, 1100))
    result = stain_slide(slide_file, ["cd8"], model=StandInStainer(), options=StainOptions(mpp=0.5))
    assert result.output == Path("my slide.cd8.ome.tiff")
    names = {"my slide.png", "my slide.cd8.ome.tiff", "my slide.cd8.ome.tiff.json", "my slide.cd8.preview.png"}
    assert {entry.name for entry in tmp_path.iterdir()} == names
    record = json.loads(result.record.read_text(encoding="utf-8"))
    assert record == json.loads(json.dumps(result.details))
    assert record["notice"] == "virtual stain, research use only"
    assert "not chemical IHC" in record["rendering"]
    assert record["slide"]["mpp"] == {"x": 0.5, "y": 0.5, "source": "the user (--mpp)"}
    assert record["tiles"]["stained"] == record["tiles"]["total"] > 0
    assert {"prepare", "read", "network", "render", "write", "finish", "preview", "total"} <= set(record["seconds"])
    assert result.seconds > 0
    with Image.open(result.preview) as picture:
        assert picture.width == 1600


@pytest.mark.parametrize("name", ["o.ome.tiff", "o.ome.zarr"])
def test_what_is_written_reads_back(name: str, tmp_path: Path) -> None:
    import tifffile
    import zarr

    slide_file = save_slide(tmp_path / "s.png", he_texture(700, 900))
    roi = Region(260, 130, 600, 500)
    options = StainOptions(mpp=0.5, roi=roi, tissue_mask=False)
    result = stain_slide(slide_file, "all", model=StandInStainer(), output=tmp_path / name, options=options)
    if name.endswith("tiff"):
        with tifffile.TiffFile(result.output) as file:
            written = file.series[0].levels[0].asarray()
    else:
        written = np.asarray(zarr.open_group(str(result.output), mode="r")["0"])
    x, y = 100, 50
    expected = darkness(slide_file, 0.5, 1.3)[:, y : y + result.size.height, x : x + result.size.width]
    assert result.details["output"]["origin_um"] == [130.0, 65.0]
    assert np.array_equal(written, expected)


def test_overwrite_replaces_and_without_it_the_old_output_stays(slide: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.ome.tiff"
    output.write_bytes(b"old")
    error = run_bad(slide, tmp_path, options=StainOptions(mpp=0.5))
    assert "--overwrite" in str(error)
    assert output.read_bytes() == b"old"
    stain_slide(slide, "CD8", model=StandInStainer(), output=output, options=StainOptions(mpp=0.5, overwrite=True))
    assert output.read_bytes() != b"old"


def test_a_plan_tells_what_a_run_then_does(slide: Path, tmp_path: Path) -> None:
    options = StainOptions(mpp=0.5)
    before = sorted(tmp_path.iterdir())
    plan = plan_stain(slide, "CD8,Pan-CK", model=StandInStainer(), output=tmp_path / "o.ome.tiff", options=options)
    assert sorted(tmp_path.iterdir()) == before
    result = stain_slide(slide, "CD8,Pan-CK", model=StandInStainer(), output=plan.output, options=options)
    assert (plan.style, plan.file_format, plan.targets) == ("mif", "ome-tiff", ("CD8a", "Pan-CK"))
    assert plan.size == result.size
    assert (plan.tiles, plan.tiles_to_run) == (result.details["tiles"]["total"], result.details["tiles"]["stained"])
    assert plan.tissue_fraction == pytest.approx(result.details["tissue_fraction"], abs=1e-5)
    assert plan.disk_bytes > result.output.stat().st_size
    assert plan.peak_memory_bytes > 2**20
    assert plan.seconds > 0
