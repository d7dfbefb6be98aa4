"""A real and a virtual slide as pairs of tiles on one raster, fluorescence and brightfield alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.errors import SlideError, UsageError
from mupd_wsi.geometry import Region, Size, output_size
from mupd_wsi.markers import canonical
from mupd_wsi.rendering import DAB, HAEMATOXYLIN
from mupd_wsi.slides import Slide, open_slide
from mupd_wsi.slides.channels import ChannelImage, open_channels, stated_origin
from mupd_wsi.tissue import glass_color

#: Side of a tile, px of the common raster; a multiple of the largest patch.
TILE: Final = 512
PATCH: Final = 64
#: A virtual channel of this name holds the standard deviation of the marker before it.
SD_SUFFIX: Final = " SD"
NUCLEAR: Final = canonical("Hoechst")
STAINS: Final = ("Haematoxylin", "DAB")
_RGB_NAMES: Final = ("red", "green", "blue")
_THUMBNAIL: Final = 512


class Side(Protocol):
    """One of the two slides, as planes of intensities."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the planes."""

    @property
    def size(self) -> Size:
        """Pixels of its largest level."""

    def read(self, region: Region, mpp: float, planes: tuple[int, ...]) -> NDArray[np.float32]:
        """Planes (C, h, w) of a region in output pixels of its own raster."""


@dataclass(frozen=True)
class Fluorescence:
    """A slide of named channels; intensities are stored levels times what the file says that they stand for."""

    image: ChannelImage

    @property
    def names(self) -> tuple[str, ...]:
        """Channel names."""
        return self.image.names

    @property
    def size(self) -> Size:
        """Pixels of the largest level."""
        return self.image.size

    def read(self, region: Region, mpp: float, planes: tuple[int, ...]) -> NDArray[np.float32]:
        """See :class:`Side`."""
        return self.image.read(region, mpp, planes) * self.image.gains[list(planes), None, None]


@dataclass(frozen=True)
class Brightfield:
    """An IHC slide as amounts of haematoxylin and DAB."""

    slide: Slide
    white: tuple[float, float, float]

    @property
    def names(self) -> tuple[str, ...]:
        """The two stains."""
        return STAINS

    @property
    def size(self) -> Size:
        """Level-0 pixels."""
        return self.slide.size

    def read(self, region: Region, mpp: float, planes: tuple[int, ...]) -> NDArray[np.float32]:
        """See :class:`Side`."""
        return stain_densities(self.slide.read(region, mpp), self.white)[list(planes)]


def stain_densities(rgb: NDArray[np.uint8], white: tuple[float, float, float]) -> NDArray[np.float32]:
    """Optical densities (base 10) of haematoxylin and DAB by colour deconvolution (Ruifrok and Johnston 2001).

    Args:
        rgb: uint8 (h, w, 3).
        white: colour of the glass, 0-255.

    Returns:
        float32 (2, h, w), at least 0.
    """
    dyes = np.array([HAEMATOXYLIN, DAB])
    dyes = np.stack([*dyes, np.cross(*dyes)])
    dyes /= np.linalg.norm(dyes, axis=1, keepdims=True)
    density = np.log10((np.array(white, np.float32) + 1) / (rgb.astype(np.float32) + 1))
    amounts = density @ np.linalg.inv(dyes)[:, :2].astype(np.float32)
    return np.ascontiguousarray(np.maximum(amounts, 0).transpose(2, 0, 1))


@dataclass(frozen=True, slots=True)
class PairedTile:
    """The same place in both slides.

    Attributes:
        region: px of the common raster.
        real: float32 (C, h, w); h and w are multiples of 64.
        virtual: likewise.
        deviation: float32 (C, h, w), the predicted standard deviation; NaN planes where the slide has none; None
            where it has none at all.
    """

    region: Region
    real: NDArray[np.float32]
    virtual: NDArray[np.float32]
    deviation: NDArray[np.float32] | None


@dataclass(frozen=True)
class SlidePair:
    """Both slides and the part that they share.

    Attributes:
        style: "mif" or "ihc".
        names: of the planes that both have, as the real slide spells them.
        nuclear: which of them shows nuclei, or None.
        mpp: um per px of the common raster: the coarser one of the two.
        region: px of the common raster, anchored at the real slide's corner.
        only_real: channels that the virtual slide has not.
        only_virtual: channels that the real slide has not.
    """

    style: str
    names: tuple[str, ...]
    nuclear: int | None
    mpp: float
    region: Region
    only_real: tuple[str, ...]
    only_virtual: tuple[str, ...]
    real: Side
    virtual: Side
    real_planes: tuple[int, ...]
    virtual_planes: tuple[int, ...]
    deviation_planes: tuple[int | None, ...]
    shift: tuple[int, int]

    def regions(self) -> list[Region]:
        """Tiles of the common part, in raster order; a rest of less than 64 px at the right and bottom is left out."""
        found = []
        for y in range(self.region.y, self.region.bottom - PATCH + 1, TILE):
            for x in range(self.region.x, self.region.right - PATCH + 1, TILE):
                width, height = (
                    min(TILE, end - start) // PATCH * PATCH
                    for start, end in ((x, self.region.right), (y, self.region.bottom))
                )
                found.append(Region(x, y, width, height))
        return found

    def read(self, region: Region) -> PairedTile:
        """Both slides at one place; ``region`` in px of the common raster."""
        moved = replace(region, x=region.x - self.shift[0], y=region.y - self.shift[1])
        return PairedTile(
            region,
            self.real.read(region, self.mpp, self.real_planes),
            self.virtual.read(moved, self.mpp, self.virtual_planes),
            self._deviation(moved),
        )

    def _deviation(self, moved: Region) -> NDArray[np.float32] | None:
        if all(plane is None for plane in self.deviation_planes):
            return None
        out = np.full((len(self.names), moved.height, moved.width), np.nan, np.float32)
        for place, plane in enumerate(self.deviation_planes):
            if plane is not None:
                out[place] = self.virtual.read(moved, self.mpp, (plane,))[0]
        return out


