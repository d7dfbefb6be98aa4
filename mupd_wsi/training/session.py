"""A whole training: look at the data, train, keep the log, and make the bundle."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from mupd_wsi.errors import UsageError
from mupd_wsi.model.bundle import ModelInfo
from mupd_wsi.model.devices import resolve_device
from mupd_wsi.training.export import export
from mupd_wsi.training.heads import HeadTrainer
from mupd_wsi.training.preflight import Preflight, look_before
from mupd_wsi.training.recipe import CHECKPOINT, Recipe, starting_bundle
from mupd_wsi.training.sources import open_pairs
from mupd_wsi.training.trainer import Trainer, TrainingProgress

#: Dev crops and markers in a sample picture.
SHOWN_CROPS: Final = 3
SHOWN_MARKERS: Final = 6


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How a recipe is trained.

    Attributes:
        run: folder for checkpoints, log, sample pictures and the bundle.
        resume: go on from the folder's checkpoint; without, a folder that has one is an error.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads, each with a share of every batch; a divisor of the batch.
        start_from: a shipped model's name or a bundle's folder, overriding the recipe's.
        tensorboard: write events for TensorBoard, too.
    """

    run: Path
    resume: bool = False
    device: str = "auto"
    threads: int = 1
    start_from: str | None = None
    tensorboard: bool = False


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished training.

    Attributes:
        bundle: folder of the model.
        info: its card.
        preflight: what was found before.
        first_loss: of the first line of this session's log; None where there was nothing left to train.
        last_loss: of the last.
    """

    bundle: Path
    info: ModelInfo
    preflight: Preflight
    first_loss: float | None
    last_loss: float | None


def train(
    recipe: Recipe,
    options: TrainOptions,
    found: Callable[[Preflight], None] = lambda _: None,
    progress: Callable[[TrainingProgress], None] = lambda _: None,
) -> TrainingResult:
    """Train a model by a recipe, and write its bundle to ``run/bundle``.

    Args:
        recipe: what to train.
        options: how.
        found: called with registration and leakage, before training begins.
        progress: called every ten steps and at every look at the dev split.

    Raises:
        UsageError: the recipe, the data or the run folder do not fit together.
        SlideError: a slide or tile cannot be read.
    """
    device = resolve_device(options.device)
    recipe = _chosen(recipe, options)
    if (options.run / CHECKPOINT).is_file() and not options.resume:
        raise UsageError(f"{options.run} holds a run already; go on with --resume, or name another folder with --run")
    with closing(open_pairs(recipe, options.run / "tiles")) as pairs:
        preflight = look_before(recipe, pairs)
        found(preflight)
        trainer = Trainer(recipe, options.run, options.threads, device, pairs)
        trainer.resume()
        losses = _run(trainer, options, progress)
        if recipe.heads is not None:
            HeadTrainer(recipe, options.run, pairs, options.threads).run(progress)
        bundle = options.run / "bundle"
        info = export(recipe, options.run, bundle, pairs=pairs)
    return TrainingResult(bundle, info, preflight, *((losses[0], losses[-1]) if losses else (None, None)))


def _run(trainer: Trainer, options: TrainOptions, progress: Callable[[TrainingProgress], None]) -> list[float]:
    """Train to the end, keeping pictures and events on the way; returns the losses that were told."""
    events = _events(options)
    losses: list[float] = []

    def note(one: TrainingProgress) -> None:
        losses.append(one.loss)
        if events is not None:
            events.add_scalar("loss", one.loss, one.step)
        if one.dev_pearson is not None:
            picture = sample_picture(trainer)
            write_picture(options.run / "samples" / f"step-{one.step:06d}.png", picture)
            if events is not None:
                events.add_scalar("dev Pearson", one.dev_pearson, one.step)
                events.add_image("dev", picture, one.step, dataformats="HWC")
        progress(one)

    try:
        trainer.run(note)
    except KeyboardInterrupt:
        trainer.save()
        raise
    finally:
        if events is not None:
            events.close()
    return losses


def sample_picture(trainer: Trainer) -> NDArray[np.uint8]:
    """Some dev crops: a row a crop and side, H&E and real markers above, the read-out below, at one display range.

    Returns:
        uint8 (h, w, 3).
    """
    rows = []
    shown = range(min(SHOWN_MARKERS, len(trainer.recipe.markers)))
    for he, real in trainer.dev_crops[:SHOWN_CROPS]:
        virtual = trainer.read_out((he, real))
        high = np.maximum(np.quantile(real, 0.998, axis=(1, 2)), 1)
        for first, planes in ((he, real), (np.full_like(he, 255), virtual)):
            grey = [np.clip(planes[c] * (255.0 / high[c]), 0, 255).astype(np.uint8) for c in shown]
            rows.append(np.concatenate([first, *(np.repeat(g[..., None], 3, axis=2) for g in grey)], axis=1))
    return np.concatenate(rows)


def write_picture(path: Path, rgb: NDArray[np.uint8]) -> None:
    """Write a PNG; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, content = cv2.imencode(".png", rgb[..., ::-1])
    path.write_bytes(content.tobytes())


def _chosen(recipe: Recipe, options: TrainOptions) -> Recipe:
    if recipe.batch % options.threads:
        raise UsageError(f"--threads {options.threads} must divide the recipe's batch of {recipe.batch}")
    if options.start_from is None:
        return recipe
    # The shape of the network is the bundle's, whatever the recipe would have made of its own.
    return replace(recipe, start_from=starting_bundle(options.start_from, Path()), network={})


def _events(options: TrainOptions) -> Any:
    if not options.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard needs TensorBoard: pip install 'mupd-wsi[tensorboard]'") from error
    return SummaryWriter(str(options.run / "tensorboard"))
