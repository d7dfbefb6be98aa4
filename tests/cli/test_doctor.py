from __future__ import annotations

import importlib
import json
from typing import Any

import pytest

from mupd_wsi.cli import checks
from mupd_wsi.cli.app import run
from mupd_wsi.errors import BundleError


def test_doctor_finds_this_machine_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("torch", "OpenSlide library", "codec JPEG 2000", "CPU", "bundled model"))
    assert "fail" not in shown


def test_doctor_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["ok"]
    assert {check["status"] for check in values["checks"]} <= {"ok", "warn"}


def test_a_missing_library_fails_with_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.import_module

    def without_zarr(name: str, package: str | None = None) -> Any:
        if name == "zarr":
            raise ImportError("No module named 'zarr'")
        return real(name, package)

    monkeypatch.setattr(checks.importlib, "import_module", without_zarr)
    assert run(["doctor"]) == 1
    assert "pip install zarr" in capsys.readouterr().out


def test_a_damaged_model_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(**_: object) -> None:
        raise BundleError("the weights do not match")

    monkeypatch.setattr("mupd_wsi.model.load_model", damaged)
    check = checks.check_model()
    assert check.status == "fail"
    assert "do not match" in check.found


def test_little_memory_and_disk_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ENOUGH_MEMORY", 2**60)
    monkeypatch.setattr(checks, "ENOUGH_DISK", 2**60)
    assert checks.check_memory().status == "warn"
    assert checks.check_folder().status == "warn"


def test_a_read_only_folder_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checks.tempfile, "TemporaryFile", read_only)
    check = checks.check_folder()
    assert check.status == "warn"
    assert "not writable" in check.found
