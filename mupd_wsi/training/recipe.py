"""A training recipe: everything that decides what a training run makes, in one YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from mupd_wsi.errors import UsageError
from mupd_wsi.model.config import NetworkConfig


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of a training run.

    Attributes:
        name: name of the model that comes out.
        data: folder of paired tiles: ``<channel>/<x>_<y>.jpg`` and ``tiles.csv`` with columns x, y, split.
        markers: channels to predict, in output order.
        mpp: um/px of the tiles.
        network: fields of :class:`NetworkConfig` that differ from its defaults.
        steps: optimiser steps.
        batch: crops a step.
        crop: side of a crop, px; a multiple of the network's attention window.
        learning_rate: peak of the cosine schedule.
        warmup: steps until that peak.
        weight_decay: AdamW's, on matrices.
        ema_decay: of the exponential moving average of the weights, which is what is kept.
        start_from: folder of the bundle whose weights the run begins with; None begins at random.
        generative_from: fraction of the steps after which a part of each batch is trained at random flow times.
        generative_share: that part.
        intensity_share: part of the read-out's loss that is taken on intensities, at the pixel and on means of squares
            (:data:`mupd_wsi.training.objective.SCALES`); the rest is taken on standardised roots, pixel by pixel.
        positive_share: fraction of crops drawn where some marker is bright, rather than anywhere on tissue.
        color_jitter: strength of the stain-space colour augmentation; 0 turns it off.
        seed: of weights, crops, augmentation and noise.
        validate_every: steps between looks at the dev split.
        readout_depth: blocks of the read-out that :mod:`mupd_wsi.training.readout` fits after this training; 0: none.
        readout_steps: optimiser steps of that.
        sample_steps: default number of network evaluations of a draw, for the model's card.
        limits: what may not be expected of the model, for its card.
    """

    name: str
    data: Path
    markers: tuple[str, ...]
    mpp: float
    network: dict[str, Any] = field(default_factory=dict)
    steps: int = 4000
    batch: int = 8
    crop: int = 256
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.02
    ema_decay: float = 0.999
    start_from: Path | None = None
    generative_from: float = 0.6
    generative_share: float = 0.5
    intensity_share: float = 0.0
    positive_share: float = 0.5
    color_jitter: float = 1.0
    seed: int = 0
    validate_every: int = 250
    readout_depth: int = 0
    readout_steps: int = 600
    sample_steps: int = 4
    limits: tuple[str, ...] = ()

    @property
    def network_config(self) -> NetworkConfig:
        """Shape of the network that the recipe trains."""
        return NetworkConfig.from_json({"targets": len(self.markers), **self.network})


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; ``data`` and ``start_from`` are relative to the recipe's own folder.

    Raises:
        UsageError: the file is no mapping, has unknown settings, or lacks one.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise UsageError(f"{path} is not a recipe: expected a YAML mapping of settings")
    unknown = set(values) - {f.name for f in fields(Recipe)}
    if unknown:
        raise UsageError(f"{path}: unknown setting(s) {', '.join(sorted(unknown))}")
    try:
        recipe = Recipe(
            **{
                **values,
                "markers": tuple(values["markers"]),
                "limits": tuple(values.get("limits", ())),
                "data": (path.parent / values["data"]).resolve(),
                "start_from": (path.parent / start).resolve() if (start := values.get("start_from")) else None,
            }
        )
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: the recipe is incomplete: {error}") from error
    if recipe.crop % recipe.network_config.window_px:
        raise UsageError(f"{path}: crop {recipe.crop} must be a multiple of {recipe.network_config.window_px} px")
    if not (0 <= recipe.generative_share < 1 and 0 <= recipe.intensity_share <= 1):
        raise UsageError(f"{path}: generative_share must lie in [0, 1), intensity_share in [0, 1]")
    return recipe
