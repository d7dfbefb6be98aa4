"""Model bundles: a folder with ``model.json`` (what the model is) and ``model.safetensors`` (weights). Never pickle."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor

from mupd_wsi.errors import BundleError
from mupd_wsi.markers import Marker, Panel
from mupd_wsi.model.calibration import Calibration, RootMoments
from mupd_wsi.model.config import NetworkConfig
from mupd_wsi.model.extents import Extent, needs
from mupd_wsi.model.noise import Blurs, Gains
from mupd_wsi.model.transform import TargetTransform
from mupd_wsi.normalising import StainProfile
from mupd_wsi.request import Fuse

CARD_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
BUNDLED = Path(__file__).parent / "bundles"
MAX_CARD_BYTES = 4 << 20
MOST_WINDOWS = 2  # that a draw's halo is wider than a read-out's
MAX_BLUR = 64  # px; noise is computed for three times as much around every tile
MAX_GAIN = 4.0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a bundle says of its model.

    Attributes:
        name: of the model.
        version: of the weights.
        license: SPDX identifier.
        credit: whose data it was trained on.
        panel: the markers, in channel order.
        mpp: um/px of input and output.
        tile: side of the square that the network is given, px, halo included.
        halo: px on each side of a tile that are computed and thrown away.
        lead: px of a tile before its first whole attention window; the same for all tiles, which so share windows.
        network: shape of the network.
        transform: between intensities and what the network predicts.
        calibration: from the read-out to expected intensities.
        draw_calibration: from a draw to intensities that are distributed as the real ones are.
        display_window: by read-out, the intensities (low, high) between which a viewer should show each channel, chosen
            on the training columns; high maps to grey 255, what lies below low is no more than unspecific signal.
        stain_reference: the H&E staining of the training slides; None leaves every slide as it is.
        steps: default number of steps of ``sample``.
        training: how it was trained (data, splits, steps), for people.
        metrics: measured quality: ``{"dev": {marker: {"pearson_1px": ..., ...}}}``.
        limits: what may not be expected of it, in words.
        weights_sha256: of the weights file.
        fuse: how its tiles are joined unless the user says otherwise: "crop" where nothing beyond the halo is seen.
        time_shift: of a draw's flow times (:func:`mupd_wsi.model.flow.shifted`); 1 spaces them evenly.
        noise_blurs: what colours the noise that a draw begins with (:func:`mupd_wsi.model.noise.colored`).
        noise_gains: by marker, how many times as strong as in training each blur's part of that noise is; none: 1.
        draw_moments: what a draw is a deviation from; None where it is the stain itself, standardised.
    """

    name: str
    version: str
    license: str
    credit: str
    panel: Panel
    mpp: float
    tile: int
    halo: int
    lead: int
    network: NetworkConfig
    transform: TargetTransform
    calibration: Calibration
    draw_calibration: Calibration
    display_window: Mapping[str, tuple[tuple[float, float], ...]]
    stain_reference: StainProfile | None
    steps: int
    training: Mapping[str, Any]
    metrics: Mapping[str, Any]
    limits: tuple[str, ...]
    weights_sha256: str
    fuse: Fuse = "crop"
    time_shift: float = 1.0
    noise_blurs: Blurs = ()
    noise_gains: Gains = ()
    draw_moments: RootMoments | None = None

    @property
    def painted(self) -> bool:
        """Whether it gives brightfield pictures instead of intensities of markers."""
        return False

    @property
    def period(self) -> int:
        """px by which the grid of tiles may be moved so that the network's attention windows stay where they are."""
        return self.network.window_px

    def halo_of(self, steps: int) -> int:
        """px on each side of a tile that are thrown away, so that tiles agree on what is drawn in so many steps.

        A step sees ``network.decoder_reach`` px around a place, of features that in turn depend on what is around them:
        a draw needs whole attention windows more than the read-out does. Of many steps the first matter little to the
        last, and :data:`MOST_WINDOWS` are enough.

        Args:
            steps: of a draw; 0 is the read-out.
        """
        network, core, halo = self.network, self.tile - 2 * self.halo, self.halo
        reach = steps * network.decoder_reach
        for _ in range(MOST_WINDOWS):
            seen = Extent(halo - reach, halo + core + reach)
            if seen.start >= 0 and needs(network, core + 2 * halo, self.lead, seen).down[-1].start >= self.lead:
                break
            halo += network.window_px
        return halo

    def __post_init__(self) -> None:
        channels = len(self.panel)
        lengths = [len(self.transform.mean), len(self.calibration.low), len(self.draw_calibration.low)]
        lengths += [self.network.targets]
        lengths += [] if self.draw_moments is None else [len(self.draw_moments.floor)]
        lengths += [len(windows) for windows in self.display_window.values()]
        lengths += [len(self.noise_gains)] if self.noise_gains else []
        if set(lengths) != {channels}:
            raise BundleError(f"model {self.name}: {channels} markers, but per-marker values of lengths {lengths}")
        if set(self.display_window) != {"mean", "sample"}:
            raise BundleError(f"model {self.name}: display_window needs 'mean' and 'sample'")
        if any(not 0 <= low < high for windows in self.display_window.values() for low, high in windows):
            raise BundleError(f"model {self.name}: every display window must lie above 0 and rise")
        if (self.draw_moments is not None) != (self.network.pixel_width > 0):
            raise BundleError(f"model {self.name}: draw_moments and a network with pixel_width go together")
        if self.fuse not in get_args(Fuse):
            raise BundleError(f"model {self.name}: fuse must be one of {', '.join(get_args(Fuse))}, got {self.fuse!r}")
        if not self.time_shift > 0:
            raise BundleError(f"model {self.name}: time_shift must lie above 0, got {self.time_shift}")
        if any(not 0 < sigma <= MAX_BLUR or weight <= 0 for sigma, weight in self.noise_blurs):
            raise BundleError(
                f"model {self.name}: noise_blurs need widths of at most {MAX_BLUR} px and weights above 0"
            )
        if self.noise_gains and {len(row) for row in self.noise_gains} != {len(self.noise_blurs)}:
            raise BundleError(f"model {self.name}: noise_gains need a number for each of the noise_blurs")
        if any(not 0 <= gain <= MAX_GAIN for row in self.noise_gains for gain in row):
            raise BundleError(f"model {self.name}: noise_gains must lie between 0 and {MAX_GAIN}")
        window, stride = self.network.window_px, self.network.trunk_stride
        core = self.tile - 2 * self.halo
        if core < 1 or core % window or not 0 <= self.lead <= self.halo or self.lead % stride or self.halo % stride:
            raise BundleError(
                f"model {self.name}: a tile's core must be a multiple of {window} px, halo and lead of {stride} px, "
                f"got tile {self.tile}, halo {self.halo}, lead {self.lead}"
            )


