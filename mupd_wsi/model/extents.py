"""Which part of a tile each stage of the network has to compute, when only the tile's inner part is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mupd_wsi.model.config import NetworkConfig


@dataclass(frozen=True, slots=True)
class Extent:
    """A stretch of one axis of a tile, px: ``[start, stop)``."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """px."""
        return self.stop - self.start

    def widened(self, reach: int, step: int, length: int) -> Extent:
        """Larger by ``reach`` px on both sides, then to multiples of ``step``, within ``[0, length)``."""
        start = max(0, self.start - reach) // step * step
        return Extent(start, min(length, -(-(self.stop + reach) // step) * step))

    def part(self, start: int, stop: int, step: int) -> Extent:
        """What covers a part of it, px from its own start, in whole steps."""
        return Extent(self.start + start // step * step, min(self.stop, self.start - (-stop // step) * step))

    def whole_windows(self, lead: int, window: int, length: int) -> Extent:
        """Larger, to where windows begin and end (``lead + k * window``), within ``[0, length)``."""
        start = (self.start - lead) // window * window + lead
        stop = -(-(self.stop - lead) // window) * window + lead
        return Extent(max(0, start), min(length, stop))


#: Rows and columns of a tile.
Area = tuple[Extent, Extent]


@dataclass(frozen=True, slots=True)
class Needs:
    """What one axis of a tile needs.

    Attributes:
        down: what each stage on the way down is given, finest first; last, what the trunk is given.
        up: what each stage on the way up is given, finest first.
        features: what the heads are given.
    """

    down: tuple[Extent, ...]
    up: tuple[Extent, ...]
    features: Extent


def needs(config: NetworkConfig, length: int, lead: int, wanted: Extent) -> Needs:
    """Work back from what is wanted: convolutions need their reach beyond it, attention whole windows.

    Args:
        config: shape of the network.
        length: of the axis, px.
        lead: px before the first whole window.
        wanted: what has to come out, in multiples of the network's patch.
    """
    strides = [config.patch * 2**level for level in range(len(config.stage_widths))]
    reaches = [d * (config.kernel // 2) * stride for d, stride in zip(config.stage_depths, strides, strict=True)]
    features = wanted.widened(config.head_reach, config.patch, length)
    part, up = features, []
    for reach, stride in zip(reaches, strides, strict=True):
        part = part.widened(reach, 2 * stride, length)
        up.append(part)
    part = part.whole_windows(lead, config.window_px, length)
    down = [part]
    for reach, stride in zip(reversed(reaches), reversed(strides), strict=True):
        part = part.widened(reach, stride, length)
        down.append(part)
    return Needs(tuple(reversed(down)), tuple(up), features)


def cut(x: Tensor, given: Sequence[Extent], kept: Sequence[Extent], stride: int) -> Tensor:
    """A part of a feature map.

    Args:
        x: (B, H, W, D), a token every ``stride`` px.
        given: what it covers, rows and columns.
        kept: what is kept of it, rows and columns.
        stride: px.
    """
    rows, columns = (
        slice((inner.start - outer.start) // stride, (inner.stop - outer.start) // stride)
        for outer, inner in zip(given, kept, strict=True)
    )
    return x[:, rows, columns]


def whole_area(planes: Tensor) -> Area:
    """All rows and columns of planes (B, C, H, W)."""
    return Extent(0, planes.shape[2]), Extent(0, planes.shape[3])


def area_around(part: Area, reach: int, patch: int, tile: Area) -> Area:
    """A part of a tile with ``reach`` px around it, in whole patches, where the tile has them."""
    rows, columns = (own.widened(reach, patch, whole.length) for own, whole in zip(part, tile, strict=True))
    return rows, columns


def cut_planes(planes: Tensor, given: Area, kept: Area) -> Tensor:
    """A part of planes (B, C, H, W) that cover what is given."""
    rows, columns = (
        slice(inner.start - outer.start, inner.stop - outer.start) for outer, inner in zip(given, kept, strict=True)
    )
    return planes[:, :, rows, columns]
