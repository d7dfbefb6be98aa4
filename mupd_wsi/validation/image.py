"""An output image as the checks see it, whatever its format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.errors import ValidationError
from mupd_wsi.geometry import Region, Size


class UnreadableError(ValidationError):
    """The image cannot be looked at any further.

    Attributes:
        code: of the finding that it becomes.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image says of itself.

    Attributes:
        levels: sizes in pixels, largest first, as stored.
        stated_size: size in pixels, as the metadata has it.
        samples: planes stored.
        stated_samples: planes that the metadata names.
        is_rgb: brightfield rather than markers.
        mpp: (x, y) um/px by the metadata, None where it is not stated.
        other_mpp: (x, y) um/px as other parts of the file have it (TIFF tags), None where nothing else states it.
        channel_names: as stated; empty strings where a channel has none.
        channel_colors: whether each channel has a colour.
        notice: the words on research use, empty where there are none.
        has_provenance: whether the file tells which model made it.
        lossless: whether pixels come back as they were written.
    """

    levels: tuple[Size, ...]
    stated_size: Size
    samples: int
    stated_samples: int
    is_rgb: bool
    mpp: tuple[float, float] | None
    other_mpp: tuple[float, float] | None
    channel_names: tuple[str, ...]
    channel_colors: tuple[bool, ...]
    notice: str
    has_provenance: bool
    lossless: bool


class OutputImage(Protocol):
    """An open image."""

    @property
    def facts(self) -> ImageFacts:
        """What it says of itself."""

    def broken_tiles(self) -> Iterator[str]:
        """Decode every tile of every level; yields a sentence for each that cannot be."""

    def read(self, level: int, region: Region) -> NDArray[np.uint8]:
        """Pixels of a level, (samples, height, width); ``region`` inside the level."""

    def format_problems(self) -> Iterator[tuple[str, str]]:
        """Codes and sentences for what only this format can get wrong."""
