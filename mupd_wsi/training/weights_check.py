"""Checks that a model is what its card and its page say: hash, size, and figures measured anew on the dev tiles.

``python -m mupd_wsi.training.weights_check MODEL --data ../shared/data/orion-crc01 --page docs/models/MODEL.md``
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mupd_wsi.errors import MupdError
from mupd_wsi.model.bundle import WEIGHTS_FILE, ModelInfo, find_bundle, read_info, read_weights
from mupd_wsi.model.loading import load_model
from mupd_wsi.request import Readout, SampleOptions
from mupd_wsi.training.measure import MEAN_ROW, Table, measure

MAX_BYTES: Final = 15_000_000
#: What bf16 on one machine and fp32 on another may differ by, and rounding to two digits on the page.
TOLERANCE: Final = 0.005
ROUNDING: Final = 0.005
TABLES: Final[dict[Readout, str]] = {"mean": "dev", "sample": "dev_sample"}
COLUMNS: Final = ("pearson_1px", "pearson_8px", "pearson_64px", "mean_ratio")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One thing that was looked at.

    Attributes:
        ok: whether it agrees.
        what: what was compared, with both values.
    """

    ok: bool
    what: str


def check_file(info: ModelInfo, folder: Path) -> Iterator[Comparison]:
    """Hash and size of the weights file."""
    weights = read_weights(folder, info)  # raises where the hash is not the card's
    yield Comparison(True, f"SHA-256 of {WEIGHTS_FILE} is the card's {info.weights_sha256[:16]}...")
    size = (folder / WEIGHTS_FILE).stat().st_size
    yield Comparison(size <= MAX_BYTES, f"size {size / 1e6:.2f} MB, at most {MAX_BYTES / 1e6:g} MB")
    count = sum(weight.numel() for weight in weights.values())
    yield Comparison(count > 0, f"{count / 1e6:.2f} M values")


def check_page(info: ModelInfo, text: str, measured: dict[Readout, Table]) -> Iterator[Comparison]:
    """The model's page names this version and these weights, and its tables are what was measured.

    The page's first table of markers is the read-out's, its second the draw's.
    """
    yield Comparison(f"{info.name} {info.version}" in text, f"the page is of {info.name} {info.version}")
    yield Comparison(info.weights_sha256 in text, "the page names the weights' SHA-256")
    tables = list(page_tables(text, info.panel.names))
    for number, readout in enumerate(TABLES):
        if readout not in measured:
            continue
        if number >= len(tables):
            yield Comparison(False, f"{readout}: the page has no table for it")
            continue
        yield from _compare(f"page, {readout}", tables[number], measured[readout], TOLERANCE + ROUNDING)


def check_card(info: ModelInfo, measured: dict[Readout, Table]) -> Iterator[Comparison]:
    """The tables inside the bundle are what was measured."""
    for readout, table in measured.items():
        stated = info.metrics.get(TABLES[readout])
        if not stated:
            yield Comparison(False, f"{readout}: the card has no table {TABLES[readout]!r}")
            continue
        yield from _compare(f"card, {readout}", stated, table, TOLERANCE)


def page_tables(text: str, markers: tuple[str, ...]) -> Iterator[dict[str, dict[str, float]]]:
    """Tables of a page, in Markdown, whose rows are markers and whose columns are :data:`COLUMNS`."""
    rows: dict[str, dict[str, float]] = {}
    for line in [*text.splitlines(), ""]:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and cells[0] in (*markers, MEAN_ROW):
            numbers = [float(c) if re.fullmatch(r"-?\d+(\.\d+)?", c) else None for c in cells[1:]]
            if len(numbers) == len(COLUMNS) and numbers[0] is not None:
                rows[cells[0]] = {k: v for k, v in zip(COLUMNS, numbers, strict=True) if v is not None}
        elif not line.startswith("|"):
            if set(rows) >= set(markers):
                yield rows
            rows = {}


def _compare(
    title: str, stated: dict[str, dict[str, float]], measured: Table, tolerance: float
) -> Iterator[Comparison]:
    """One line a table, and one a figure that is off."""
    missing = [marker for marker in measured if marker not in stated]
    worst, off = 0.0, []
    for marker in set(measured) - set(missing):
        for key, value in stated[marker].items():
            if key not in measured[marker]:
                continue
            difference = abs(value - measured[marker][key])
            worst = max(worst, difference)
            if not difference <= tolerance * (max(1.0, abs(value)) if key == "mean_ratio" else 1.0):
                off.append(f"{title}: {marker} {key} is {value:g}, measured {measured[marker][key]:g}")
    mean = measured[MEAN_ROW]
    shown = " / ".join(f"{mean[key]:.3f}" for key in COLUMNS[:3])
    yield Comparison(
        not missing and not off, f"{title}: mean {shown}, largest difference {worst:.4f} (at most {tolerance:g})"
    )
    yield from (Comparison(False, f"{title}: {marker} has no row") for marker in missing)
    yield from (Comparison(False, text) for text in sorted(off))


def check(model: str, data: Path, page: Path | None, readouts: Iterable[Readout]) -> Iterator[Comparison]:
    """All comparisons, as they come.

    Args:
        model: a shipped one's name, or a bundle's folder.
        data: folder of paired tiles with a dev split.
        page: the model's page; None leaves it out.
        readouts: to measure anew.

    Raises:
        BundleError: the bundle is damaged, its hash included.
    """
    folder = find_bundle(model)
    info = read_info(folder)
    yield from check_file(info, folder)
    measured: dict[Readout, Table] = {}
    with closing(load_model(model)) as stainer:
        for readout in readouts:
            measured[readout] = measure(stainer, data, SampleOptions(readout))
    yield from check_card(info, measured)
    if page is not None:
        yield from check_page(info, page.read_text(encoding="utf-8"), measured)


def main() -> int:
    """Parse the command line, check, and say what was compared; exit 1 where something disagrees."""
    parser = argparse.ArgumentParser(prog="python -m mupd_wsi.training.weights_check", description=__doc__)
    parser.add_argument("model", help="a shipped model's name, or a bundle's folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of paired tiles with tiles.csv")
    parser.add_argument("--page", type=Path, help="the model's page, with its tables in Markdown")
    parser.add_argument("--readouts", nargs="+", choices=tuple(TABLES), default=list(TABLES))
    arguments = parser.parse_args()
    right = True
    try:
        for one in check(arguments.model, arguments.data, arguments.page, arguments.readouts):
            sys.stdout.write(f"{'ok ' if one.ok else 'OFF'}  {one.what}\n")
            sys.stdout.flush()
            right &= one.ok
    except (MupdError, OSError) as error:
        sys.stderr.write(f"weights-check: error: {error}\n")
        return 3
    sys.stdout.write("the weights are what their card says\n" if right else "the card or the page is not true\n")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