def bundled_models() -> tuple[str, ...]:
    """Names of the models inside the package."""
    return tuple(sorted(p.name for p in BUNDLED.iterdir() if (p / CARD_FILE).is_file())) if BUNDLED.is_dir() else ()


def find_bundle(name_or_folder: str | Path) -> Path:
    """Folder of a bundle, by the name of a shipped model or by its own path.

    Raises:
        BundleError: there is none.
    """
    if str(name_or_folder) in bundled_models():
        return BUNDLED / str(name_or_folder)
    folder = Path(name_or_folder)
    if not (folder / CARD_FILE).is_file():
        raise BundleError(
            f"no model {str(name_or_folder)!r}: give a folder with {CARD_FILE}, or name: {', '.join(bundled_models())}"
        )
    return folder


def read_info(folder: Path) -> ModelInfo:
    """Read a bundle's card, without its weights.

    Raises:
        BundleError: unreadable, not JSON, unknown or missing fields, values that do not fit together.
    """
    path = folder / CARD_FILE
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise BundleError(f"{path} is larger than {MAX_CARD_BYTES >> 20} MiB: it is no model card")
        card = json.loads(path.read_text(encoding="utf-8"))
        return info_from_json(card)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(
            f"{path} is not a model card of this version: {_reason(error)}; get the bundle anew"
        ) from error


