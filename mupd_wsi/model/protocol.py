"""What a run asks of a model that is ready: of ours, of those of others, and of any object that somebody hands in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.geometry import Region
from mupd_wsi.request import Readout, SampleOptions

if TYPE_CHECKING:
    from mupd_wsi.model.bundle import ModelInfo
    from mupd_wsi.model.foreign_card import ForeignCard
    from mupd_wsi.model.memory import BatchWidth

#: What is known of a model.
Card: TypeAlias = "ModelInfo | ForeignCard"


class TileStainer(Protocol):
    """Stains tiles: :class:`~mupd_wsi.model.Stainer` or :class:`~mupd_wsi.model.ForeignStainer`.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        precision: "fp32" or "bf16".
        batch_size: tiles that :meth:`stain` works on at a time, memory permitting.
        fitting: tiles at a time that the device has had memory for.
    """

    device: str
    precision: str
    batch_size: int
    fitting: BatchWidth

    @property
    def info(self) -> Card:
        """The model's card."""

    def stain(
        self,
        rgb: NDArray[np.uint8],
        origins: Sequence[tuple[int, int]],
        options: SampleOptions,
        channels: Sequence[int] | None = None,
        margin: int = 0,
        parts: Sequence[Region | None] | None = None,
    ) -> NDArray[np.float32 | np.uint8]:
        """Stain tiles; see :meth:`mupd_wsi.model.Stainer.stain`."""

    def close(self) -> None:
        """Let go of what is held."""


@runtime_checkable
class StepwiseStainer(TileStainer, Protocol):
    """One that lets a run walk along the flow itself, so that overlaps can be merged at every step."""

    @property
    def stepwise(self) -> bool:
        """Whether it does so with this model."""

    def times(self, options: SampleOptions) -> tuple[float, ...]:
        """Flow times; see :meth:`mupd_wsi.model.Stainer.times`."""

    def noise(self, seed: int, x: int, y: int, height: int, width: int) -> NDArray[np.float32]:
        """What a draw begins with; see :meth:`mupd_wsi.model.Stainer.noise`."""

    def predict(self, rgb: NDArray[np.uint8], noisy: NDArray[np.float32] | None, t: float) -> NDArray[np.float32]:
        """One evaluation of the network; see :meth:`mupd_wsi.model.Stainer.predict`."""

    def intensities(self, x0: NDArray[np.float32], readout: Readout, channels: Sequence[int]) -> NDArray[np.float32]:
        """What a prediction shows; see :meth:`mupd_wsi.model.Stainer.intensities`."""


def as_stepwise(stainer: TileStainer) -> StepwiseStainer | None:
    """The same model, where a run can walk along its flow; None where it cannot."""
    return stainer if isinstance(stainer, StepwiseStainer) and stainer.stepwise else None


def tile_and_halo(info: Card, options: SampleOptions) -> tuple[int, int]:
    """Side of the tiles that a model is given, px, and how much of it on each side is thrown away."""
    halo = info.halo_of(0 if options.readout == "mean" else options.steps or info.steps)
    return info.tile + 2 * (halo - info.halo), halo
