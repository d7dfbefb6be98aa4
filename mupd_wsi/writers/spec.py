"""What a writer is told about the image it writes, and the one protocol that all writers follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.geometry import Region, Size


@dataclass(frozen=True, slots=True)
class Channel:
    """One 8-bit fluorescence channel.

    Attributes:
        name: marker name.
        color: display colour, sRGB 0-255.
        window: grey levels that viewers should show as black and as full colour.
    """

    name: str
    color: tuple[int, int, int]
    window: tuple[int, int] = (0, 255)


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """An image to be written, all of its level-0 facts.

    Attributes:
        name: image name shown by viewers.
        size: output pixels.
        mpp: um per output pixel, the same on both axes.
        channels: fluorescence channels in order; empty means an RGB (brightfield) image.
        origin_um: physical position (x, y) of the top left corner on the slide, um; not (0, 0) for a ROI.
        provenance: JSON-serialisable record of how the image was made; it holds the words
            "virtual stain, research use only" under the key "notice".
    """

    name: str
    size: Size
    mpp: float
    channels: tuple[Channel, ...]
    origin_um: tuple[float, float]
    provenance: Mapping[str, Any]

    @property
    def is_rgb(self) -> bool:
        """Whether the image is brightfield."""
        return not self.channels

    @property
    def samples(self) -> int:
        """Planes of the image: 3 for RGB, else one a channel."""
        return len(self.channels) or 3

    @property
    def background(self) -> int:
        """Grey level of empty glass: white for brightfield, black for fluorescence."""
        return 255 if self.is_rgb else 0


class SlideWriter(Protocol):
    """Writes one pyramidal image, streamed: full-width bands of rows from top to bottom, each row exactly once.

    Nothing lies under the final name before :meth:`finish`; after :meth:`abort` nothing is left at all.
    """

    def write(self, rows: Region, pixels: NDArray[np.uint8]) -> None:
        """Append a band.

        Args:
            rows: output pixels; ``x == 0``, full width, ``y`` is the number of rows written so far.
            pixels: uint8 (samples, height, width), channel-first for RGB too.
        """

    def finish(self) -> Path:
        """Complete the pyramid and the file, rename it to its final name, and return that."""

    def abort(self) -> None:
        """Drop everything written so far. Safe to call twice, and after :meth:`finish` it does nothing."""
