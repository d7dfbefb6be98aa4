from __future__ import annotations

import pytest

from mupd_wsi.cli.console import Console
from mupd_wsi.cli.progress import PlainLines, duration, line, progress_display
from mupd_wsi.request import Progress


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (59.6, "1:00"), (83, "1:23"), (3723, "1:02:03")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_line() -> None:
    assert line(12, 48, 8.0) == "tiles 12/48, 1.50 tiles/s, ETA 0:24"
    assert line(0, 48, 0.0) == "tiles 0/48, 0.00 tiles/s, ETA ?"


def test_plain_lines_come_every_few_seconds_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([100.0, 101.0, 106.0, 107.0, 108.0])
    lines = PlainLines(lambda: next(times))
    for done in (0, 1, 6, 7, 10):
        lines(Progress(done, 10))
    assert capsys.readouterr().err.splitlines() == [
        "tiles 6/10, 1.00 tiles/s, ETA 0:04",
        "tiles 10/10, 1.25 tiles/s, ETA 0:00",
    ]


def test_tiles_of_an_earlier_run_do_not_count_as_speed() -> None:
    assert line(12, 48, 8.0, resumed=8) == "tiles 12/48, 0.50 tiles/s, ETA 1:12"


def test_quiet_shows_nothing() -> None:
    with progress_display(Console(quiet=True)) as report:
        assert report is None
