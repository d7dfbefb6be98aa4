"""``mupd-wsi train``: a model of one's own, from paired slides."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mupd_wsi.cli.console import Console, json_option, quiet_option, verbose_option
from mupd_wsi.cli.progress import duration

if TYPE_CHECKING:
    from mupd_wsi.training.preflight import Preflight
    from mupd_wsi.training.session import TrainingResult
    from mupd_wsi.training.trainer import TrainingProgress


@click.command()
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--run", type=click.Path(path_type=Path, file_okay=False), help="Folder of the run. Default: runs/NAME.")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@click.option("--from", "start_from", metavar="MODEL", help="Fine-tune this model (a name, or a bundle's folder).")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Where to train.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; a divisor of the batch. Default: the cores.")
@click.option("--tensorboard", is_flag=True, help="Write events for TensorBoard, too.")
@click.option("--check", is_flag=True, help="Measure registration and leakage only; train nothing.")
@json_option
@verbose_option
@quiet_option
@click.pass_obj
def train(console: Console, /, **chosen: Any) -> None:
    """Train a model on pairs of H&E and target, as a recipe (YAML) says, and make a bundle that stains.

    Registration and leakage between the splits are measured and shown first.

    \b
    Examples:
      mupd-wsi train training/recipes/smoke.yaml
      mupd-wsi train ours.yaml --from mupd-mini --device cuda
      mupd-wsi train ours.yaml --resume
    """
    from mupd_wsi.training.preflight import look_before
    from mupd_wsi.training.recipe import load_recipe
    from mupd_wsi.training.session import TrainOptions, train
    from mupd_wsi.training.sources import open_pairs

    recipe = load_recipe(chosen.pop("config"))
    run = chosen.pop("run") or Path("runs") / recipe.name
    if chosen.pop("check"):
        with closing(open_pairs(recipe, run / "tiles")) as pairs:
            preflight = look_before(recipe, pairs)
        _warn(console, preflight)
        console.result("\n".join(preflight.lines(recipe.mpp)), _preflight_values(preflight))
        return
    threads = chosen.pop("threads") or _usable_threads(recipe.batch)

    def found(preflight: Preflight) -> None:
        _warn(console, preflight)
        for line in preflight.lines(recipe.mpp):
            console.note(line)

    with training_display(console) as progress:
        result = train(recipe, TrainOptions(run=run, threads=threads, **chosen), found, progress)
    show_result(console, result)


def show_result(console: Console, result: TrainingResult) -> None:
    """Print where the bundle lies and what it measured."""
    means = {split: table["mean"] for split, table in result.info.metrics.items()}
    lines = [f"bundle: {result.bundle.resolve()}"]
    for split, mean in means.items():
        lines.append(f"{split}: mean Pearson at 1, 8, 64 px " + " / ".join(f"{value:.3f}" for value in mean.values()))
    lines.append(f"stain with it: mupd-wsi stain slide.svs --target all --model {result.bundle}")
    values = {
        "bundle": str(result.bundle.resolve()),
        "name": result.info.name,
        "weights_sha256": result.info.weights_sha256,
        "first_loss": result.first_loss,
        "last_loss": result.last_loss,
        "metrics": {split: dict(table) for split, table in result.info.metrics.items()},
        "preflight": _preflight_values(result.preflight),
    }
    console.result("\n".join(lines), _without_nan(values))


@contextmanager
def training_display(console: Console) -> Iterator[Callable[[TrainingProgress], None]]:
    """A callback that shows steps, loss, dev correlation and the time left on standard error."""
    if console.quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(unit="step", desc="training", dynamic_ncols=True) as bar:

            def show(progress: TrainingProgress) -> None:
                bar.total = progress.steps
                shown = {"loss": f"{progress.loss:.4f}"}
                if progress.dev_pearson is not None:
                    shown["dev"] = f"{progress.dev_pearson:.3f}"
                bar.set_postfix(shown, refresh=False)
                bar.update(progress.step - bar.n)

            yield show
    else:
        yield lambda progress: click.echo(line(progress), err=True)


def line(progress: TrainingProgress) -> str:
    """``step 20/300  loss 0.9312  1.20 s/step  ETA 5:36  dev Pearson 0.2110``."""
    eta = duration((progress.steps - progress.step) * progress.seconds_per_step)
    dev = "" if progress.dev_pearson is None else f"  dev Pearson {progress.dev_pearson:.4f}"
    return (
        f"step {progress.step}/{progress.steps}  loss {progress.loss:.4f}  {progress.seconds_per_step:.2f} s/step"
        f"  ETA {eta}{dev}"
    )


def _usable_threads(batch: int) -> int:
    from mupd_wsi.model.devices import usable_cores

    return max(n for n in range(1, usable_cores() + 1) if batch % n == 0)


def _warn(console: Console, preflight: Preflight) -> None:
    for warning in preflight.warnings:
        console.warn(warning)


def _preflight_values(preflight: Preflight) -> dict[str, Any]:
    values: dict[str, Any] = _without_nan(asdict(preflight))
    return values


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for what cannot be measured."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value
