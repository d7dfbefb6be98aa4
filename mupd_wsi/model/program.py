"""Models of somebody else in a folder: a card, and a program that ``torch.export`` or TorchScript has written.

A program is foreign code: torch runs what is in the file. It is loaded only for those who trust where it comes from.
The card alone says nothing that is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mupd_wsi.errors import BundleError
from mupd_wsi.markers import Marker, Panel
from mupd_wsi.model.bundle import CARD_FILE, MAX_CARD_BYTES
from mupd_wsi.model.foreign import ForeignCard, ForeignStainer
from mupd_wsi.request import Fuse

KINDS: Final = ("torch.export", "torchscript")


@dataclass(frozen=True, slots=True)
class ProgramCard:
    """``model.json`` of a folder with a program.

    Attributes:
        kind: "torch.export" (a ``.pt2``) or "torchscript".
        name: of the model.
        version: of it.
        license: SPDX identifier.
        program: the program's file, in the same folder. It maps (1, 3, tile, tile) to (1, channels, tile, tile).
        program_sha256: of that file.
        channels: names and colours (R, G, B), in the program's order.
        mpp: um/px of its tiles.
        tile: side of the tiles, px, halo included.
        halo: px on each side of a tile that only give context.
        output_range: the values that become intensities 0 and 255.
        mean: that is taken from the colours, 0-1, before the program sees them.
        std: that they are then divided by.
        fuse: how its tiles are joined unless the user says otherwise.
        credit: whose work it is.
    """

    kind: str
    name: str
    version: str
    license: str
    program: str
    program_sha256: str
    channels: tuple[Marker, ...]
    mpp: float
    tile: int
    halo: int
    output_range: tuple[float, float]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    fuse: Fuse = "blend"
    credit: str = "not stated"

    def __post_init__(self) -> None:
        problems = {
            f"kind must be {' or '.join(KINDS)}, got {self.kind!r}": self.kind not in KINDS,
            "program must be the name of a file in the same folder": Path(self.program).name != self.program,
            "mpp must lie above 0": not self.mpp > 0,
            f"a tile of {self.tile} px leaves nothing within a halo of {self.halo} px": not 0
            <= 2 * self.halo
            < self.tile,
            "output_range must rise": not self.output_range[0] < self.output_range[1],
            "std must lie above 0": min(self.std) <= 0,
            f"fuse must be one of {', '.join(get_args(Fuse))}": self.fuse not in get_args(Fuse),
        }
        for text, is_wrong in problems.items():
            if is_wrong:
                raise BundleError(f"model {self.name}: {text}")

    @property
    def described(self) -> ForeignCard:
        """What a run wants to know."""
        return ForeignCard(
            self.name,
            Panel(self.channels),
            self.mpp,
            self.tile,
            self.halo,
            self.program_sha256,
            self.fuse,
            self.version,
            self.license,
            credit=self.credit,
        )


def read_program_card(folder: Path) -> ProgramCard | None:
    """The card of a folder with a program; None where its ``model.json`` is that of a model of this software.

    Raises:
        BundleError: unknown or missing fields, or values that do not fit together.
    """
    path = folder / CARD_FILE
    try:
        card = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= MAX_CARD_BYTES else None
    except (OSError, ValueError):
        return None  # read_info says what is wrong with it
    if not isinstance(card, dict) or "kind" not in card:
        return None
    if unknown := set(card) - {f.name for f in fields(ProgramCard)}:
        raise BundleError(f"{path}: unknown field(s) {', '.join(sorted(unknown))}")
    try:
        markers = tuple(Marker(str(c["name"]), (*c["color"],)) for c in card["channels"])
        lists = {name: tuple(value) for name, value in card.items() if isinstance(value, list)}
        return ProgramCard(**{**card, **lists, "channels": markers})
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path} is no card of a program: {error}") from error


def load_program(folder: Path, card: ProgramCard, *, device: str, trust: bool) -> ForeignStainer:
    """Load the program of a folder, and let it stain.

    Args:
        folder: of the model.
        card: its card.
        device: "auto", "cpu", "cuda" or "cuda:N".
        trust: run foreign code.

    Raises:
        BundleError: it is not trusted, its file is not the one that the card names, or torch cannot load it.
    """
    path = folder / card.program
    if not trust:
        raise BundleError(
            f"{card.name} is a {card.kind} program, and running it runs its author's code; "
            f"if you trust where {path} comes from, add --trust (trust=True)"
        )
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; get the model anew") from error
    if digest != card.program_sha256:
        raise BundleError(
            f"{path} is damaged or was changed: its SHA-256 is {digest[:12]}..., the card says "
            f"{card.program_sha256[:12]}...; get the model anew"
        )
    try:
        run = torch.export.load(path).module() if card.kind == "torch.export" else torch.jit.load(path)  # type: ignore[no-untyped-call]
    except Exception as error:  # torch raises whatever the file makes it raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"{path} is no {card.kind} program that this torch can load: {reason}") from error
    return ForeignStainer(_Program(card, run), card=card.described, device=device)


class _Program:
    """A program that follows :class:`mupd_wsi.model.foreign.MarkerMapModel`."""

    def __init__(self, card: ProgramCard, run: nn.Module) -> None:
        self.channel_names = tuple(marker.name for marker in card.channels)
        self.output_mpp: float | None = card.mpp
        self.output_range: tuple[float, float] | None = card.output_range
        self.run = run
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))

    def to(self, device: str) -> None:
        """Move it; an exported program keeps its training flag, which is none of ours."""
        self.run.to(device)

    def predict(self, image: Tensor) -> Tensor:
        """Run it."""
        found: Tensor = self.run(image)
        return found

    def get_transform(self) -> Callable[[NDArray[np.uint8]], Tensor]:
        """Colours 0-1, less the mean, over the spread."""
        return lambda rgb: (torch.from_numpy(rgb).permute(2, 0, 1).float() / 255 - self._mean) / self._std
