"""Bundles out of foreign weights: a safetensors file, an explicit map of its keys, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mupd_wsi.errors import BundleError
from mupd_wsi.model.bundle import ModelInfo, info_from_json, write_bundle
from mupd_wsi.model.network import MuPDNetwork

#: fp16 holds no more than this.
MAX_HALF: Final = 65504.0


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where one of the network's tensors comes from.

    Attributes:
        key: in the foreign file.
        transpose: whether the last two axes change places, as where a linear layer is stored the other way round.
    """

    key: str
    transpose: bool = False


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of every key.

    Attributes:
        used: the network's keys with the foreign ones they came from.
        missing: keys of the network that the map does not name, or names with a key that the file lacks.
        wrong_shape: keys of the network with (wanted shape, shape that came).
        unused: keys of the file that the map does not name.
        unknown: keys of the map that the network does not have.
        not_finite: keys whose values are not finite, or too large for fp16.
    """

    used: Mapping[str, str]
    missing: Mapping[str, str]
    wrong_shape: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    unused: tuple[str, ...]
    unknown: tuple[str, ...]
    not_finite: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether a bundle can be made: every tensor of the network has its values. Unused keys do no harm."""
        return not (self.missing or self.wrong_shape or self.unknown or self.not_finite)


def import_weights(weights: Path, key_map: Path, config: Path, output: Path) -> tuple[ImportReport, ModelInfo | None]:
    """Make a bundle of foreign weights, if they fit.

    Args:
        weights: safetensors file.
        key_map: JSON object: ``{"our.key": "foreign.key"}``, or with ``{"key": "foreign.key", "transpose": true}``.
        config: the model card as ``model.json`` has it; ``weights_sha256`` may be left out.
        output: folder of the bundle; written only where everything fits.

    Returns:
        What became of every key, and the bundle's card, None where nothing was written.

    Raises:
        BundleError: a file cannot be read, or is not what it should be.
    """
    info = _read_card(config)
    sources = _read_map(key_map)
    try:
        foreign = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{weights} is no safetensors file that can be read: {error}") from error
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in MuPDNetwork(info.network).state_dict().items()}
    report, state = match_keys(wanted, sources, foreign)
    if not report.ok:
        return report, None
    return report, write_bundle(output, info, state)


def match_keys(
    wanted: Mapping[str, tuple[int, ...]], sources: Mapping[str, KeySource], foreign: Mapping[str, Tensor]
) -> tuple[ImportReport, dict[str, Tensor]]:
    """Bring foreign tensors to the network's names.

    Args:
        wanted: shapes of the network's tensors.
        sources: where each comes from.
        foreign: the file's tensors.
    """
    state: dict[str, Tensor] = {}
    missing: dict[str, str] = {}
    wrong: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    broken = []
    for name, shape in wanted.items():
        source = sources.get(name)
        if source is None or source.key not in foreign:
            missing[name] = "not in the map" if source is None else f"the file has no {source.key}"
            continue
        value = foreign[source.key]
        if source.transpose and value.ndim >= 2:
            value = value.transpose(-1, -2)
        if tuple(value.shape) != shape:
            wrong[name] = (shape, tuple(value.shape))
        elif not bool((value.float().abs() <= MAX_HALF).all()):
            broken.append(name)
        else:
            state[name] = value.float()
    named = {source.key for source in sources.values()}
    report = ImportReport(
        used={name: sources[name].key for name in state},
        missing=missing,
        wrong_shape=wrong,
        unused=tuple(sorted(set(foreign) - named)),
        unknown=tuple(sorted(set(sources) - set(wanted))),
        not_finite=tuple(broken),
    )
    return report, state


def _read_map(path: Path) -> dict[str, KeySource]:
    values = _read_json(path, "a map of keys")
    found = {}
    for name, value in values.items():
        if isinstance(value, str):
            found[name] = KeySource(value)
        elif isinstance(value, dict) and isinstance(value.get("key"), str) and set(value) <= {"key", "transpose"}:
            found[name] = KeySource(value["key"], bool(value.get("transpose", False)))
        else:
            raise BundleError(f"{path}: {name} must map to a key, or to {{key, transpose}}, got {value!r}")
    return found


def _read_card(path: Path) -> ModelInfo:
    values = _read_json(path, "a model card")
    try:
        return info_from_json({**values, "weights_sha256": ""})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, BundleError):
            raise
        reason = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{path} is not a model card: {reason}; 'mupd-wsi models' shows what one holds") from error


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; give {what} in JSON") from error
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path} is not {what}: expected a JSON object")
    return values
