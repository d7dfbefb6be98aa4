from __future__ import annotations

import subprocess
import sys

import click
import pytest

from mupd_wsi import errors
from mupd_wsi.cli import failures
from mupd_wsi.cli.app import app, run

VERBS = sorted(app.commands)


def test_the_verbs_are_the_documented_ones() -> None:
    assert VERBS == [
        "batch", "doctor", "evaluate", "info", "models", "slurm", "stain", "status", "train", "validate",
    ]  # fmt: skip


@pytest.mark.parametrize("statement", ["import mupd_wsi", "from mupd_wsi.cli.app import run; run(['--help'])"])
def test_nothing_heavy_is_imported_for_help(statement: str) -> None:
    heavy = {"torch", "numpy", "zarr", "tifffile", "skimage", "scipy", "cv2", "PIL", "openslide", "tqdm"}
    code = f"import sys; {statement}; print(sorted(set(sys.modules) & {heavy!r}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_each_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example" in shown
    assert f"  mupd-wsi {verb}" in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import mupd_wsi

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"mupd-wsi {mupd_wsi.__version__}\n"


def test_the_library_exports_its_verbs() -> None:
    import mupd_wsi

    assert all(callable(getattr(mupd_wsi, name)) for name in ("open_slide", "stain_slide", "load_model"))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = mupd_wsi.no_such_name


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["stian"], "stian"),
        (["stain", "slide.svs"], "--target"),
        (["stain", "slide.svs", "--target", "CD8", "--as", "oil"], "ihc"),
        (["stain", "slide.svs", "--target", "CD8", "--roi", "1,2,3"], "X,Y,W,H"),
        (["stain", "slide.svs", "--target", "CD8", "--roi", "1,2,0,4"], "empty"),
        (["stain", "slide.svs", "--target", "CD8", "-v", "-q"], "not both"),
        (["stain", "s3://b/slide.svs", "--target", "CD8", "--dry-run"], "not by URL"),
        (["batch", "x.svs", "--target", "CD8", "-o", "out", "--shard", "3/2"], "I/N"),
        (["batch", "x.svs", "--target", "CD8", "-o", "out", "--cache-size", "much"], "gigabytes"),
        (["batch", "x.svs", "--target", "CD8", "-o", "out", "--jobs", "2", "--devices", "cuda:0,cuda:1"], "not both"),
        (["info"], "SLIDE"),
        (["info", "slide.svs", "--frobnicate"], "--frobnicate"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown.startswith("mupd-wsi: error: ")
    assert expected in shown
    assert "--help'" in shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UnknownTargetError("unknown target 'x'"), 2),
        (errors.SlideError("no slide"), 3),
        (errors.OutputError("it exists"), 3),
        (PermissionError(13, "Permission denied", "/there"), 3),
        (MemoryError(), 3),
        (click.BadParameter("not a number"), 2),
    ],
)
def test_errors_map_to_codes_and_one_line(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert failures.report(error, verbose=False) == code
    shown = capsys.readouterr().err
    assert shown.startswith("mupd-wsi: error: ")
    assert shown.count("\n") == 1


def test_a_message_of_several_lines_is_joined(capsys: pytest.CaptureFixture[str]) -> None:
    failures.report(errors.SlideError("first\n   second"), verbose=False)
    assert capsys.readouterr().err == "mupd-wsi: error: first second\n"


def test_verbose_adds_the_stack_trace(capsys: pytest.CaptureFixture[str]) -> None:
    failures.report(errors.SlideError("no slide"), verbose=True)
    assert "SlideError" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "trace"), [("", False), ("failures.show_stack_traces()", True)])
def test_a_bug_is_one_line_and_exit_1(flag: str, trace: bool) -> None:
    start = "import sys; from mupd_wsi.cli import failures; sys.excepthook = failures.report_bug"
    code = f"{start}; {flag}\nraise KeyError('x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) is trace
    if not trace:
        assert done.stderr == "mupd-wsi: error: unexpected KeyError: 'x'; run again with -v and report what it shows\n"


def test_a_closed_pipe_is_no_error_message() -> None:
    command = f"{sys.executable} -m mupd_wsi models --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
