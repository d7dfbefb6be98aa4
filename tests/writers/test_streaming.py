"""The promises that every writer keeps: order, completeness, nothing too early under the final name, nothing left."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from written import CHANNELS, make_spec, marker_planes, write

from mupd_wsi.errors import OutputError, UsageError
from mupd_wsi.geometry import Region
from mupd_wsi.writers import ImageSpec, SlideWriter, estimated_bytes, open_writer

NAMES = ["image.ome.tiff", "image.ome.zarr"]
SPEC = make_spec(600, 700, CHANNELS)
PLANES = marker_planes(3, 700, 600)


def begun(path: Path) -> SlideWriter:
    """A writer that has got its first half."""
    writer = open_writer(path, SPEC)
    writer.write(Region(0, 0, 600, 350), PLANES[:, :350])
    return writer


def write_rows(writer: SlideWriter, band: NDArray[np.uint8], height: int) -> None:
    """The same band again and again."""
    for row in range(0, height, band.shape[1]):
        writer.write(Region(0, row, band.shape[2], band.shape[1]), band)


def stored(path: Path) -> NDArray[np.uint8]:
    if path.is_dir():
        return np.asarray(zarr.open_array(path / "0", mode="r")[:])
    return np.asarray(tifffile.imread(path))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_lies_under_the_final_name_before_the_end(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    writer = begun(path)
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == []
    assert list(tmp_path.iterdir()) != []
    writer.write(Region(0, 350, 600, 350), PLANES[:, 350:])
    assert not path.exists()
    assert writer.finish() == path
    assert list(tmp_path.iterdir()) == [path]
    writer.abort()
    np.testing.assert_array_equal(stored(path), PLANES)


@pytest.mark.parametrize("name", NAMES)
def test_abort_leaves_nothing_and_what_was_there_before_stays(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, SPEC, PLANES)
    writer = begun(path)
    writer.abort()
    writer.abort()
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(stored(path), PLANES)


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_image_replaces_the_old_one(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, make_spec(30, 20, CHANNELS), marker_planes(3, 20, 30))
    path = write(tmp_path / name, SPEC, PLANES)
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(stored(path), PLANES)


@pytest.mark.parametrize("name", NAMES)
def test_abort_while_another_thread_writes(tmp_path: Path, name: str) -> None:
    writer = open_writer(tmp_path / name, make_spec(600, 60_000, CHANNELS))
    begun_writing = threading.Event()
    raised: list[BaseException] = []

    def work() -> None:
        try:
            writer.write(Region(0, 0, 600, 500), PLANES[:, :500])
            begun_writing.set()
            for row in range(500, 60_000, 500):
                writer.write(Region(0, row, 600, 500), PLANES[:, :500])
        except BaseException as error:  # whatever it is, the test looks at it
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun_writing.wait(60)
    writer.abort()
    thread.join(60)
    assert not thread.is_alive()
    assert [type(error) for error in raised] == [OutputError]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("rows", "shape"),
    [
        (Region(0, 1, 600, 10), (3, 10, 600)),
        (Region(0, 0, 599, 10), (3, 10, 599)),
        (Region(0, 0, 600, 701), (3, 701, 600)),
        (Region(0, 0, 600, 10), (3, 11, 600)),
        (Region(0, 0, 600, 10), (2, 10, 600)),
        (Region(0, 0, 600, 10), (10, 600, 3)),
    ],
)
def test_wrong_bands_are_refused(tmp_path: Path, name: str, rows: Region, shape: tuple[int, ...]) -> None:
    writer = open_writer(tmp_path / name, SPEC)
    with pytest.raises(ValueError, match="got"):
        writer.write(rows, np.zeros(shape, np.uint8))
    writer.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_wrong_types_and_missing_rows_are_refused(tmp_path: Path, name: str) -> None:
    writer = begun(tmp_path / name)
    with pytest.raises(ValueError, match="uint8"):
        writer.write(Region(0, 350, 600, 10), np.zeros((3, 10, 600), np.float32))  # type: ignore[arg-type]  # on purpose
    with pytest.raises((ValueError, OutputError), match="rows"):
        writer.finish()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_missing_or_closed_is_an_output_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="image"):
        open_writer(tmp_path / "missing" / name, SPEC)


def test_the_ending_chooses_the_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.ome\.tiff"):
        open_writer(tmp_path / "image.png", SPEC)
    small = make_spec(4, 3, CHANNELS[:1])
    writer = open_writer(tmp_path / "image.dat", small, format="ome-tiff")
    writer.write(Region(0, 0, 4, 3), np.ones((1, 3, 4), np.uint8))
    assert tifffile.imread(writer.finish()).tolist() == [[1] * 4] * 3


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_an_output_error(tmp_path: Path, name: str) -> None:
    resource = pytest.importorskip("resource")
    spec = make_spec(4000, 4000, CHANNELS[:1])
    noise = np.random.default_rng(0).integers(0, 256, (1, 500, 4000), np.uint8)
    writer = open_writer(tmp_path / name, spec)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, old[1]))
        with pytest.raises(OutputError, match=name):
            write_rows(writer, noise, 4000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    writer.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [(), CHANNELS])
def test_the_estimate_covers_what_is_written(tmp_path: Path, name: str, channels: tuple[()]) -> None:
    spec: ImageSpec = make_spec(1500, 1200, channels)
    y, x = np.mgrid[:1200, :1500]
    rng = np.random.default_rng(1)
    tissue = (120 + 60 * np.sin(x / 9) * np.cos(y / 7) + rng.normal(0, 4, x.shape)).astype(np.uint8)
    pixels = np.stack([tissue] * spec.samples)
    pixels[:, :, 750:] = spec.background
    path = write(tmp_path / name, spec, pixels)
    size = sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())
    factor = 2 if name.endswith("tiff") else 1
    estimate = estimated_bytes(spec, 0.5, "ome-tiff" if factor == 2 else "ome-zarr")
    assert size * factor < estimate < 20 * size * factor + 2**22
    assert os.fspath(path) == str(tmp_path / name)
