"""The report of an evaluation: one HTML file that needs no other, the figures as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mupd_wsi.errors import OutputError, UsageError
from mupd_wsi.evaluation.bootstrap import Figure
from mupd_wsi.evaluation.columns import present
from mupd_wsi.evaluation.measuring import Evaluation
from mupd_wsi.evaluation.pairing import SlidePair, open_pair
from mupd_wsi.geometry import Region
from mupd_wsi.request import NOTICE
from mupd_wsi.writers.omexml import software

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

REPORT_FILE: Final = "report.html"
JSON_FILE: Final = "evaluation.json"
CSV_FILE: Final = "metrics.csv"
#: Regions shown of the best and of the worst.
SHOWN_REGIONS: Final = 3
#: Markers side by side in a picture.
ACROSS: Final = 6
_NO_REPORT: Final = "a report needs jinja2 and matplotlib: pip install 'mupd-wsi[report]'"


def require_report_libraries() -> None:
    """Check, before anything is measured, that a report can be made.

    Raises:
        UsageError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(_NO_REPORT) from error


def write_report(
    folder: Path, evaluation: Evaluation, slides: tuple[Path, Path], baselines: Mapping[str, Evaluation] | None = None
) -> Path:
    """Write ``report.html``, ``evaluation.json`` and ``metrics.csv`` into a folder.

    Args:
        folder: made where it is missing; an older report in it is replaced.
        evaluation: what was measured.
        slides: real and virtual, which the shown regions are read from again.
        baselines: other virtual slides that were measured against the same real one, by name.

    Returns:
        The HTML file.

    Raises:
        UsageError: jinja2 or matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    require_report_libraries()
    others = dict(baselines or {})
    content = _html(evaluation, slides, others)
    values = evaluation.as_json() | {"baselines": {name: other.as_json() for name, other in others.items()}}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT_FILE).write_text(content, encoding="utf-8")
        (folder / JSON_FILE).write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        with (folder / CSV_FILE).open("w", newline="", encoding="utf-8") as stream:
            write_csv(stream, evaluation)
    except OSError as error:
        raise OutputError(f"the report cannot be written to {folder}: {error.strerror}; name another --out") from error
    return folder / REPORT_FILE


def write_csv(stream: Any, evaluation: Evaluation) -> None:
    """One line a marker and metric: marker, metric, value, low, high; empty where it cannot be measured."""
    lines = csv.writer(stream)
    lines.writerow(("marker", "metric", "value", "low", "high"))
    for marker, row in evaluation.table.items():
        for metric, figure in row.items():
            values = figure.as_json().values()
            lines.writerow((marker, metric, *("" if v is None else v for v in values)))


def _html(evaluation: Evaluation, slides: tuple[Path, Path], baselines: Mapping[str, Evaluation]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    keys = {key for row in evaluation.table.values() for key in row}
    tables = present(keys)
    environment = Environment(
        loader=PackageLoader("mupd_wsi.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        e=evaluation,
        notice=NOTICE[0].upper() + NOTICE[1:],
        tables=tables,
        baselines=baselines,
        scatter=embedded(scatter_plot(evaluation)),
        regions=_region_pictures(evaluation, slides),
        glossary=[(f"{group}: {column.title}", column.text) for group, columns in tables for column in columns],
        software=software(),
        shown=lambda figure, digits: f"{figure.value:.{digits}f}" if np.isfinite(figure.value) else "-",
        interval=_interval,
        three=lambda row: " / ".join(f"{row[f'pearson_{p}px'].value:.2f}" for p in (1, 8, 64)),
    )


def _interval(figure: Figure, digits: int) -> str:
    if not (np.isfinite(figure.low) and np.isfinite(figure.high)):
        return ""
    return f"{figure.low:.{digits}f} to {figure.high:.{digits}f}"


def scatter_plot(evaluation: Evaluation) -> Plot:
    """A panel a marker: means over squares of 64 px, real across and virtual up, with the line of equality."""
    from matplotlib.figure import Figure as Plot

    markers = evaluation.markers
    rows = -(-len(markers) // ACROSS)
    plot = Plot(figsize=(2.4 * min(ACROSS, len(markers)), 2.5 * rows), layout="constrained", dpi=110)
    for number, marker in enumerate(markers):
        axes = plot.add_subplot(rows, min(ACROSS, len(markers)), number + 1)
        real, virtual = evaluation.patches[:, number]
        # A speck of dust would otherwise decide the scale.
        top = max(*(float(np.quantile(side, 0.998)) for side in (real, virtual)), 1e-3) * 1.2
        axes.plot((0, top), (0, top), color="0.7", linewidth=0.8)
        axes.scatter(real, virtual, s=3, alpha=0.3, linewidths=0, color="#1f4e9c")
        axes.set_title(f"{marker}  r = {evaluation.table[marker]['pearson_64px'].value:.2f}", fontsize=9)
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        axes.tick_params(labelsize=7)
    plot.supxlabel("real", fontsize=9)
    plot.supylabel("virtual", fontsize=9)
    return plot


def _region_pictures(evaluation: Evaluation, slides: tuple[Path, Path]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The regions of lowest and of highest correlation, as (title, [(text, picture)])."""
    ranked = sorted((t for t in evaluation.by_tile if np.isfinite(t[1])), key=lambda t: t[1])
    count = min(SHOWN_REGIONS, len(ranked) // 2)
    chosen = {"Worst regions": ranked[:count], "Best regions": ranked[::-1][:count]}
    if not count:
        chosen = {"Regions": ranked}
    with open_pair(*slides) as pair:
        return [
            (title, [(_where(evaluation, *one), embedded(region_picture(pair, evaluation, one[0]))) for one in tiles])
            for title, tiles in chosen.items()
        ]


def _where(evaluation: Evaluation, region: Region, pearson: float) -> str:
    x, y = (round(v * evaluation.mpp) for v in (region.x, region.y))
    return f"{x} um from the left and {y} um from the top of the real slide; mean Pearson over 8 px: {pearson:.2f}"


def region_picture(pair: SlidePair, evaluation: Evaluation, region: Region) -> Plot:
    """One place, every marker: real above, virtual below, at the same display range."""
    from matplotlib.figure import Figure as Plot

    tile, markers = pair.read(region), evaluation.markers
    across = min(ACROSS, len(markers))
    rows = 2 * -(-len(markers) // across)
    plot = Plot(figsize=(2.2 * across, 2.3 * rows), layout="constrained", dpi=110)
    for number, marker in enumerate(markers):
        row, column = divmod(number, across)
        for side, planes in enumerate((tile.real, tile.virtual)):
            axes = plot.add_subplot(rows, across, (2 * row + side) * across + column + 1)
            axes.imshow(planes[number], cmap="gray", vmin=0, vmax=evaluation.high[marker], interpolation="nearest")
            axes.set_title(f"{marker}, {('real', 'virtual')[side]}", fontsize=8)
            axes.set_axis_off()
    return plot


def embedded(plot: Plot) -> str:
    """A picture as a data URL."""
    content = io.BytesIO()
    plot.savefig(content, format="png")
    return f"data:image/png;base64,{b64encode(content.getvalue()).decode()}"
