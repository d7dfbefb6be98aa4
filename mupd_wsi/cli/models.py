"""``mupd-wsi models``: the models there are, and what is known about them."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mupd_wsi.cli.console import Console, json_option, verbose_option
from mupd_wsi.cli.failures import EXIT_PROBLEMS

if TYPE_CHECKING:
    from mupd_wsi.model import ModelInfo
    from mupd_wsi.model.foreign_card import ForeignCard

#: Width of a card, characters.
CARD_WIDTH: Final = 110


class ShownByDefault(click.Group):
    """A group whose command ``show`` need not be said: ``models NAME`` is ``models show NAME``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``show`` in front of what names no other command and asks for no help."""
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=ShownByDefault, subcommand_metavar="[NAME] | import ...")
def models() -> None:
    """List the models, show one (a name, a folder, or zoo:NAME), or import foreign weights.

    \b
    Examples:
      mupd-wsi models
      mupd-wsi models mupd-mini
      mupd-wsi models import --weights theirs.safetensors --key-map map.json --config model.json -o ours
    """


@models.command()
@click.argument("name", required=False)
@json_option
@verbose_option
@click.pass_obj
def show(console: Console, name: str | None) -> None:
    """List the models, or show one (a name, a folder, or zoo:NAME): targets, um/px, licence, measured quality.

    \b
    Examples:
      mupd-wsi models
      mupd-wsi models mupd-mini
    """
    from mupd_wsi.model.bundle import bundled_models
    from mupd_wsi.model.loading import read_card

    shown = [as_json(read_card(wanted)) for wanted in ([name] if name else bundled_models())]
    if name:
        console.result(card(shown[0]), shown[0])
    else:
        console.result("\n".join(map(summary, shown)), {"models": shown})


@models.command("import")
@click.option("--weights", required=True, type=click.Path(path_type=Path), help="The foreign safetensors file.")
@click.option("--key-map", required=True, type=click.Path(path_type=Path), help="JSON: our keys to theirs.")
@click.option("--config", required=True, type=click.Path(path_type=Path), help="The model card, as model.json has it.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the bundle.")
@json_option
@verbose_option
@click.pass_obj
def import_(console: Console, weights: Path, key_map: Path, config: Path, output: Path) -> int:
    """Make a bundle of foreign weights by an explicit map of keys, and tell what became of each; exit 1 if one is off.

    The map is {"our.key": "their.key"}, or {"our.key": {"key": "their.key", "transpose": true}}.

    \b
    Example:
      mupd-wsi models import --weights theirs.safetensors --key-map map.json --config model.json -o ours
    """
    from mupd_wsi.model.importing import import_weights

    report, info = import_weights(weights, key_map, config, output)
    lines = [f"used         {ours} <- {theirs}" for ours, theirs in report.used.items()]
    lines += [f"unused       {key}" for key in report.unused]
    lines += [f"missing      {key}: {why}" for key, why in report.missing.items()]
    lines += [f"wrong shape  {k}: wanted {a}, came {b}" for k, (a, b) in report.wrong_shape.items()]
    lines += [f"unknown      {key}: the network has no such key" for key in report.unknown]
    lines += [f"not finite   {key}: or too large for fp16" for key in report.not_finite]
    lines.append(f"bundle: {output.resolve()}" if info else "nothing was written: mend the map, or the card's network")
    values = asdict(report) | {"ok": report.ok, "bundle": str(output.resolve()) if info else None}
    console.result("\n".join(lines), values)
    return 0 if info else EXIT_PROBLEMS


def as_json(info: ModelInfo | ForeignCard) -> dict[str, Any]:
    """What a bundle says of its model, less the network's inner shape."""
    return {
        "name": info.name,
        "version": info.version,
        "license": info.license,
        "credit": info.credit,
        "targets": list(info.panel.names),
        "mpp": info.mpp,
        "tile": info.tile,
        "halo": info.halo,
        "sample_steps": info.steps,
        "display_window": {
            readout: {name: list(window) for name, window in zip(info.panel.names, windows, strict=True)}
            for readout, windows in info.display_window.items()
        },
        "weights_sha256": info.weights_sha256,
        "training": dict(info.training),
        "metrics": dict(info.metrics),
        "limits": list(info.limits),
    }


def summary(model: dict[str, Any]) -> str:
    """One line for the list."""
    count = len(model["targets"])
    return f"{model['name']} {model['version']}  {count} targets at {model['mpp']:g} um/px, {model['license']}"


def card(model: dict[str, Any]) -> str:
    """All that a user would ask of one model."""
    rows = [
        ("targets", ", ".join(model["targets"])),
        ("um/px", f"{model['mpp']:g}"),
        ("tile", f"{model['tile']} px, {model['halo']} px of which are halo on each side"),
        ("licence", model["license"]),
        ("credit", model["credit"]),
        ("weights", f"SHA-256 {model['weights_sha256']}"),
        ("training", "; ".join(f"{name} {value}" for name, value in model["training"].items())),
        *(("limit", text) for text in model["limits"]),
    ]
    lines = [f"{model['name']} {model['version']}"]
    lines += [
        textwrap.fill(text, CARD_WIDTH, initial_indent=f"{name:<10}", subsequent_indent=" " * 10)
        for name, text in rows
        if text
    ]
    for split, by_marker in model["metrics"].items():
        lines += ["", *quality_table(split, by_marker)]
    return "\n".join(lines)


def quality_table(split: str, by_marker: dict[str, dict[str, float]]) -> list[str]:
    """Measured quality as a table: a line a marker, a column a metric."""
    metrics = list(dict.fromkeys(metric for values in by_marker.values() for metric in values))
    width = max(map(len, (*by_marker, split)))
    lines = [f"{split:<{width}}" + "".join(f"  {metric:>12}" for metric in metrics)]
    for marker, values in by_marker.items():
        cells = (f"{values[m]:>12.3f}" if m in values else f"{'-':>12}" for m in metrics)
        lines.append(f"{marker:<{width}}  " + "  ".join(cells))
    return lines
