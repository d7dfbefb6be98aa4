"""What the documentation says is there, and what is there is documented."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

from mupd_wsi.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
#: Where this project happens to be worked on says nothing to a reader. Spelt so that this file does not match itself.
MACHINE_PATH = re.compile(r"/(?:work/(?:main|shared)|root/|tmp/brief|home/(?!me\b)\w+)")
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".cff", ".json", ""}


def project_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("verb", sorted(app.commands))
def test_each_verb_is_in_the_readme(verb: str) -> None:
    assert f"mupd-wsi {verb}" in README


@pytest.mark.parametrize("verb", sorted(app.commands))
def test_each_option_has_a_help_text(verb: str) -> None:
    command = app.commands[verb]
    within = command.commands.values() if isinstance(command, click.Group) else [command]
    options = [p for one in within for p in one.params if p.param_type_name == "option"]
    assert options
    assert all(getattr(option, "help", None) for option in options)


def test_each_make_target_is_listed_by_help() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.M))
    assert {"help", "install", "demo", "test", "test-faults", "bench", "weights", "weights-check", "clean"} <= listed


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/decisions/README.md"])
def test_links_lead_to_files(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in t]
    missing = [t for t in targets if not ((ROOT / document).parent / t).exists()]
    assert missing == []


def test_each_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert [p.name for p in folder.glob("0*.md") if p.name not in index] == []


@pytest.mark.skipif(shutil.which("git") is None, reason="asks git which files belong to the project")
def test_no_file_names_a_path_of_one_machine() -> None:
    guilty = [
        str(path.relative_to(ROOT))
        for path in project_files()
        if path.suffix in TEXT and MACHINE_PATH.search(path.read_text(encoding="utf-8", errors="ignore"))
    ]
    assert guilty == []


def test_the_pins_cover_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for rs in project["optional-dependencies"].values() for r in rs)]
    pinned = {
        _fold(line.partition("==")[0])
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    names = {_fold(re.split(r"[<>=!~\[; ]", requirement)[0]) for requirement in wanted}
    assert names - pinned == set()


def test_no_pin_is_of_one_build() -> None:
    assert "+" not in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def _fold(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
