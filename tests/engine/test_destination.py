from __future__ import annotations

from pathlib import Path

import pytest

from mupd_wsi.engine.destination import check_destination, check_free_disk, destination, target_label
from mupd_wsi.errors import OutputError, UsageError


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["CD8"], "CD8"),
        (["CD8", "Pan-CK"], "CD8+Pan-CK"),
        (["a", "b", "c"], "a+b+c"),
        (["a", "b", "c", "d"], "4-markers"),
        ([str(n) for n in range(18)], "all"),
        (["../x y"], "x-y"),
        (["alpha SMA"], "alpha-SMA"),
    ],
)
def test_targets_in_a_file_name(labels: list[str], expected: str) -> None:
    assert target_label(labels, 18) == expected


@pytest.mark.parametrize(
    ("output", "file_format", "expected"),
    [
        (None, None, ("S.CD8.ome.tiff", "ome-tiff")),
        (None, "ome-zarr", ("S.CD8.ome.zarr", "ome-zarr")),
        ("x.ome.tif", None, ("x.ome.tif", "ome-tiff")),
        ("x.TIFF", "ome-tiff", ("x.TIFF", "ome-tiff")),
        ("x.ome.zarr", None, ("x.ome.zarr", "ome-zarr")),
        ("x.zarr", "ome-zarr", ("x.zarr", "ome-zarr")),
    ],
)
def test_name_and_format(output: str | None, file_format: None, expected: tuple[str, str]) -> None:
    place = destination(Path(output) if output else None, file_format, "S", ["CD8"], 18)
    assert (str(place.output), place.file_format) == expected


def test_an_existing_folder_takes_the_default_name(tmp_path: Path) -> None:
    assert destination(tmp_path, "ome-zarr", "S", ["CD8"], 18).output == tmp_path / "S.CD8.ome.zarr"


@pytest.mark.parametrize(("output", "file_format"), [("x.png", None), ("x.ome.tiff", "ome-zarr"), ("x", "ome-tiff")])
def test_an_ending_that_does_not_fit_is_a_usage_error(output: str, file_format: None) -> None:
    with pytest.raises(UsageError, match="end it in"):
        destination(Path(output), file_format, "S", ["CD8"], 18)


def test_preview_and_record_lie_beside_the_output() -> None:
    place = destination(Path("out/a.CD8.ome.tiff"), None, "S", ["CD8"], 18)
    assert (place.preview, place.record) == (Path("out/a.CD8.preview.png"), Path("out/a.CD8.ome.tiff.json"))


def refused(output: Path, slide: Path, message: str, *, overwrite: bool = False) -> None:
    place = destination(output, None, "S", ["CD8"], 18)
    with pytest.raises(OutputError, match=message):
        check_destination(place, slide, overwrite=overwrite)


def test_a_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "no" / "x.ome.tiff", tmp_path / "s.svs", "does not exist")


def test_a_folder_that_cannot_be_written() -> None:
    refused(Path("/proc/x.ome.tiff"), Path("s.svs"), "not writable")


def test_an_output_that_is_there(tmp_path: Path) -> None:
    output = tmp_path / "x.ome.tiff"
    output.touch()
    refused(output, tmp_path / "s.svs", "--overwrite")
    check_destination(destination(output, None, "S", ["CD8"], 18), tmp_path / "s.svs", overwrite=True)


def test_a_dangling_link_counts_as_there(tmp_path: Path) -> None:
    output = tmp_path / "x.ome.tiff"
    output.symlink_to(tmp_path / "elsewhere")
    refused(output, tmp_path / "s.svs", "--overwrite")


def test_a_folder_is_not_replaced_by_a_file_nor_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "x.ome.tiff").mkdir()
    (tmp_path / "x.ome.zarr").touch()
    refused(tmp_path / "x.ome.tiff", tmp_path / "s.svs", "is not ome-tiff|default name", overwrite=True)
    refused(tmp_path / "x.ome.zarr", tmp_path / "s.svs", "is not ome-zarr", overwrite=True)


def test_the_slide_itself_by_any_name(tmp_path: Path) -> None:
    slide = tmp_path / "s.ome.tiff"
    slide.touch()
    (tmp_path / "link.ome.tiff").symlink_to(slide)
    (tmp_path / "hard.ome.tiff").hardlink_to(slide)
    for name in ("s.ome.tiff", "link.ome.tiff", "hard.ome.tiff"):
        refused(tmp_path / name, slide, "overwrite the slide itself", overwrite=True)


def test_inside_the_slides_own_folder(tmp_path: Path) -> None:
    slide = tmp_path / "s.ome.zarr"
    slide.mkdir()
    refused(slide / "x.ome.tiff", slide, "overwrite the slide itself")


def test_a_preview_that_would_replace_the_slide(tmp_path: Path) -> None:
    slide = tmp_path / "x.preview.png"
    slide.touch()
    refused(tmp_path / "x.ome.tiff", slide, "overwrite the slide itself")


def test_free_disk(tmp_path: Path) -> None:
    place = destination(tmp_path / "x.ome.tiff", None, "S", ["CD8"], 18)
    check_free_disk(place, 1)
    with pytest.raises(OutputError, match="not enough free disk"):
        check_free_disk(place, 10**18)