@contextmanager
def open_pair(real: Path, virtual: Path, roi: Region | None = None) -> Iterator[SlidePair]:
    """Open both slides and find what they share.

    Args:
        real: the stained slide: OME-TIFF or OME-Zarr of channels, or a brightfield slide.
        virtual: what was predicted, likewise.
        roi: level-0 pixels of the real slide; None takes all that both cover.

    Raises:
        SlideError: one cannot be opened or read, or one is brightfield and the other is not.
        PixelSizeError: one states no um/px.
        UsageError: no channel is in both, or they share no place.
    """
    if is_channels(real) != is_channels(virtual):
        one, other = ("fluorescence", "brightfield") if is_channels(real) else ("brightfield", "fluorescence")
        raise SlideError(f"{real.name} is {one} and {virtual.name} {other}; give two of one kind")
    if is_channels(real):
        with open_channels(real) as a, open_channels(virtual) as b:
            mpp = max(a.mpp.mean, b.mpp.mean)
            whole = [output_size(image.size, image.mpp, mpp) for image in (a, b)]
            shift = _shift(real, virtual, mpp)
            shared = _shared(whole, shift, roi, a.mpp.mean / mpp)
            yield _pair("mif", Fluorescence(a), Fluorescence(b), mpp, shared, shift)
        return
    with open_slide(real) as c, open_slide(virtual) as d:
        mpp = max(c.mpp.mean, d.mpp.mean)
        whole = [output_size(slide.size, slide.mpp, mpp) for slide in (c, d)]
        sides = [Brightfield(slide, glass_color(slide.thumbnail(_THUMBNAIL))) for slide in (c, d)]
        shift = _shift(real, virtual, mpp)
        shared = _shared(whole, shift, roi, c.mpp.mean / mpp)
        yield _pair("ihc", sides[0], sides[1], mpp, shared, shift)


def _shift(real: Path, virtual: Path, mpp: float) -> tuple[int, int]:
    """Where the virtual slide's corner lies on the real one's raster, px."""
    (ax, ay), (bx, by) = stated_origin(real), stated_origin(virtual)
    return round((bx - ax) / mpp), round((by - ay) / mpp)


def is_channels(path: Path) -> bool:
    """Whether a slide is fluorescence: named channels that are not red, green and blue.

    Raises:
        SlideError: there is nothing at that path.
    """
    if not path.exists():
        raise SlideError(f"{path} does not exist; check the path")
    try:
        with open_channels(path) as image:
            return tuple(name.casefold() for name in image.names) != _RGB_NAMES
    except SlideError:
        return False


def _pair(style: str, real: Side, virtual: Side, mpp: float, region: Region, shift: tuple[int, int]) -> SlidePair:
    ours = {canonical(name): i for i, name in reversed(list(enumerate(virtual.names)))}
    theirs = [(i, canonical(name)) for i, name in enumerate(real.names)]
    deviations = {canonical(n.removesuffix(SD_SUFFIX)): i for i, n in enumerate(virtual.names) if n.endswith(SD_SUFFIX)}
    both = [(i, name) for i, name in theirs if name in ours]
    if not both:
        raise UsageError(
            f"no channel is in both slides: real has {', '.join(real.names)}; virtual has {', '.join(virtual.names)}"
        )
    matched = {name for _, name in both}
    return SlidePair(
        style=style,
        names=tuple(real.names[i] for i, _ in both),
        nuclear=next((place for place, (_, name) in enumerate(both) if name == NUCLEAR), None),
        mpp=mpp,
        region=region,
        only_real=tuple(real.names[i] for i, name in theirs if name not in matched),
        only_virtual=tuple(n for n in virtual.names if canonical(n) not in matched and not n.endswith(SD_SUFFIX)),
        real=real,
        virtual=virtual,
        real_planes=tuple(i for i, _ in both),
        virtual_planes=tuple(ours[name] for _, name in both),
        deviation_planes=tuple(deviations.get(name) for _, name in both),
        shift=shift,
    )


def _shared(sizes: list[Size], shift: tuple[int, int], roi: Region | None, scale: float) -> Region:
    real, virtual = (Region(0, 0, size.width, size.height) for size in sizes)
    common = real.intersection(replace(virtual, x=shift[0], y=shift[1]))
    if common is not None and roi is not None:
        x, y, right, bottom = (round(v * scale) for v in (roi.x, roi.y, roi.right, roi.bottom))
        common = common.intersection(Region(x, y, max(1, right - x), max(1, bottom - y)))
    if common is None or min(common.width, common.height) < PATCH:
        raise UsageError(
            f"the two slides share less than {PATCH} x {PATCH} px; check um/px, --roi and that they belong together"
        )
    return common
