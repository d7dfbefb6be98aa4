from __future__ import annotations

import json
from pathlib import Path

import pytest

from mupd_wsi.errors import OutputError
from mupd_wsi.record import software, write_record


def test_a_record_reads_back(tmp_path: Path) -> None:
    record = {"name": "µm", "seconds": 1.5, "environment": software()}
    write_record(tmp_path / "r.json", record)
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == record
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]


def test_versions_of_what_can_change_a_pixel_are_known() -> None:
    assert all(software()["packages"].values())


def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(tmp_path / "r.json", {"x": float("nan")})


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_record(tmp_path / "no" / "r.json", {})
