"""A training recipe: everything that decides what a training run makes, in one YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from mupd_wsi.errors import UsageError
from mupd_wsi.markers import canonical
from mupd_wsi.model.bundle import bundled_models, find_bundle, read_info
from mupd_wsi.model.config import NetworkConfig
from mupd_wsi.model.noise import Blurs
from mupd_wsi.training.manifest import PairEntry, entry_from_mapping

#: Files of a run: the network as training left it, and with heads that were trained afterwards.
CHECKPOINT: Final = "checkpoint.pt"
HEADS: Final = "heads.pt"
#: Fields of the network that its heads bring.
HEAD_FIELDS: Final = ("pixel_width", "density_squares", "decoder_width", "decoder_depth")


@dataclass(frozen=True, slots=True)
class Damping:
    """Of ridge regression, in variances of each value that the read-out's head is told of a marker.

    Attributes:
        features: of the network's own.
        views: of the optical densities around.
    """

    features: float = 1e-7
    views: float = 1e-7


@dataclass(frozen=True, slots=True)
class HeadsRecipe:
    """How heads are trained on the features of a finished network (:mod:`mupd_wsi.training.heads`).

    Attributes:
        pixel_width: see :class:`NetworkConfig`.
        density_squares: likewise.
        decoder_width: likewise.
        decoder_depth: likewise.
        steps: optimiser steps.
        batch: crops a step.
        crop: side of a crop, px; a multiple of 8.
        learning_rate: peak of the cosine schedule.
        time_shift: of the flow times that the decoder is trained at, and that draws take.
        noise_blurs: what colours the noise (:func:`mupd_wsi.model.noise.colored`).
        noise_gains: by marker, how many times as strong each blur's part is made for draws; others' stay as they are.
        variants: how often each tile is seen: as it is, and turned, mirrored and recoloured.
        dampings: of the read-out's head, by marker; the others' is the default.
    """

    pixel_width: int
    decoder_width: int
    decoder_depth: int
    steps: int = 2000
    batch: int = 4
    crop: int = 256
    learning_rate: float = 2e-3
    variants: int = 2
    time_shift: float = 1.0
    noise_blurs: Blurs = ()
    noise_gains: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    density_squares: tuple[int, ...] = ()
    dampings: Mapping[str, Damping] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of a training run.

    Attributes:
        name: name of the model that comes out.
        data: folder of paired tiles: ``<channel>/<x>_<y>.jpg`` and ``tiles.csv`` with columns x, y, split (and slide,
            patient, where there are several); None where ``slides`` are named.
        markers: channels to predict, in output order; of brightfield IHC two: haematoxylin, and what DAB shows.
        mpp: um/px of the tiles, and of what the model will stain.
        slides: pairs of whole slides (:class:`mupd_wsi.training.manifest.PairEntry`), instead of ``data``.
        stain: what the targets are: "mif", channels; or "ihc", optical densities of haematoxylin and DAB.
        tile: side of the tiles that are cut out of whole slides, px; a multiple of 512.
        max_tiles: of a split, spread evenly; None takes all.
        normalise: whether H&E of later slides is brought to the first slide's staining.
        splits_within_slide: one slide may lie in two splits. What is measured then says nothing about other slides.
        network: fields of :class:`NetworkConfig` that differ from its defaults, or from those of ``start_from``.
        steps: optimiser steps.
        batch: crops a step.
        crop: side of a crop, px; a multiple of the network's attention window.
        learning_rate: peak of the cosine schedule.
        warmup: steps until that peak.
        weight_decay: AdamW's, on matrices.
        ema_decay: of the exponential moving average of the weights, which is what is kept.
        start_from: the bundle whose weights the run begins with (a folder, or a shipped model's name); its markers may
            be others, heads of new ones begin at random. None begins at random altogether.
        tune: what of ``start_from`` is trained: "full", or "lora", low-rank changes of its matrices and the heads.
        lora_rank: of those changes.
        generative_from: fraction of the steps after which a part of each batch is trained at random flow times.
        generative_share: that part.
        intensity_share: part of the read-out's loss that is taken on intensities, at the pixel and on means of squares
            (:data:`mupd_wsi.training.objective.SCALES`); the rest is taken on standardised roots, pixel by pixel.
        positive_share: fraction of crops drawn where some marker is bright, rather than anywhere on tissue.
        color_jitter: strength of the stain-space colour augmentation; 0 turns it off.
        seed: of weights, crops, augmentation and noise.
        validate_every: steps between looks at the dev split.
        heads: of read-out and draw, trained after this training; None: both come from the network's one linear head.
        sample_steps: default number of network evaluations of a draw, for the model's card.
        limits: what may not be expected of the model, for its card.
        version: of the model, for its card.
        license: SPDX identifier, for its card.
        credit: whose data it is trained on, for its card.
    """

    name: str
    data: Path | None
    markers: tuple[str, ...]
    mpp: float
    slides: tuple[PairEntry, ...] = ()
    stain: Literal["mif", "ihc"] = "mif"
    tile: int = 512
    max_tiles: int | None = None
    normalise: bool = True
    splits_within_slide: bool = False
    network: dict[str, Any] = field(default_factory=dict)
    steps: int = 4000
    batch: int = 8
    crop: int = 256
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.02
    ema_decay: float = 0.999
    start_from: Path | None = None
    tune: Literal["full", "lora"] = "full"
    lora_rank: int = 8
    generative_from: float = 0.6
    generative_share: float = 0.5
    intensity_share: float = 0.0
    positive_share: float = 0.5
    color_jitter: float = 1.0
    seed: int = 0
    validate_every: int = 250
    heads: HeadsRecipe | None = None
    sample_steps: int = 4
    limits: tuple[str, ...] = ()
    version: str = "0.1.0"
    license: str = "not stated"
    credit: str = "not stated"

    @property
    def network_config(self) -> NetworkConfig:
        """Shape of the network that the recipe trains; where it says nothing, that of the bundle it starts from."""
        own = {"targets": len(self.markers), **without_heads()}
        base = read_info(self.start_from).network.as_json() if self.start_from and not self.network else {}
        return NetworkConfig.from_json({**base, **own, **self.network})

    @property
    def finished_config(self) -> NetworkConfig:
        """The same with the heads that are trained afterwards."""
        if self.heads is None:
            return self.network_config
        return replace(self.network_config, **{name: getattr(self.heads, name) for name in HEAD_FIELDS})


