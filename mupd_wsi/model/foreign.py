"""Stains with a model of somebody else: any object that follows PyPI lazyslide-models' ``MarkerMapModelProtocol`` or
``VirtualStainModelProtocol``.

The first has ``channel_names``, ``output_mpp``, ``output_range``, ``predict`` ((B, 3, H, W) to (B, C, H, W), activated)
and ``get_transform`` (from an uint8 (H, W, 3) array to a (3, H, W) tensor, or None). The second has ``stains`` instead
of channels, and predicts red, green and blue of each. Neither says at which um/px it wants its tiles nor how far it
sees, so its user has to.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mupd_wsi.errors import BundleError, UsageError
from mupd_wsi.geometry import Region
from mupd_wsi.markers import Marker, Panel
from mupd_wsi.model.bundle import ModelInfo
from mupd_wsi.model.memory import BatchWidth
from mupd_wsi.model.stainer import SampleOptions, Stainer, resolve_device
from mupd_wsi.request import Fuse


class DenseModel(Protocol):
    """What is asked of any foreign model; the names are those of PyPI lazyslide-models 0.1."""

    output_mpp: float | None
    output_range: tuple[float, float] | None

    def predict(self, image: Tensor) -> Tensor:
        """Activated values (B, C, H, W) of preprocessed tiles (B, 3, H, W)."""

    def get_transform(self) -> Callable[[NDArray[np.uint8]], Tensor] | None:
        """Preprocessing of one tile, or None: values from 0 to 1."""


class MarkerMapModel(DenseModel, Protocol):
    """One that predicts a plane a marker."""

    channel_names: tuple[str, ...]


class VirtualStainModel(DenseModel, Protocol):
    """One that predicts brightfield pictures: three planes a stain."""

    stains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ForeignCard:
    """What a run wants to know of a model; see :class:`mupd_wsi.model.bundle.ModelInfo` for each."""

    name: str
    panel: Panel
    mpp: float
    tile: int
    halo: int
    weights_sha256: str
    fuse: Fuse
    version: str = "unknown"
    license: str = "see its authors"
    credit: str = "not stated"
    painted: bool = False
    period: int = 1
    steps: int = 1
    stain_reference: None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    limits: tuple[str, ...] = ("A model of somebody else: its authors say what may be expected of it.",)

    @property
    def display_window(self) -> Mapping[str, tuple[tuple[float, float], ...]]:
        """The whole of the model's output range; it is read out, and cannot be drawn from."""
        return {"mean": ((0.0, 255.0),) * len(self.panel)}


class ForeignStainer(Stainer):
    """Lets a foreign model stand where the shipped one does: ``stain_slide(slide, "all", model=ForeignStainer(...))``.

    Tiles run one at a time, so that no result depends on which tiles share a batch.

    Args:
        model: follows :class:`MarkerMapModel` or :class:`VirtualStainModel`.
        mpp: um/px of the tiles that it was trained on.
        name: for the record.
        tile: side of the tiles that it is given, px, halo included.
        halo: px on each side of a tile that only give context.
        fuse: how tiles are joined; its network may well see further than the halo.
        card: says all of these, instead.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: it says no output range, or predicts at another um/px than it is given.
        ValueError: two of its channels have the same name.
    """

    stepwise = False

    def __init__(
        self,
        model: MarkerMapModel | VirtualStainModel,
        *,
        mpp: float = 0.0,
        name: str = "",
        tile: int = 512,
        halo: int = 64,
        fuse: Fuse = "blend",
        device: str = "auto",
        card: ForeignCard | None = None,
    ) -> None:
        painted = not hasattr(model, "channel_names")
        names = cast("VirtualStainModel", model).stains if painted else cast("MarkerMapModel", model).channel_names
        network = getattr(model, "model", None)
        if card is None:
            hashed = _weights_hash(network)
            card = ForeignCard(name, _panel(names), mpp, tile, halo, hashed, fuse, painted=painted)
        name, mpp, tile, halo = card.name, card.mpp, card.tile, card.halo
        if not mpp > 0:
            raise UsageError(f"{name}: say at which um/px it was trained")
        if model.output_range is None:
            raise UsageError(f"{name} names no output_range: set it, so that its values can be written in 8 bits")
        if model.output_mpp not in (None, mpp):
            raise UsageError(f"{name} predicts at {model.output_mpp:g} um/px; only models that keep {mpp:g} can be run")
        if tile <= 2 * halo or halo < 0:
            raise UsageError(f"a tile of {tile} px leaves nothing within a halo of {halo} px")
        self.device, self.precision, self.batch_size = resolve_device(device), "fp32", 1
        self.fitting = BatchWidth(1)
        self._model, self._transform, self._lock = model, model.get_transform(), Lock()
        self._low, self._high = model.output_range
        if isinstance(network, nn.Module):
            network.eval().to(self.device)
        elif hasattr(model, "to"):
            model.to(self.device)
        self._painted = card.painted
        # A card with all that runs ask a ModelInfo for; what belongs to the shipped network's inside is not there.
        self.info = cast("ModelInfo", card)

    def stain(
        self,
        rgb: NDArray[np.uint8],
        origins: Sequence[tuple[int, int]],
        options: SampleOptions,
        channels: Sequence[int] | None = None,
        margin: int = 0,
        parts: Sequence[Region | None] | None = None,
    ) -> NDArray[np.float32]:
        """As :meth:`Stainer.stain`: the output range becomes 0 to 255, and what lies beyond it is cut.

        Raises:
            BundleError: the model gives another shape than it promises.
        """
        del origins, options, parts
        wanted = list(range(len(self.info.panel)) if channels is None else channels)
        if self._painted:
            wanted = [3 * stain + color for stain in wanted for color in range(3)]
        return np.stack([self._one(tile, wanted, margin) for tile in rgb])

    def close(self) -> None:
        """Nothing is held."""

    def _one(self, rgb: NDArray[np.uint8], channels: list[int], margin: int) -> NDArray[np.float32]:
        side = rgb.shape[0]
        with self._lock, torch.inference_mode():
            image = _plain(rgb) if self._transform is None else self._transform(rgb)
            found = self._model.predict(image[None].to(self.device)).float().cpu()
        expected = (1, len(self.info.panel) * (3 if self._painted else 1), side, side)
        if found.shape != expected:
            raise BundleError(
                f"{self.info.name} made {tuple(found.shape)} of a tile of {side} px, expected {expected}: "
                "its transform may not resize, and predict has to give one plane a channel"
            )
        inner = found[0, channels, margin : side - margin, margin : side - margin]
        scaled: NDArray[np.float32] = ((inner - self._low) * (255 / (self._high - self._low))).clamp(0, 255).numpy()
        return scaled


def _plain(rgb: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(rgb).permute(2, 0, 1).float() / 255


def _panel(names: Sequence[str]) -> Panel:
    """Markers in colours around the wheel, the first blue as nuclei are in most panels."""
    colors = [colorsys.hsv_to_rgb((0.62 + i / len(names)) % 1, 0.75, 1.0) for i in range(len(names))]
    rgb = [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colors]
    return Panel(tuple(Marker(name, color) for name, color in zip(names, rgb, strict=True)))


def _weights_hash(network: Any) -> str:
    """SHA-256 over a network's weights by name; "unknown" where it shows none."""
    if not isinstance(network, nn.Module):
        return "unknown"
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
