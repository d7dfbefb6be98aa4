"""Imports go one way: a module imports only from layers below its own (docs/decisions/0001-layout.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mupd_wsi

PACKAGE = Path(mupd_wsi.__file__).parent

#: First name below ``mupd_wsi`` -> layer. A new module has to be given one.
LAYERS = {
    "errors": 0,
    "geometry": 0,
    "markers": 0,
    "request": 0,
    "lookahead": 0,
    "layout": 0,
    "slides": 1,
    "tissue": 1,
    "normalising": 1,
    "tiling": 1,
    "stitching": 1,
    "model": 1,
    "writers": 2,
    "validation": 2,
    "rendering": 2,
    "drawing": 2,
    "record": 2,
    "preview": 2,
    "engine": 3,
    "pipeline": 3,
    "batch": 4,
    "evaluation": 4,
    "training": 4,
    "cli": 5,
    "__main__": 6,
    "__init__": 6,
}
BOTTOM = ("errors", "geometry", "markers", "request", "lookahead", "layout")
#: Within one layer, who may import whom besides itself.
ALLOWED_SIDEWAYS = {
    *((a, b) for a in BOTTOM for b in BOTTOM),
    ("validation", "writers"),
    ("model", "normalising"),
    ("preview", "drawing"),
    ("preview", "record"),
    ("preview", "writers"),
    ("pipeline", "engine"),
    ("evaluation", "training"),
    ("training", "evaluation"),
}
#: Layer 2 knows of layer 1 only this.
ALLOWED_DOWN_FROM_2 = {("validation", "slides"), ("preview", "slides")}
#: Library -> the only places that may import it.
HOMES = {"torch": {"model", "training", "evaluation"}, "click": {"cli"}, "tqdm": {"cli"}}

#: The doctor looks at the libraries themselves.
EXCEPTIONS = {("cli/checks.py", "torch")}

FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """A file's path below the package, as a test's name."""
    return path.relative_to(PACKAGE).as_posix()


def unit(path: Path) -> str:
    """The first name below the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module or ""
            if node.module == "mupd_wsi":
                yield from (f"mupd_wsi.{alias.name}" for alias in node.names)


def test_every_module_has_a_layer() -> None:
    assert {unit(path) for path in FILES} <= set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    own = unit(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "mupd_wsi" or len(parts) == 1 or parts[1] not in LAYERS or parts[1] == own:
            continue
        other = parts[1]
        assert allowed(own, other), f"{own} may not import {other}"


def allowed(own: str, other: str) -> bool:
    mine, theirs = LAYERS[own], LAYERS[other]
    if mine == theirs:
        return (own, other) in ALLOWED_SIDEWAYS
    if mine == 2 and theirs == 1:
        return (own, other) in ALLOWED_DOWN_FROM_2
    return theirs < mine


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_libraries_stay_in_their_homes(path: Path) -> None:
    for name in imported(path):
        library = name.split(".")[0]
        if library in HOMES and (name_of(path), library) not in EXCEPTIONS:
            assert unit(path) in HOMES[library], f"{path.name} imports {library}"


@pytest.mark.parametrize("path", [p for p in FILES if unit(p) != "cli"], ids=name_of)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [f for f in calls if isinstance(f, ast.Name) and f.id == "print"]


@pytest.mark.parametrize("own", ["slides", "tissue", "stitching", "writers"])
def test_the_check_sees_a_wrong_import(own: str) -> None:
    assert not allowed(own, "pipeline")
    assert not allowed(own, "cli")
    assert not allowed("tissue", "slides")
