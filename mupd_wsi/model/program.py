"""Models of somebody else in a folder: a card, and a program that ``torch.export`` or TorchScript has written.

A program is foreign code: torch runs what is in the file. It is loaded only for those who trust where it comes from.
The card alone says nothing that is run.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mupd_wsi.errors import BundleError, MupdError
from mupd_wsi.markers import Marker, Panel
from mupd_wsi.model.bundle import CARD_FILE, MAX_CARD_BYTES
from mupd_wsi.model.devices import resolve_device
from mupd_wsi.model.foreign import ForeignStainer, panel_of
from mupd_wsi.model.foreign_card import LIMIT, ForeignCard
from mupd_wsi.request import Fuse, SampleOptions

KINDS: Final = ("torch.export", "torchscript")


@dataclass(frozen=True, slots=True)
class ProgramCard:
    """``model.json`` of a folder with a program.

    Attributes:
        kind: "torch.export" (a ``.pt2``) or "torchscript".
        name: of the model.
        version: of it.
        license: SPDX identifier.
        program: the program's file, in the same folder. It maps float32 (1, 3, tile, tile) to (1, channels, h, w), with
            h and w the tile's side, or what ``output_mpp`` makes of it.
        program_sha256: of that file.
        mpp: um/px of its tiles.
        tile: side of the tiles, px, halo included.
        halo: px on each side of a tile that only give context.
        output_range: the values that become intensities 0 and 255.
        channels: names and colours (R, G, B), in the program's order.
        stains: instead of channels, of a program that paints: red, green and blue of each.
        scale: what pixel values 0-255 are multiplied by before the program sees them.
        mean: that is then taken from the three colours.
        std: that they are then divided by.
        output_mpp: um/px of what it predicts, a whole multiple of mpp; None: the same.
        period: px by which a tile may be moved without changing what the program's strides make of it.
        fuse: how its tiles are joined unless the user says otherwise.
        credit: whose work it is.
    """

    kind: str
    name: str
    version: str
    license: str
    program: str
    program_sha256: str
    mpp: float
    tile: int
    halo: int
    output_range: tuple[float, float]
    channels: tuple[Marker, ...] = ()
    stains: tuple[str, ...] = ()
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    output_mpp: float | None = None
    period: int = 1
    fuse: Fuse = "blend"
    credit: str = "not stated"

    def __post_init__(self) -> None:
        problems = {
            f"kind must be {' or '.join(KINDS)}, got {self.kind!r}": self.kind not in KINDS,
            "program must be the name of a file in the same folder": Path(self.program).name != self.program,
            "it needs channels, or stains where it paints, and not both": bool(self.channels) == bool(self.stains),
            "output_range must be two values that rise": not _rises(self.output_range),
            "mean and std must be three values each, std and scale above 0": (len(self.mean), len(self.std)) != (3, 3)
            or not all(map(math.isfinite, self.mean))
            or not all(0 < value < math.inf for value in (*self.std, self.scale)),
            f"fuse must be crop or blend, got {self.fuse!r}": self.fuse not in ("crop", "blend"),
        }
        for text, is_wrong in problems.items():
            if is_wrong:
                raise BundleError(f"model {self.name}: {text}")

    @property
    def described(self) -> ForeignCard:
        """What a run wants to know."""
        return ForeignCard(
            name=self.name,
            panel=Panel(self.channels) if self.channels else panel_of(self.stains),
            mpp=self.mpp,
            tile=self.tile,
            halo=self.halo,
            weights_sha256=self.program_sha256,
            fuse=self.fuse,
            version=self.version,
            license=self.license,
            credit=self.credit,
            painted=bool(self.stains),
            period=self.period,
            limits=(LIMIT, f"A {self.kind} program, which is its author's code: it is run with --trust only."),
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
    try:
        found = program_card_from_json(card)
        _ = found.described  # its numbers are checked there
        return found
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is no card of a program: {error}") from error


def program_card_from_json(card: Mapping[str, Any]) -> ProgramCard:
    """A card from its JSON values.

    Raises:
        BundleError: fields that are unknown, missing or of another kind, or values that do not fit together.
        KeyError, TypeError, ValueError: channels that are none.
    """
    own = {f.name: f for f in fields(ProgramCard)}
    if unknown := sorted(set(card) - set(own)):
        raise BundleError(f"unknown field(s) {', '.join(unknown)}")
    if missing := [name for name, f in own.items() if f.default is MISSING and name not in card]:
        raise BundleError(f"field(s) {', '.join(missing)} missing")
    for name, value in card.items():
        if not _is_of_kind(value, str(own[name].type)):
            raise BundleError(f"field {name} must be {own[name].type}, got {value!r}")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in card.items()}
    if "channels" in card:
        values["channels"] = tuple(Marker(str(c["name"]), (*c["color"],)) for c in card["channels"])
    return ProgramCard(**values)


def refuse_untrusted(folder: Path, card: ProgramCard, *, trust: bool) -> None:
    """Nothing of a program's file is opened for those who do not trust it.

    Raises:
        BundleError: it is not trusted; says what it is, and how to allow it.
    """
    if not trust:
        raise BundleError(
            f"{card.name} is a {card.kind} program, and running it runs its author's code; "
            f"if you trust where {folder / card.program} comes from, add --trust (trust=True)"
        )


def load_program(folder: Path, card: ProgramCard, *, device: str, trust: bool) -> ForeignStainer:
    """Load the program of a folder, and let it stain. One that cannot run is found out on a white tile.

    Args:
        folder: of the model.
        card: its card.
        device: "auto", "cpu", "cuda" or "cuda:N".
        trust: run foreign code.

    Raises:
        BundleError: it is not trusted, its file is not the one that the card names, torch cannot load it, or it makes
            something else of a tile than its card says.
    """
    refuse_untrusted(folder, card, trust=trust)
    path, device = folder / card.program, resolve_device(device)
    content = _read(path, card.program_sha256)
    try:
        run = _loaded(content, card.kind, device)
    except Exception as error:  # torch raises whatever the file makes it raise
        raise BundleError(f"{path} is no {card.kind} program that this torch can load: {_line(error)}") from error
    program = _Painter(card, run) if card.stains else _Mapper(card, run)
    stainer = ForeignStainer.with_card(program, card.described, device)
    try:
        stainer.stain(np.full((1, card.tile, card.tile, 3), 255, np.uint8), [(0, 0)], SampleOptions())
    except MupdError:
        raise
    except Exception as error:  # the program's own
        raise BundleError(f"{path} does not run on tiles of {card.tile} px: {_line(error)}") from error
    return stainer


def _read(path: Path, expected: str) -> bytes:
    """A file's bytes: what is hashed is what will be loaded."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; get the model anew") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise BundleError(
            f"{path} is damaged or was changed: its SHA-256 is {digest[:12]}..., the card says {expected[:12]}...; "
            "get the model anew"
        )
    return content


