"""The manifest of a training: which H&E slide belongs to which target, of which patient, in which split."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.errors import UsageError
from mupd_wsi.geometry import Mpp, Region

#: Affine map (2, 3) from um on the H&E slide to um on the target.
Affine = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairEntry:
    """One pair of slides.

    Attributes:
        he: the H&E slide.
        target: the stained one: OME-TIFF or OME-Zarr of channels, or a brightfield IHC slide.
        split: "train" or "dev".
        patient: whose tissue it is; pairs of one patient must not lie in two splits.
        he_mpp: um per level-0 pixel of the H&E, instead of what the file states.
        target_mpp: likewise of the target.
        affine: ((a, b, c), (d, e, f)): a place (x, y) um on the H&E is (ax + by + c, dx + ey + f) um on the target.
        landmarks: CSV of corresponding level-0 pixels, columns he_x, he_y, target_x, target_y, at least three.
        roi: (x, y, width, height), level-0 pixels of the H&E; only this part is used.
    """

    he: Path
    target: Path
    split: str
    patient: str | None = None
    he_mpp: float | None = None
    target_mpp: float | None = None
    affine: tuple[tuple[float, ...], ...] | None = None
    landmarks: Path | None = None
    roi: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.split not in ("train", "dev"):
            raise UsageError(f"{self.he.name}: split must be train or dev, got {self.split!r}")
        if self.affine is not None and (len(self.affine) != 2 or any(len(row) != 3 for row in self.affine)):
            raise UsageError(f"{self.he.name}: affine must be two rows of three numbers")
        if self.affine is not None and self.landmarks is not None:
            raise UsageError(f"{self.he.name}: give affine or landmarks, not both")
        if self.roi is not None and len(self.roi) != 4:
            raise UsageError(f"{self.he.name}: roi must be x, y, width, height in level-0 pixels")

    @property
    def region(self) -> Region | None:
        """The roi."""
        return Region(*self.roi) if self.roi else None

    def registration(self, he_mpp: Mpp, target_mpp: Mpp) -> Affine | None:
        """From um on the H&E to um on the target; None where the slides lie on one another as they are."""
        if self.affine is not None:
            return np.array(self.affine, np.float64)
        if self.landmarks is not None:
            return affine_of_landmarks(self.landmarks, he_mpp, target_mpp)
        return None


def entry_from_mapping(values: Mapping[str, Any], folder: Path) -> PairEntry:
    """A pair as the recipe's YAML has it; paths are relative to ``folder``.

    Raises:
        UsageError: a field is unknown, missing or cannot be meant.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"a pair of slides is a mapping with he, target and split, got {values!r}")
    unknown = set(values) - {f.name for f in fields(PairEntry)}
    missing = {"he", "target", "split"} - set(values)
    if unknown or missing:
        what = f"unknown {', '.join(sorted(unknown))}" if unknown else f"without {', '.join(sorted(missing))}"
        raise UsageError(f"pair of slides {values.get('he', '?')}: {what}")
    paths = {name: (folder / str(values[name])).resolve() for name in ("he", "target", "landmarks") if name in values}
    affine, roi = values.get("affine"), values.get("roi")
    try:
        rows = tuple(tuple(float(v) for v in row) for row in affine) if affine is not None else None
        patient = None if values.get("patient") is None else str(values["patient"])
        part: Any = tuple(int(v) for v in roi) if roi is not None else None
        return PairEntry(**{**values, **paths, "affine": rows, "roi": part, "patient": patient})
    except (TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"pair of slides {values['he']}: affine and roi are lists of numbers ({error})") from error


def affine_of_landmarks(path: Path, he_mpp: Mpp, target_mpp: Mpp) -> Affine:
    """The affine map in um that fits corresponding places best (least squares).

    Raises:
        UsageError: the table is missing, has other columns, or fewer than three places.
    """
    columns = ("he_x", "he_y", "target_x", "target_y")
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = np.array([[float(row[c]) for c in columns] for row in csv.DictReader(stream)])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is no table of landmarks with columns {', '.join(columns)}: {error}") from error
    if len(rows) < 3:
        raise UsageError(f"{path} has {len(rows)} landmarks; an affine registration needs at least 3")
    places = np.column_stack([rows[:, 0] * he_mpp.x, rows[:, 1] * he_mpp.y, np.ones(len(rows))])
    wanted = np.column_stack([rows[:, 2] * target_mpp.x, rows[:, 3] * target_mpp.y])
    return np.asarray(np.linalg.lstsq(places, wanted, rcond=None)[0].T)


@dataclass(frozen=True, slots=True)
class Leakage:
    """What is in more than one split.

    Attributes:
        slides: names of slides.
        patients: names of patients.
        groups: how many slides each split has.
    """

    slides: tuple[str, ...]
    patients: tuple[str, ...]
    groups: Mapping[str, int]


def find_leakage(identities: Mapping[str, set[tuple[str, str | None]]]) -> Leakage:
    """Compare splits.

    Args:
        identities: by split, (slide's identity, patient or None) of all that is in it.
    """
    splits = list(identities.values())
    pairs = [(a, b) for i, a in enumerate(splits) for b in splits[i + 1 :]]
    slides = {s for a, b in pairs for s in {slide for slide, _ in a} & {slide for slide, _ in b}}
    patients = {p for a, b in pairs for p in {p for _, p in a} & {p for _, p in b} if p is not None}
    groups = {split: len({slide for slide, _ in found}) for split, found in identities.items()}
    return Leakage(tuple(sorted(slides)), tuple(sorted(patients)), groups)
