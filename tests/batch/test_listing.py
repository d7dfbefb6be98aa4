"""From what a user names to tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
from standins import PANEL

from mupd_wsi.batch.inputs import find_slides
from mupd_wsi.batch.manifest import Entry, read_manifest
from mupd_wsi.batch.naming import plan_tasks
from mupd_wsi.errors import UsageError
from mupd_wsi.geometry import Region
from mupd_wsi.request import StainOptions


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def find(*inputs: Path | str, pictures: bool = False, outside: Path = Path("nowhere")) -> list[Entry]:
    return find_slides([str(i) for i in inputs], [], pictures=pictures, outside=outside)


def keys(entries: list[Entry], folder: Path, target: str = "CD8", options: StainOptions | None = None) -> list[str]:
    return [task.key for task in plan_tasks(entries, (target,), PANEL, folder, options or StainOptions())]


def test_folders_are_searched_through_and_mirrored(tmp_path: Path) -> None:
    top = tmp_path / "in"
    touch(top / "b.svs", top / "a" / "b.svs", top / "a" / "deep" / "c.ndpi", top / "notes.txt", top / ".hidden.svs")
    touch(top / "image.ome.zarr" / "zarr.json", top / "image.ome.zarr" / "0" / "inner.tif", top / "x.preview.png")
    touch(top / "out" / "b.CD8.ome.tiff")
    found = find(top, outside=top / "out")
    assert sorted(keys(found, top / "out")) == [
        "a/b.CD8.ome.tiff",
        "a/deep/c.CD8.ome.tiff",
        "b.CD8.ome.tiff",
        "image.CD8.ome.tiff",
    ]
    assert found == find(top, outside=top / "out")


def test_pictures_in_folders_count_only_with_a_pixel_size(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / "b.svs", tmp_path / "b.preview.png")
    assert [Path(e.slide).name for e in find(tmp_path)] == ["b.svs"]
    assert [Path(e.slide).name for e in find(tmp_path, pictures=True)] == ["a.png", "b.svs"]
    assert [Path(e.slide).name for e in find(tmp_path / "a.png")] == ["a.png"]


def test_the_files_of_a_dicom_folder_are_one_slide(tmp_path: Path) -> None:
    for name, size in (("1.dcm", 10), ("2.dcm", 300), ("3.dcm", 20)):
        (tmp_path / name).write_bytes(bytes(size))
    assert [Path(e.slide).name for e in find(tmp_path)] == ["2.dcm"]


def test_patterns_and_repeats(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "1.svs", tmp_path / "x" / "y" / "2.svs", tmp_path / "x" / "3.tif")
    pattern = f"{tmp_path}/**/*.svs"
    assert [Path(e.slide).name for e in find(pattern, tmp_path / "x" / "1.svs")] == ["1.svs", "2.svs"]
    with pytest.raises(UsageError, match="no file matches"):
        find(f"{tmp_path}/*.ndpi")
    touch(tmp_path / "empty" / "note.txt")
    with pytest.raises(UsageError, match="holds no slides"):
        find(tmp_path / "empty")
    with pytest.raises(UsageError, match="no slides to stain"):
        find()


def test_a_slide_that_is_missing_is_listed_and_fails_later(tmp_path: Path) -> None:
    assert [e.slide for e in find(tmp_path / "gone.svs")] == [str(tmp_path / "gone.svs")]


def test_the_same_stem_does_not_collide(tmp_path: Path) -> None:
    slides = [tmp_path / "a" / "s.svs", tmp_path / "b" / "s.svs", tmp_path / "b" / "s.tif", tmp_path / "c.svs"]
    named = keys([Entry(str(s)) for s in slides], tmp_path / "out")
    assert named == [
        "a/s.CD8.ome.tiff",
        "b/s.svs.CD8.ome.tiff",
        "b/s.tif.CD8.ome.tiff",
        "c.CD8.ome.tiff",
    ]
    two_tops = [*find_two(tmp_path)]
    assert sorted(keys(two_tops, tmp_path / "out")) == ["one/s.CD8.ome.tiff", "two/s.CD8.ome.tiff"]


def find_two(folder: Path) -> list[Entry]:
    touch(folder / "one" / "s.svs", folder / "two" / "s.svs")
    return find(folder / "one", folder / "two")


def test_one_slide_twice_in_one_place_is_refused(tmp_path: Path) -> None:
    entries = [
        Entry("s.svs", roi=Region(0, 0, 5, 5), origin="list.csv line 2"),
        Entry("s.svs", origin="list.csv line 3"),
    ]
    with pytest.raises(UsageError, match=r"list\.csv line 2.*'output'"):
        keys(entries, tmp_path)
    assert keys([entries[0], Entry("s.svs", output="other.ome.zarr")], tmp_path) == ["s.CD8.ome.tiff", "other.ome.zarr"]


def test_a_manifest_says_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "slides.csv"
    path.write_text(
        "\ufeffSlide, target, mpp, roi, output\n"
        "a.svs, CD8, 0.25,,\n"
        '"sub/b,c.svs", "CD8,panCK",,"1,2,30,40", mine/b.ome.zarr\n'
        ",,,,\n"
        "s3://bucket/d.svs,,,,\n",
        encoding="utf-8",
    )
    entries = find(path)
    assert [(e.slide, e.targets, e.mpp, e.roi, e.output) for e in entries] == [
        (str(tmp_path / "a.svs"), ("CD8",), 0.25, None, None),
        (str(tmp_path / "sub/b,c.svs"), ("CD8,panCK",), None, Region(1, 2, 30, 40), "mine/b.ome.zarr"),
        ("s3://bucket/d.svs", (), None, None, None),
    ]
    tasks = plan_tasks(entries, ("Hoechst",), PANEL, tmp_path, StainOptions(mpp=0.5, seed=3))
    assert [t.key for t in tasks] == ["a.CD8.ome.tiff", "mine/b.ome.zarr", "d.Hoechst.ome.tiff"]
    assert [t.options.mpp for t in tasks] == [0.25, 0.5, 0.5]
    assert tasks[1].options.roi == Region(1, 2, 30, 40)
    assert all(t.options.seed == 3 for t in tasks)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name\nx\n", "line 1: expected the columns slide"),
        ("slide,size\nx,1\n", "got slide, size"),
        ("", "got nothing"),
        ("slide,mpp\na,0.5\nb,big\nc,900\n", "2 bad row.*line 3: mpp 'big' is no number; line 4: .*900"),
        ("slide,roi\na,1;2\n", "line 2: '1;2' is not four whole numbers"),
        ("slide,target\n,CD8\n", "line 2: no slide"),
        ("slide\na,b\n", "line 2: more cells than columns"),
        ('slide\n"a\n', "line 2: .*write it as CSV"),
    ],
)
def test_bad_manifests_name_the_line(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "slides.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=expected):
        read_manifest(path)


@pytest.mark.parametrize("output", ["../x.ome.tiff", "/x.ome.tiff", "a/../../x.ome.tiff", "x.png"])
def test_outputs_stay_in_the_folder_and_have_a_known_ending(output: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 2"):
        keys([Entry("a.svs", output=output, origin="m.csv line 2")], tmp_path)


def test_targets_are_checked_before_anything_begins(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"line 9.*CD999"):
        keys([Entry("a.svs", targets=("CD999",), origin="m.csv line 9")], tmp_path)
    with pytest.raises(UsageError, match="no target for"):
        plan_tasks([Entry("a.svs")], (), PANEL, tmp_path, StainOptions())
