"""``mupd-wsi evaluate``: how far a virtual slide agrees with the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mupd_wsi.cli.console import Console, json_option, quiet_option, verbose_option
from mupd_wsi.cli.options import RegionType
from mupd_wsi.cli.progress import progress_display
from mupd_wsi.errors import UsageError
from mupd_wsi.geometry import Region

if TYPE_CHECKING:
    from mupd_wsi.evaluation import Evaluation, EvaluationOptions


@click.command()
@click.option("--real", required=True, type=click.Path(path_type=Path), help="The chemically stained slide.")
@click.option("--virtual", required=True, type=click.Path(path_type=Path), help="The virtually stained slide.")
@click.option("--roi", type=RegionType(), help="Measure this part only, in level-0 pixels of the real slide.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the report (HTML, JSON, CSV)."
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    metavar="NAME=SLIDE",
    help="Another virtual slide for the same table, e.g. of a simpler model; may be repeated.",
)
@click.option(
    "--positive",
    multiple=True,
    metavar="MARKER=LEVEL",
    help="The real intensity from which on a pixel or cell is positive. Default: a quarter of the 99.8 % quantile.",
)
@click.option(
    "--thresholds",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="JSON",
    help="evaluation.json of a development slide: call cells by its thresholds, instead of the best ones here.",
)
@click.option(
    "--features",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="NETWORK",
    help="A feature network of yours (.pt2, or TorchScript) to tell FID and KID with. It runs as code.",
)
@json_option
@verbose_option
@quiet_option
@click.pass_obj
def evaluate(console: Console, /, **chosen: Any) -> None:
    """Measure a virtual slide against the real one: correlation, likeness, positive areas, cells, uncertainty.

    Channels are matched by name in any spelling. Figures have 95 % intervals (bootstrap by tile).

    \b
    Examples:
      mupd-wsi evaluate --real panel.ome.tiff --virtual slide.ome.tiff --out report
      mupd-wsi evaluate --real cd8-ihc.svs --virtual slide.CD8.ome.tiff --json
    """
    from mupd_wsi.evaluation import EvaluationOptions, evaluate_slides, write_report
    from mupd_wsi.evaluation.report import require_report_libraries

    real, virtual, out, features = (chosen[name] for name in ("real", "virtual", "out", "features"))
    if out:
        require_report_libraries()
    options = EvaluationOptions(
        roi=chosen["roi"],
        positive={name: _number(name, text) for name, text in _pairs("--positive", chosen["positive"])},
        thresholds=_thresholds(chosen["thresholds"]) if chosen["thresholds"] else {},
    )
    others = {name: Path(path) for name, path in _pairs("--baseline", chosen["baselines"])}
    with progress_display(console, "evaluating") as progress:
        found = evaluate_slides(real, virtual, options, progress)
    measured = {name: evaluate_slides(real, path, options) for name, path in others.items()}
    values = found.as_json()
    if measured:
        values["baselines"] = {name: other.as_json() for name, other in measured.items()}
    if features:
        values["distances"] = _distances(real, virtual, features, options)
    lines = table(found, measured)
    if features:
        lines += "".join(f"\n{name} {value:.4f}" for name, value in values["distances"].items())
    if out:
        path = write_report(out, found, (real, virtual), measured)
        lines, values["report"] = f"{lines}\nreport: {path.resolve()}", str(path.resolve())
    console.result(lines, values)


def table(found: Evaluation, others: dict[str, Evaluation]) -> str:
    """The figures that matter most, a line a marker."""
    keys = [
        "pearson_1px",
        "pearson_8px",
        "pearson_64px",
        "spearman",
        "ssim",
        "mean_ratio",
        "dice",
        "cell_auc",
        "cell_f1",
    ]
    keys = [key for key in keys if key in next(iter(found.table.values()))]
    width = max(map(len, (*found.table, "marker")))
    lines = [f"{'marker':<{width}}" + "".join(f"  {key:>12}" for key in keys)]
    for marker, row in found.table.items():
        cells = (f"{row[key].value:>12.3f}" if row[key].value == row[key].value else f"{'-':>12}" for key in keys)
        lines.append(f"{marker:<{width}}  " + "  ".join(cells))
    for name, other in others.items():
        mean = other.table["mean"]
        lines.append(f"{name}: mean Pearson " + " / ".join(f"{mean[key].value:.3f}" for key in keys[:3]))
    cells_found = "no nuclear channel in both" if found.cells is None else f"{found.cells} cells"
    lines.append(f"{found.tiles} tiles at {found.mpp:g} um/px, {cells_found}; intervals with --json or --out")
    return "\n".join(lines)


def _distances(real: Path, virtual: Path, network: Path, options: EvaluationOptions) -> dict[str, float]:
    from mupd_wsi.evaluation.distances import feature_distances

    region: Region | None = options.roi
    return feature_distances(real, virtual, network, region)


def _pairs(option: str, given: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in given]
    wrong = [text for text, (name, _, value) in zip(given, pairs, strict=True) if not name or not value]
    if wrong:
        raise UsageError(f"{option} {wrong[0]!r} is not NAME=VALUE")
    return [(name, value) for name, _, value in pairs]


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"--positive {name}={text} needs a number, such as {name}=25") from error


def _thresholds(path: Path) -> dict[str, float]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["f1_thresholds"]
        return {str(name): float(level) for name, level in values.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no evaluation.json of an earlier evaluation; give one, or leave it out") from error