def read_weights(folder: Path, info: ModelInfo) -> dict[str, Tensor]:
    """Read a bundle's weights after checking their hash.

    Raises:
        BundleError: unreadable, or not the bytes that the card names.
    """
    path = folder / WEIGHTS_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; get the bundle anew") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != info.weights_sha256:
        raise BundleError(
            f"{path} is damaged or was changed: its SHA-256 is {digest[:12]}..., the card says "
            f"{info.weights_sha256[:12]}...; get the bundle anew"
        )
    try:
        return parse_safetensors(content)
    except SafetensorError as error:
        raise BundleError(f"{path} is not a safetensors file: {error}") from error


def write_bundle(folder: Path, info: ModelInfo, weights: Mapping[str, Tensor]) -> ModelInfo:
    """Write a bundle; weights are stored as fp16.

    Args:
        folder: made where it is missing.
        info: ``weights_sha256`` is replaced by the hash of what is written.
        weights: the network's state.

    Returns:
        The info as written.
    """
    halves = {k: v.detach().to(torch.float16).contiguous() for k, v in sorted(weights.items())}
    # One entry: safetensors writes several in any order, and the same weights would get another hash.
    content = format_safetensors(halves, metadata={"model": f"{info.name} {info.version}"})
    card = _info_to_json(info) | {"weights_sha256": hashlib.sha256(content).hexdigest()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(content)
    (folder / CARD_FILE).write_text(_compact_lists(json.dumps(card, indent=2)) + "\n", encoding="utf-8")
    return read_info(folder)


def state_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes of weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _info_to_json(info: ModelInfo) -> dict[str, Any]:
    card = asdict(info)
    card["panel"] = [{"name": m.name, "color": m.color} for m in info.panel]
    return card


def info_from_json(card: Mapping[str, Any]) -> ModelInfo:
    """A card from its JSON values.

    Raises:
        BundleError: unknown fields, or values that do not fit together.
        KeyError, TypeError, ValueError: fields that are missing or of another kind.
    """
    unknown = set(card) - {f.name for f in fields(ModelInfo)}
    if unknown:
        raise BundleError(f"unknown model field(s) {', '.join(sorted(unknown))}: the bundle needs a newer mupd-wsi")
    return ModelInfo(
        **{
            **card,
            "panel": Panel(tuple(Marker(m["name"], (*m["color"],)) for m in card["panel"])),
            "network": NetworkConfig.from_json(card["network"]),
            "transform": TargetTransform(tuple(card["transform"]["mean"]), tuple(card["transform"]["std"])),
            "calibration": Calibration.from_json(card["calibration"]),
            "draw_calibration": Calibration.from_json(card["draw_calibration"]),
            "display_window": {
                readout: tuple((float(low), float(high)) for low, high in windows)
                for readout, windows in card["display_window"].items()
            },
            "stain_reference": StainProfile.from_json(card["stain_reference"]) if card["stain_reference"] else None,
            "limits": tuple(card["limits"]),
            "noise_blurs": tuple((float(sigma), float(weight)) for sigma, weight in card.get("noise_blurs", ())),
            "noise_gains": tuple(tuple(map(float, row)) for row in card.get("noise_gains", ())),
            "draw_moments": RootMoments.from_json(moments) if (moments := card.get("draw_moments")) else None,
        }
    )


def _compact_lists(text: str) -> str:
    """Put lists of numbers on one line, so that a card can be read."""
    return re.sub(
        r"\[[\s\d.,eE+-]*\]", lambda m: re.sub(r"\s+", " ", m.group()).replace("[ ", "[").replace(" ]", "]"), text
    )


def _reason(error: Exception) -> str:
    return f"field {error} is missing" if isinstance(error, KeyError) else str(error)
