"""Nothing is done twice, nothing is lost, and everything is told."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from doubles import FACTS, InPlace, make_slides, tasks_of
from standins import he_texture, save_slide

from mupd_wsi.batch import fetching, running
from mupd_wsi.batch.ledger import Shard, SlideState
from mupd_wsi.batch.running import BatchOptions, BatchResult, run_batch
from mupd_wsi.batch.summary import Summary, as_html, summarise
from mupd_wsi.batch.tasks import BatchProgress, Outcome, SlideTask
from mupd_wsi.errors import OutputError

NAMES = ["a.png", "b.png", "sub/a.png"]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "model_facts", lambda *_, **__: FACTS)


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    return make_slides(tmp_path / "in", NAMES)


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as stream:
        return {Path(row["slide"]).relative_to(folder.parent / "in").as_posix(): row for row in csv.DictReader(stream)}


def images(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.ome.tiff")}


def test_each_slide_once_and_then_never_again(slides: Path, tmp_path: Path) -> None:
    out, crew = tmp_path / "out", InPlace()
    first = run_batch(tasks_of(slides, out), out, BatchOptions(), events=crew)
    assert (first.ok, first.done, first.skipped, first.left) == (True, 3, 0, 0)
    before = images(out)
    assert sorted(before) == ["a.CD8.ome.tiff", "b.CD8.ome.tiff", "sub/a.CD8.ome.tiff"]
    second = run_batch(tasks_of(slides, out), out, BatchOptions(), events=crew)
    assert (second.ok, second.done, second.skipped) == (True, 0, 3)
    assert sorted(crew.stained) == sorted(before)
    assert len(crew.stained) == 3
    assert images(out) == before
    assert [row["status"] for row in rows(out).values()] == ["done"] * 3
    assert all(float(row["seconds"]) > 0 and (out / row["preview"]).is_file() for row in rows(out).values())


def test_a_bad_slide_is_named_and_tried_again(slides: Path, tmp_path: Path) -> None:
    out, crew = tmp_path / "out", InPlace()
    (slides / "b.png").write_bytes(b"no picture at all")
    first = run_batch(tasks_of(slides, out), out, BatchOptions(), events=crew)
    assert (first.ok, first.done) == (False, 2)
    (failure,) = first.failed
    assert Path(failure.slide) == slides / "b.png"
    assert rows(out)["b.png"]["reason"] == failure.reason != ""
    assert rows(out)["b.png"]["status"] == "failed"
    save_slide(slides / "b.png", he_texture(90, 90))
    second = run_batch(tasks_of(slides, out), out, BatchOptions(), events=crew)
    assert (second.ok, second.done, second.skipped) == (True, 1, 2)
    assert rows(out)["b.png"] | {"status": "done", "reason": "", "attempts": "2"} == rows(out)["b.png"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"targets": "Pan-CK"}, None),
        ({"style": "mif"}, "style"),
        ({"tissue_mask": False}, "tissue_mask (True, now False)"),
        ({"mpp": 0.6}, "mpp (0.5, now 0.6)"),
        ({"workers": 2}, ""),
    ],
)
def test_another_request_is_told_from_the_same(
    change: dict[str, object], named: str | None, slides: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_batch(tasks_of(slides, out), out, BatchOptions(), events=InPlace())
    again = run_batch(tasks_of(slides, out, **change), out, BatchOptions(), events=InPlace())  # type: ignore[arg-type]
    if not named:
        assert again.ok
        assert (again.done, again.skipped) == ((3, 0) if named is None else (0, 3))
        return
    assert len(again.failed) == 3
    assert all(named in failure.reason and "--overwrite" in failure.reason for failure in again.failed)
    over = run_batch(tasks_of(slides, out, overwrite=True, **change), out, BatchOptions(), events=InPlace())  # type: ignore[arg-type]
    assert (over.ok, over.done) == (True, 3)
    same = run_batch(tasks_of(slides, out, overwrite=True, **change), out, BatchOptions(), events=InPlace())  # type: ignore[arg-type]
    assert (same.done, same.skipped) == (0, 3)


def test_a_changed_slide_is_not_the_same(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_batch(tasks_of(slides, out), out, BatchOptions(), events=InPlace())
    save_slide(slides / "a.png", he_texture(90, 90, 77))
    again = run_batch(tasks_of(slides, out), out, BatchOptions(), events=InPlace())
    assert [Path(f.slide).name for f in again.failed] == ["a.png"]
    assert "its data has changed" in again.failed[0].reason


def test_what_a_killed_run_left_is_done_again_but_foreign_files_are_kept(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "sub" / "a.CD8.ome.tiff").write_bytes(b"somebody's")

    def killed(task: SlideTask) -> None:
        if task.key == "b.CD8.ome.tiff":
            task.output.write_bytes(b"a whole image, and the power goes before its record is written")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(tasks_of(slides, out), out, BatchOptions(), events=InPlace(killed))
    assert [row["status"] for row in rows(out).values()] == ["done", "unfinished", "pending"]
    with (out / "batch.jsonl").open("a") as log:
        log.write('{"time": "2026-01-01T0')  # and the log's last line is torn
    result = run_batch(tasks_of(slides, out), out, BatchOptions(), events=InPlace())
    assert (result.done, result.skipped) == (1, 1)
    assert "no record" in result.failed[0].reason
    assert (out / "sub" / "a.CD8.ome.tiff").read_bytes() == b"somebody's"
    assert rows(out)["b.png"]["status"] == "done"


def test_a_run_that_was_stopped_while_it_gave_names_is_finished(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_batch(tasks_of(slides, out), out, BatchOptions(), events=InPlace())
    (out / "b.CD8.preview.png").unlink()  # a loss of power may leave any of the three names
    (out / ".b.CD8.mupd-part").mkdir()
    (out / ".b.CD8.mupd-part" / "publishing").touch()
    crew = InPlace()
    assert run_batch(tasks_of(slides, out), out, BatchOptions(), events=crew).ok
    assert crew.stained == ["b.CD8.ome.tiff"]
    assert (out / "b.CD8.preview.png").exists()


@pytest.mark.faults
def test_a_disk_that_fills_up_is_named_and_the_rest_comes_later(slides: Path, small_disk: Callable[..., Path]) -> None:
    disk = small_disk("3m")
    out, filler = disk / "out", disk / "filler"

    def fill(task: SlideTask) -> None:
        if task.key.startswith("b"):
            with suppress(OSError), filler.open("wb", buffering=0) as stream:
                while stream.write(bytes(4096)):
                    pass

    with pytest.raises(OutputError, match=r"cannot write .*out.*: No space left on device"):
        run_batch(tasks_of(slides, out), out, BatchOptions(), events=InPlace(fill))
    filler.unlink()
    result = run_batch(tasks_of(slides, out), out, BatchOptions(), events=InPlace())
    assert result.ok
    assert (result.done, result.skipped) == (2, 1)
    assert (out / "summary.csv").read_text().count(",done,") == 3


def test_retries_come_after_the_rest_and_not_for_what_lasts(slides: Path, tmp_path: Path) -> None:
    out, tries = tmp_path / "out", {"a.CD8.ome.tiff": 2}

    def flaky(task: SlideTask) -> Outcome | None:
        if tries.get(task.key, 0):
            tries[task.key] -= 1
            return Outcome(False, "the network drive was away")
        return Outcome(False, "no pixel size", lasting=True) if task.key.startswith("b") else None

    crew = InPlace(flaky)
    result = run_batch(tasks_of(slides, out), out, BatchOptions(retry=5), events=crew)
    assert [f.reason for f in result.failed] == ["no pixel size"]
    assert crew.stained == ["a.CD8.ome.tiff", "b.CD8.ome.tiff", "sub/a.CD8.ome.tiff"] + ["a.CD8.ome.tiff"] * 2
    assert rows(out)["a.png"]["attempts"] == "3"


def test_fail_fast_leaves_the_rest(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    crew = InPlace(lambda _: Outcome(False, "broken"))
    result = run_batch(tasks_of(slides, out), out, BatchOptions(keep_going=False, retry=2), events=crew)
    assert (len(result.failed), result.left, result.ok) == (1, 2, False)
    assert [row["status"] for row in rows(out).values()] == ["failed", "pending", "pending"]


def test_shards_share_the_slides_and_are_put_together(slides: Path, tmp_path: Path) -> None:
    out, crews = tmp_path / "out", [InPlace(), InPlace()]
    for number, crew in enumerate(crews, 1):
        run_batch(tasks_of(slides, out), out, BatchOptions(shard=Shard(number, 2)), events=crew)
    assert [crew.stained for crew in crews] == [["a.CD8.ome.tiff", "sub/a.CD8.ome.tiff"], ["b.CD8.ome.tiff"]]
    assert sorted(p.name for p in out.glob("*.jsonl")) == ["batch.1-of-2.jsonl", "batch.2-of-2.jsonl"]
    summary = summarise(out)
    assert summary.complete
    assert summary.counts == {"done": 3, "failed": 0, "unfinished": 0, "pending": 0}


def test_a_slide_that_is_no_longer_asked_for_does_not_stay_failed(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (slides / "b.png").write_bytes(b"broken")
    assert not run_batch(tasks_of(slides, out), out, BatchOptions(), events=InPlace()).ok
    (slides / "b.png").unlink()
    (slides / "a.png").unlink()
    result = run_batch(tasks_of(slides, out), out, BatchOptions(), events=InPlace())
    assert result.summary.complete
    assert sorted(rows(out)) == ["a.png", "sub/a.png"]


def test_progress_counts_and_foretells(slides: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "out", list[BatchProgress]()
    run_batch(tasks_of(slides, out), out, BatchOptions(), progress=told.append, events=InPlace())
    assert told[0].eta is None
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert (told[-1].done, told[-1].total, told[-1].eta, told[-1].active) == (3, 3, 0, {})
    half = BatchProgress(total=10, done=3, skipped=2, failed=1, active={}, seconds=8)
    assert half.eta == 8


def test_status_of_what_is_no_batch(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no batch"):
        summarise(tmp_path)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_once_what_holds_for_all_and_marks_the_others(tmp_path: Path) -> None:
    states = [
        SlideState(f"{name}.ome.tiff", f"{name}.svs", ("CD8",), "done", "", "2026-01-02T03:04:05.678+00:00", 1, facts)
        for name, facts in (("a", {"warnings": ["weak"]}), ("b", {"warnings": ["pale", "weak"]}))
    ]
    text = "".join(as_html(Summary(tuple(states), tmp_path, tmp_path), "t"))
    assert (text.count("weak"), text.count("pale")) == (1, 1)
    assert text.index("class=doubtful") < text.index("b.svs") < text.index("pale")
    assert "2 of 2 slides are stained, as of 2026-01-02 03:04 UTC." in text
    alone = "".join(as_html(Summary((states[0],), tmp_path, tmp_path), "t"))
    assert "class=doubtful" in alone
    assert "All slides" not in alone


def test_the_page_shows_all_previews_and_runs_nothing(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&'\" #1%20"
    slides = make_slides(tmp_path / "in", [f"{evil.replace('/', '')}.png", "ü.png"])
    out = tmp_path / "out"
    (slides / "<b>.png").write_bytes(b"broken <i>")
    run_batch(tasks_of(slides, out), out, BatchOptions(), events=InPlace())
    page = Page((out / "summary.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags | {"b", "i"} - page.tags
    assert not {"script", "b", "i"} & page.tags
    assert "<b>.png" in page.text
    assert len({link for link in page.links if link.endswith(".preview.png")}) == 2
    for link in page.links:
        assert "://" not in link
        assert (out / unquote(link)).exists(), link
    assert "research use only" in page.text


def test_copies_are_used_bounded_and_gone(slides: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    sizes = {p: p.stat().st_size for p in slides.rglob("*.png")}
    bound, seen = max(sizes.values()) + min(sizes.values()) - 1, list[Path]()

    def look(task: SlideTask) -> None:
        assert task.local is not None
        assert task.local.read_bytes() == Path(task.slide).read_bytes()
        assert sum(p.stat().st_size for p in cache.rglob("*.png")) <= bound
        seen.append(task.local)

    dead = cache / f"{fetching.PREFIX}-{fetching.socket.gethostname()}-999999999"
    dead.mkdir(parents=True)
    options = BatchOptions(cache=cache, cache_bytes=bound)
    result = run_batch(tasks_of(slides, out), out, options, events=InPlace(look))
    assert result.ok
    assert len(seen) == 3
    assert list(cache.iterdir()) == []
    record = json.loads((out / "b.CD8.ome.tiff.json").read_text())
    assert record["slide_path"] == str(slides / "b.png")
    assert run_batch(tasks_of(slides, out), out, options, events=InPlace()).skipped == 3


def test_a_slide_larger_than_the_cache_is_read_where_it_is(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    crew = InPlace(lambda task: None if task.local is None else Outcome(False, "copied"))
    assert run_batch(tasks_of(slides, out), out, BatchOptions(cache=tmp_path / "c", cache_bytes=5), events=crew).ok


def test_a_slide_that_vanishes_is_named(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tasks = tasks_of(slides, out)
    (slides / "b.png").unlink()
    for options in (BatchOptions(), BatchOptions(cache=tmp_path / "cache")):
        result: BatchResult = run_batch(tasks, out, options, events=InPlace())
        assert ["does not exist" in failure.reason for failure in result.failed] == [True]


def test_a_folder_that_cannot_be_made_is_an_error_at_once(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "file" / "out"
    out.parent.write_bytes(b"no folder")
    with pytest.raises(OutputError, match="-o"):
        run_batch(tasks_of(slides, out), out, BatchOptions(), events=InPlace())