def without_heads() -> dict[str, Any]:
    """The fields that heads bring, of a network that has none."""
    return {f.name: f.default for f in fields(NetworkConfig) if f.name in HEAD_FIELDS}


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; the paths in it are relative to its own folder.

    Raises:
        UsageError: the file is no mapping, has unknown settings, lacks one, or some do not fit together.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give a recipe in YAML") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error
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
                "heads": _heads(values.get("heads")),
                "slides": tuple(entry_from_mapping(v, path.parent) for v in values.get("slides", ())),
                "data": (path.parent / values["data"]).resolve() if values.get("data") else None,
                "start_from": starting_bundle(str(start), path.parent) if (start := values.get("start_from")) else None,
            }
        )
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: the recipe is incomplete: {error}") from error
    _check(recipe, path)
    return recipe


def _heads(values: Any) -> HeadsRecipe | None:
    if values is None:
        return None
    return HeadsRecipe(
        **{
            **values,
            "noise_blurs": tuple(tuple(blur) for blur in values.get("noise_blurs", ())),
            "noise_gains": {name: tuple(map(float, row)) for name, row in values.get("noise_gains", {}).items()},
            "density_squares": tuple(values.get("density_squares", ())),
            "dampings": {name: Damping(*map(float, pair)) for name, pair in values.get("dampings", {}).items()},
        }
    )


def starting_bundle(name: str, folder: Path) -> Path:
    """A shipped model's folder by its name, else a path relative to ``folder``."""
    return find_bundle(name) if name in bundled_models() else (folder / name).resolve()


def _check(recipe: Recipe, path: Path) -> None:
    """Raise UsageError where settings cannot be meant together."""
    window = recipe.network_config.window_px
    side = recipe.tile if recipe.slides else None
    problems = {
        "give data (a folder of tiles) or slides, one of them": bool(recipe.data) == bool(recipe.slides),
        f"crop {recipe.crop} must be a multiple of {window} px": recipe.crop % window != 0,
        "generative_share must lie in [0, 1), intensity_share in [0, 1]": not (
            0 <= recipe.generative_share < 1 and 0 <= recipe.intensity_share <= 1
        ),
        "stain must be mif or ihc": recipe.stain not in ("mif", "ihc"),
        "stain ihc has two markers, haematoxylin and what DAB shows, and needs slides": recipe.stain == "ihc"
        and (len(recipe.markers) != 2 or not recipe.slides),
        "tune must be full or lora, and lora needs start_from": recipe.tune not in ("full", "lora")
        or (recipe.tune == "lora" and recipe.start_from is None),
        f"tile must be a multiple of 512 px and hold a crop, got {side}": side is not None
        and (side % 512 != 0 or side < recipe.crop),
        "dampings and noise_gains must name markers of the recipe": recipe.heads is not None
        and not recipe.heads.dampings.keys() | recipe.heads.noise_gains.keys() <= set(recipe.markers),
        "noise_gains need a number for each of the noise_blurs": recipe.heads is not None
        and any(len(row) != len(recipe.heads.noise_blurs) for row in recipe.heads.noise_gains.values()),
        "markers must have different names": len(set(map(canonical, recipe.markers))) != len(recipe.markers),
        "steps, batch and lora_rank must be at least 1": min(recipe.steps, recipe.batch, recipe.lora_rank) < 1,
    }
    for text, is_wrong in problems.items():
        if is_wrong:
            raise UsageError(f"{path}: {text}")
