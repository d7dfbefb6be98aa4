"""The weights that a run begins with: those of a bundle, with the heads of its markers moved to where they belong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from mupd_wsi.errors import UsageError
from mupd_wsi.markers import canonical
from mupd_wsi.model.bundle import ModelInfo, read_info, read_weights
from mupd_wsi.model.network import MuPDNetwork
from mupd_wsi.model.transform import TargetTransform
from mupd_wsi.training.recipe import Recipe, without_heads

#: Parts whose parameters have an axis of markers, patches beside it.
_OF_MARKERS: Final = ("head", "embed_noisy")


def starting_weights(recipe: Recipe, bundle: Path, transform: TargetTransform) -> dict[str, Tensor]:
    """The weights of a bundle, for a run to begin with.

    Everything that does not depend on the markers is kept as it is. Markers that the bundle has keep their heads,
    brought from its standardised units to the run's; new ones begin at random. Heads that were trained on
    finished features (:mod:`mupd_wsi.training.heads`) are left out.

    Args:
        recipe: of the run.
        bundle: folder.
        transform: of the run's targets.

    Returns:
        Part of a state of the recipe's network.

    Raises:
        BundleError: there is no such bundle, or it is damaged.
        UsageError: its network has another shape, or another um/px.
    """
    info, config = read_info(bundle), recipe.network_config
    if config != replace(info.network, targets=config.targets, **without_heads()):
        raise UsageError(f"{recipe.name} cannot start from {info.name}: its network has another shape")
    if abs(info.mpp - recipe.mpp) > 0.01 * recipe.mpp:
        raise UsageError(f"{recipe.name} is at {recipe.mpp:g} um/px and cannot start from {info.name} at {info.mpp:g}")
    old = {name: weight.float() for name, weight in read_weights(bundle, info).items()}
    torch.manual_seed(recipe.seed)
    fresh = {name: weight.clone() for name, weight in MuPDNetwork(config).state_dict().items()}
    return _moved(old, fresh, info, recipe, transform)


def _moved(
    old: dict[str, Tensor], fresh: dict[str, Tensor], info: ModelInfo, recipe: Recipe, transform: TargetTransform
) -> dict[str, Tensor]:
    """``old`` with its markers' rows and columns put where ``fresh`` has them."""
    places = {canonical(name): i for i, name in enumerate(info.panel.names)}
    pairs = [(new, places[canonical(name)]) for new, name in enumerate(recipe.markers) if canonical(name) in places]
    area, count = recipe.network_config.patch**2, len(recipe.markers)
    started = {name: weight for name, weight in old.items() if name in fresh and not _of_markers(name)}
    for name in filter(_of_markers, fresh):
        target, source = fresh[name], old[name]
        if name.startswith("head."):
            _move_outputs(target.view(area, count, -1), source.view(area, len(places), -1), pairs, info, transform)
        else:
            target.zero_()  # a new marker, of which nothing is known, says nothing to the others at first
            for new, previous in pairs:
                target.view(-1, area, count)[..., new] = source.view(-1, area, len(places))[..., previous]
        started[name] = fresh[name]
    return started


def _move_outputs(
    target: Tensor, source: Tensor, pairs: list[tuple[int, int]], info: ModelInfo, transform: TargetTransform
) -> None:
    """Rows of a head's weight or bias, (area, markers, width or 1), from the bundle's standardised units to the run's.

    A root is r = z s + m, so the run's z' = (z s + m - m') / s'.
    """
    is_bias = target.shape[2] == 1
    for new, previous in pairs:
        scale = info.transform.std[previous] / transform.std[new]
        shift = (info.transform.mean[previous] - transform.mean[new]) / transform.std[new]
        target[:, new] = source[:, previous] * scale + (shift if is_bias else 0.0)


def _of_markers(name: str) -> bool:
    """Whether a parameter has an axis of markers."""
    return name.partition(".")[0] in _OF_MARKERS
