"""Markers, panels, and the many ways in which people spell a marker's name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from mupd_wsi.errors import UnknownTargetError

ALL_TARGETS: Final = "all"
#: Paints the nuclei of brightfield pictures, and tells where the cells are.
NUCLEAR_MARKER: Final = "Hoechst"

#: Greek letters of marker names, by their lower case: alpha, beta, gamma, epsilon.
GREEK: Final = {0x3B1: "alpha", 0x3B2: "beta", 0x3B3: "gamma", 0x3B5: "epsilon"}

#: Spellings that folding alone (case, hyphens, blanks, Greek letters) does not bring together.
#: Folded alias -> folded canonical name.
ALIASES: Final[dict[str, str]] = {
    "cd8": "cd8a",
    "cd3": "cd3e",
    "cd3epsilon": "cd3e",
    "dapi": "hoechst",
    "dna": "hoechst",
    "nuclei": "hoechst",
    "hoechst33342": "hoechst",
    "cytokeratin": "panck",
    "pancytokeratin": "panck",
    "keratin": "panck",
    "ck": "panck",
    "ae1ae3": "panck",
    "sma": "alphasma",
    "asma": "alphasma",
    "acta2": "alphasma",
    "actin": "alphasma",
    "smoothmuscleactin": "alphasma",
    "alphasmoothmuscleactin": "alphasma",
    "mki67": "ki67",
    "mib1": "ki67",
    "cd274": "pdl1",
    "b7h1": "pdl1",
    "cd279": "pd1",
    "pdcd1": "pd1",
    "ecad": "ecadherin",
    "cdh1": "ecadherin",
    "ms4a1": "cd20",
    "pecam1": "cd31",
    "ptprc": "cd45",
    "lca": "cd45",
    "af": "autofluorescence",
}


def fold(name: str) -> str:
    """A name without case, blanks and hyphens, Greek letters spelled out: "alpha SMA", "Alpha-SMA": "alphasma"."""
    return re.sub(r"[^a-z0-9]", "", name.casefold().translate(GREEK))


@dataclass(frozen=True, slots=True)
class Marker:
    """One stain target.

    Attributes:
        name: canonical name, as in the model's training data.
        color: display colour, sRGB 0-255.
    """

    name: str
    color: tuple[int, int, int]

    def __post_init__(self) -> None:
        if not fold(self.name):
            raise ValueError(f"a marker name needs a letter or digit, got {self.name!r}")
        if len(self.color) != 3 or not all(0 <= c <= 255 for c in self.color):
            raise ValueError(f"a colour is three values 0-255, got {self.color} for {self.name}")


@dataclass(frozen=True, slots=True)
class Panel:
    """The markers of a model, in channel order. Names are unique after folding."""

    markers: tuple[Marker, ...]

    def __post_init__(self) -> None:
        if len({fold(m.name) for m in self.markers}) != len(self.markers):
            raise ValueError(f"marker names of a panel must differ, got {', '.join(m.name for m in self.markers)}")

    def __len__(self) -> int:
        return len(self.markers)

    def __iter__(self) -> Iterator[Marker]:
        return iter(self.markers)

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names, in channel order."""
        return tuple(m.name for m in self.markers)

    def index(self, name: str) -> int:
        """Channel of a marker by any of its spellings.

        Raises:
            UnknownTargetError: no marker of the panel has that name.
        """
        folded = fold(name)
        by_fold = {fold(m.name): i for i, m in enumerate(self.markers)}
        for candidate in (folded, ALIASES.get(folded, folded)):
            if candidate in by_fold:
                return by_fold[candidate]
        raise UnknownTargetError(f"unknown target {name!r}; this model has: {', '.join(self.names)}")

    def select(self, names: Iterable[str]) -> tuple[int, ...]:
        """Channels of the named markers, each once, in the order asked for; ``"all"`` means every one.

        Raises:
            UnknownTargetError: a name is unknown, or none was given.
        """
        chosen: dict[int, None] = {}
        for name in names:
            if fold(name) == ALL_TARGETS:
                chosen.update(dict.fromkeys(range(len(self.markers))))
            elif name.strip():
                chosen[self.index(name)] = None
        if not chosen:
            raise UnknownTargetError(f"no target given; this model has: {', '.join(self.names)}")
        return tuple(chosen)