def _loaded(content: bytes, kind: str, device: str) -> nn.Module:
    stream = io.BytesIO(content)
    if kind == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as such
            script: nn.Module = torch.jit.load(stream, map_location=device)  # type: ignore[no-untyped-call]
        return script.eval()
    program = torch.export.load(stream)
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return program.module()


class _Program:
    """What the programs of both protocols of :mod:`mupd_wsi.model.foreign` have."""

    def __init__(self, card: ProgramCard, run: nn.Module) -> None:
        self.output_mpp, self._run, self._scale = card.output_mpp, run, card.scale
        self.output_range: tuple[float, float] | None = card.output_range
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))

    def predict(self, image: Tensor) -> Tensor:
        """Run it."""
        found: Tensor = self._run(image)
        return found

    def get_transform(self) -> Callable[[NDArray[np.uint8]], Tensor]:
        """Scaled colours, less the mean, over the spread."""
        return lambda rgb: (torch.from_numpy(rgb).permute(2, 0, 1).float() * self._scale - self._mean) / self._std


class _Mapper(_Program):
    def __init__(self, card: ProgramCard, run: nn.Module) -> None:
        super().__init__(card, run)
        self.channel_names = tuple(marker.name for marker in card.channels)


class _Painter(_Program):
    def __init__(self, card: ProgramCard, run: nn.Module) -> None:
        super().__init__(card, run)
        self.stains = card.stains


def _is_of_kind(value: Any, annotation: str) -> bool:
    """Whether a JSON value is what a field's annotation says; what lists hold is looked at by :class:`ProgramCard`."""
    if annotation.startswith("tuple[float"):
        return isinstance(value, list) and all(_is_of_kind(item, "float") for item in value)
    if annotation.startswith("tuple[str"):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if annotation.startswith("tuple"):
        return isinstance(value, list)
    if annotation == "float | None":
        return value is None or _is_of_kind(value, "float")
    if annotation == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str)


def _rises(values: tuple[float, ...]) -> bool:
    return len(values) == 2 and -math.inf < values[0] < values[1] < math.inf


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
