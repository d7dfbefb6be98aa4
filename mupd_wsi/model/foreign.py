"""Stains with a model of somebody else: any object that follows PyPI lazyslide-models' ``MarkerMapModelProtocol`` or
``VirtualStainModelProtocol``.

The first has ``channel_names``, ``output_mpp``, ``output_range``, ``predict`` ((B, 3, H, W) to (B, C, H, W), activated)
and ``get_transform`` (from an uint8 (H, W, 3) array to a (3, H, W) tensor, or None). The second has ``stains`` instead
of channels, and predicts red, green and blue of each. Neither says at which um/px it wants its tiles nor how far it
sees, so its user has to.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any, Protocol, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mupd_wsi.errors import BundleError, UsageError
from mupd_wsi.geometry import Region
from mupd_wsi.layout import as_planes, lies_by_pixel
from mupd_wsi.markers import Marker, Panel
from mupd_wsi.model.bundle import state_hash
from mupd_wsi.model.devices import resolve_device
from mupd_wsi.model.foreign_card import ForeignCard
from mupd_wsi.model.memory import BatchWidth
from mupd_wsi.request import Fuse, SampleOptions


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


class ForeignStainer:
    """Lets a foreign model stand where the shipped one does: ``stain_slide(slide, "all", model=ForeignStainer(...))``.

    :meth:`stain` gives intensities 0 to 255 over the model's output range; what lies beyond it is cut. Of a model that
    paints pictures it gives red, green and blue for each channel asked for. Tiles run one at a time, so that no result
    depends on which tiles share a batch.

    Args:
        model: follows :class:`MarkerMapModel` or :class:`VirtualStainModel`.
        mpp: um/px of the tiles that it was trained on.
        name: for the record.
        tile: side of the tiles that it is given, px, halo included.
        halo: px on each side of a tile that only give context.
        fuse: how tiles are joined; its network may well see further than the halo.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: it says no output range, or predicts on a grid that is none of whole pixels of its input.
        ValueError: two of its channels have the same name.
    """

    def __init__(
        self,
        model: MarkerMapModel | VirtualStainModel,
        *,
        mpp: float,
        name: str,
        tile: int = 512,
        halo: int = 64,
        fuse: Fuse = "blend",
        device: str = "auto",
    ) -> None:
        painted, names = outputs_of(model)
        hashed = weights_hash(getattr(model, "model", None))
        self._take(model, ForeignCard(name, panel_of(names), mpp, tile, halo, hashed, fuse, painted=painted), device)

    @classmethod
    def with_card(cls, model: MarkerMapModel | VirtualStainModel, card: ForeignCard, device: str = "auto") -> Self:
        """One of whose model more is known than its object says."""
        made = cls.__new__(cls)
        made._take(model, card, device)
        return made

    def _take(self, model: MarkerMapModel | VirtualStainModel, card: ForeignCard, device: str) -> None:
        if model.output_range is None:
            raise UsageError(f"{card.name} names no output_range: set it, so that its values can be written in 8 bits")
        self._coarser = _times_coarser(card, model.output_mpp)
        self.device, self.precision, self.batch_size = resolve_device(device), "fp32", 1
        self.fitting = BatchWidth(1)
        self._model, self._transform, self._lock = model, model.get_transform(), Lock()
        self._low, self._high = model.output_range
        network = getattr(model, "model", None)
        if isinstance(network, nn.Module):
            network.eval().to(self.device)
        elif hasattr(model, "to"):
            model.to(self.device)
        self.info = replace(card, period=math.lcm(card.period, self._coarser))

    def stain(
        self,
        rgb: NDArray[np.uint8],
        origins: Sequence[tuple[int, int]],
        options: SampleOptions,
        channels: Sequence[int] | None = None,
        margin: int = 0,
        parts: Sequence[Region | None] | None = None,
    ) -> NDArray[np.float32 | np.uint8]:
        """Stain tiles, of which places, options and parts make no difference to a foreign model.

        Returns:
            (B, planes, H - 2 * margin, W - 2 * margin), 0-255: one plane a channel that is asked for, of a model that
            paints red, green and blue of each. uint8 where the model gives grey levels already, else float32.

        Raises:
            BundleError: the model gives another shape than it promises.
        """
        del origins, options, parts
        each = 3 if self.info.painted else 1
        asked = range(len(self.info.panel)) if channels is None else channels
        chosen = [each * channel + color for channel in asked for color in range(each)]
        rows, columns = (slice(margin, side - margin) for side in rgb.shape[1:3])
        made: dict[int, NDArray[np.float32 | np.uint8]] = {}

        def stain_one(part: slice, width: int) -> None:
            del width  # one tile at a time
            planes = self._predicted(rgb[part.start], each * len(self.info.panel))
            inner = planes[:, rows, columns].numpy()
            made[part.start] = self._in_grey_levels(_taken(inner, chosen, as_picture=self.info.painted))

        self.fitting.in_parts(len(rgb), stain_one)
        return np.stack(list(made.values())) if len(made) > 1 else made[0][None]

    def close(self) -> None:
        """Nothing is held that does not go with it."""

    def _in_grey_levels(self, values: NDArray[Any]) -> NDArray[np.float32 | np.uint8]:
        """Values of the model's range, an array of our own, as 0 to 255; what lies beyond is cut."""
        if values.dtype == np.uint8 and (self._low, self._high) == (0, 255):
            return values
        levels = values.astype(np.float32, copy=False)
        if self._low:
            levels -= self._low
        if (gain := 255 / (self._high - self._low)) != 1:
            levels *= gain
        return np.clip(levels, 0, 255, out=levels)

    def _predicted(self, rgb: NDArray[np.uint8], planes: int) -> Tensor:
        """What the model makes of one tile, on the tile's own grid: (planes, H, W), in its own range, fp32 or uint8."""
        with self._lock, torch.inference_mode():
            image = _plain(rgb) if self._transform is None else self._transform(rgb)
            found = self._model.predict(image[None].to(self.device)).cpu()
            found = found if found.dtype == torch.uint8 else found.float()
        side, times = rgb.shape[0], self._coarser
        expected = (1, planes, side // times, side // times)
        if found.shape != expected:
            each = "three planes a stain" if self.info.painted else "one plane a channel"
            raise BundleError(
                f"{self.info.name} made {tuple(found.shape)} of a tile of {side} px, expected {expected}: "
                f"its transform may not resize, and predict has to give {each}"
            )
        return found[0].repeat_interleave(times, dim=1).repeat_interleave(times, dim=2) if times > 1 else found[0]


def _taken(planes: NDArray[Any], chosen: Sequence[int], *, as_picture: bool) -> NDArray[Any]:
    """Some planes of (planes, h, w), copied; by OpenCV where they lie pixel by pixel, which numpy is slow at.

    A picture in 8 bits that lies so is left so (:mod:`mupd_wsi.layout`).
    """
    picture = planes.transpose(1, 2, 0)
    if as_picture and planes.dtype == np.uint8 and lies_by_pixel(planes) and list(chosen) == [0, 1, 2]:
        return as_planes(picture.copy())
    if len(planes) == 1 or picture.strides[-1] != planes.itemsize:
        return planes[chosen]
    taken = np.empty((len(chosen), *planes.shape[1:]), planes.dtype)
    for plane, place in zip(chosen, taken, strict=True):
        cv2.extractChannel(picture, plane, place)
    return taken


def outputs_of(model: Any) -> tuple[bool, tuple[str, ...]]:
    """Whether a model, or its class, paints pictures, and the names of its stains or channels."""
    painted = not hasattr(model, "channel_names")
    return painted, tuple(model.stains if painted else model.channel_names)


def panel_of(names: Sequence[str]) -> Panel:
    """Markers in colours around the wheel, the first blue as nuclei are in most panels."""
    colors = [colorsys.hsv_to_rgb((0.62 + i / len(names)) % 1, 0.75, 1.0) for i in range(len(names))]
    rgb = [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colors]
    return Panel(tuple(Marker(name, color) for name, color in zip(names, rgb, strict=True)))


def weights_hash(network: Any) -> str:
    """SHA-256 over a network's weights by name; "unknown" where it shows none."""
    if not isinstance(network, nn.Module):
        return "unknown"
    return state_hash(network.state_dict())


def _times_coarser(card: ForeignCard, output_mpp: float | None) -> int:
    """How many pixels of its input, a side, one of its output covers; the engine writes on the input's grid.

    Raises:
        UsageError: no whole number, or tiles that it does not divide.
    """
    if output_mpp is None:
        return 1
    times = round(output_mpp / card.mpp)
    if times < 1 or not math.isclose(times * card.mpp, output_mpp, rel_tol=1e-3):
        raise UsageError(
            f"{card.name} predicts at {output_mpp:g} um/px; only {card.mpp:g} or a whole multiple of it can be written"
        )
    if card.tile % times or card.halo % times:
        raise UsageError(
            f"{card.name} predicts at {output_mpp:g} um/px: tile and halo must be multiples of {times} px, "
            f"got {card.tile} and {card.halo}"
        )
    return times


def _plain(rgb: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(rgb).permute(2, 0, 1).float() / 255
