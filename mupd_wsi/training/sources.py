"""Where paired pixels come from: a folder of tiles, or whole slides read as staining reads them."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from mupd_wsi.errors import UsageError
from mupd_wsi.evaluation.pairing import stain_densities
from mupd_wsi.geometry import Region, Size, output_size
from mupd_wsi.markers import canonical
from mupd_wsi.normalising import StainProfile, StainTransfer
from mupd_wsi.slides import Slide, open_slide
from mupd_wsi.slides.channels import ChannelImage, open_channels
from mupd_wsi.tissue import TissueMask, glass_color
from mupd_wsi.training.fitting import fit_stain_reference
from mupd_wsi.training.manifest import Affine, Leakage, PairEntry, find_leakage
from mupd_wsi.training.neighbours import GLASS, SlideOfTiles, SquareReader
from mupd_wsi.training.recipe import Recipe
from mupd_wsi.training.tiles import PairedTiles, TilePlace, list_tiles, load_tiles

#: Optical density 1 of an IHC stain as a grey level: 2.55 is the most that can be meant.
GREY_PER_DENSITY: Final = 100.0
#: Share of a tile that has to be tissue for it to be trained on.
MIN_TISSUE: Final = 0.1
#: Quantile of a deeper channel's levels on tissue that becomes grey 255.
HIGH_QUANTILE: Final = 0.999
#: Tiles of a slide whose levels are looked at for it.
LOOKED_AT: Final = 16
#: Columns of glass between two slides on the common raster; wider than any halo.
GAP: Final = 4
_THUMBNAIL: Final = 2048


class PairSource(Protocol):
    """Paired tiles by split, and the H&E around them."""

    def tiles(self, split: str) -> PairedTiles:
        """All tiles of a split."""

    def around(self) -> SquareReader:
        """The H&E of all places, for staining tiles with their neighbours as the halo."""

    def leakage(self) -> Leakage:
        """What train and dev share."""

    def described(self) -> dict[str, object]:
        """What the model's card says of the data."""

    def close(self) -> None:
        """Release the slides. Tiles that were given out stay."""


def open_pairs(recipe: Recipe, cache: Path) -> PairSource:
    """The source that a recipe names.

    Args:
        recipe: of the run.
        cache: folder for the tiles that are cut out of whole slides: ``(3 + markers) * tile ** 2`` bytes a tile.

    Raises:
        UsageError: the data are not there or do not fit the recipe.
        SlideError: a slide or tile cannot be read.
    """
    return SlidePairs(recipe, cache) if recipe.slides else TileFolder(recipe)


class TileFolder:
    """``<channel>/<x>_<y>.jpg`` and ``tiles.csv`` (x, y, split; optionally slide, patient) of one slide's raster."""

    def __init__(self, recipe: Recipe) -> None:
        if recipe.data is None:
            raise UsageError(f"recipe {recipe.name} names neither data (a folder of tiles) nor slides")
        self._folder, self._recipe = recipe.data, recipe

    def tiles(self, split: str) -> PairedTiles:
        """See :class:`PairSource`."""
        return load_tiles(self._folder, split, self._recipe.markers, self._recipe.max_tiles)

    def around(self) -> SquareReader:
        """See :class:`PairSource`."""
        return SlideOfTiles(self._folder)

    def leakage(self) -> Leakage:
        """See :class:`PairSource`; a folder that does not say which slide a tile is of is one slide."""
        places = {split: set(list_tiles(self._folder, split)) for split in ("train", "dev")}
        twice = places["train"] & places["dev"]
        if twice:
            place = min(twice, key=lambda p: (p.x, p.y))
            raise UsageError(f"{self._folder / 'tiles.csv'}: tile {place.x}_{place.y} is in train and in dev")
        with (self._folder / "tiles.csv").open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        found = {
            split: {
                (row.get("slide") or self._folder.name, row.get("patient")) for row in rows if row["split"] == split
            }
            for split in ("train", "dev")
        }
        return find_leakage(found)

    def described(self) -> dict[str, object]:
        """See :class:`PairSource`."""
        return {"data": f"{self._folder.name}, train tiles"}

    def close(self) -> None:
        """Nothing is held open."""


class SlidePairs:
    """Pairs of whole slides. Tiles with tissue are cut out once and kept on disk, where they are read as memory is.

    All slides lie side by side on one raster, with glass between them, so that a place says which slide it is of.
    H&E of later slides is brought to the first one's staining, as it will be when the model stains (unless the
    recipe's ``normalise`` is false).
    """

    def __init__(self, recipe: Recipe, cache: Path) -> None:
        self._recipe, self._cache = recipe, cache
        with ExitStack() as stack:
            self._pairs = [OpenPair(entry, recipe, stack) for entry in recipe.slides]
            columns = [-(-pair.size.width // recipe.tile) + GAP for pair in self._pairs]
            self._starts = np.concatenate([[0], np.cumsum(columns)[:-1]]).tolist()
            self._normalise()
            self.scales = self._find_scales()
            self._stack = stack.pop_all()

    def tiles(self, split: str) -> PairedTiles:
        """See :class:`PairSource`."""
        places = [
            (TilePlace(start + p.x, p.y), pair, p)
            for start, pair in zip(self._starts, self._pairs, strict=True)
            if pair.entry.split == split
            for p in pair.places()
        ]
        if not places:
            raise UsageError(f"recipe {self._recipe.name}: no tile with tissue in split {split!r}")
        if self._recipe.max_tiles:
            chosen = np.unique(np.linspace(0, len(places) - 1, self._recipe.max_tiles).astype(int))
            places = [places[i] for i in chosen]
        where, side, channels = tuple(p for p, _, _ in places), self._recipe.tile, len(self._recipe.markers)
        he = self._kept(f"{split}-he", (len(places), side, side, 3))
        markers = self._kept(f"{split}-markers", (len(places), channels, side, side))
        done = self._cache / f"{split}.json"
        if not (done.is_file() and done.read_text(encoding="utf-8") == self._digest(where)):
            for i, (_, pair, own) in enumerate(places):
                region = Region(own.x * side, own.y * side, side, side)
                he[i] = pair.he(region)
                markers[i] = pair.target(region, self.scales)
            done.write_text(self._digest(where), encoding="utf-8")
        return PairedTiles(where, he, markers)

    def around(self) -> SquareReader:
        """See :class:`PairSource`."""
        return self

    @property
    def tile(self) -> int:
        """Side of a tile, px."""
        return self._recipe.tile

    def read(self, x: int, y: int, side: int) -> NDArray[np.uint8]:
        """A square of H&E on the common raster, (side, side, 3); glass outside the slides."""
        out = np.full((side, side, 3), GLASS, np.uint8)
        for start, pair in zip(self._starts, self._pairs, strict=True):
            left = start * self.tile
            whole = Region(left, 0, pair.size.width, pair.size.height)
            part = whole.intersection(Region(x, y, side, side))
            if part is not None:
                pixels = pair.he(Region(part.x - left, part.y, part.width, part.height))
                out[part.y - y : part.bottom - y, part.x - x : part.right - x] = pixels
        return out

    def leakage(self) -> Leakage:
        """See :class:`PairSource`."""
        found: dict[str, set[tuple[str, str | None]]] = {"train": set(), "dev": set()}
        for pair in self._pairs:
            identity = f"{pair.entry.he.name} ({pair.slide.fingerprint()[:8]})"
            found[pair.entry.split].add((identity, pair.entry.patient))
        return find_leakage(found)

    def described(self) -> dict[str, object]:
        """See :class:`PairSource`."""
        return {
            "data": ", ".join(e.he.name for e in self._recipe.slides if e.split == "train"),
            "grey_255": {name: round(float(v), 4) for name, v in zip(self._recipe.markers, self.scales, strict=True)},
        }

    def close(self) -> None:
        """See :class:`PairSource`."""
        self._stack.close()

    def _normalise(self) -> None:
        if not self._recipe.normalise:
            return
        profiles = [pair.profile() for pair in self._pairs]
        first = next(
            (p for p, pair in zip(profiles, self._pairs, strict=True) if p and pair.entry.split == "train"), None
        )
        for profile, pair in zip(profiles, self._pairs, strict=True):
            if profile and first and profile is not first:
                pair.recolor = StainTransfer(profile, first)

    def _find_scales(self) -> NDArray[np.float32]:
        """(C,): the stored level of each channel that becomes grey 255."""
        high = np.full(len(self._recipe.markers), 255.0, np.float32)
        deep = [pair for pair in self._pairs if not pair.is_8bit and pair.entry.split == "train"]
        levels = [level for pair in deep for level in pair.levels()]
        if levels:
            high = np.maximum(np.quantile(np.concatenate(levels, axis=1), HIGH_QUANTILE, axis=1), 1e-6)
        return high.astype(np.float32)

    def _kept(self, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        self._cache.mkdir(parents=True, exist_ok=True)
        path = self._cache / f"{name}.npy"
        if path.is_file():
            held = np.lib.format.open_memmap(path, mode="r+")
            if held.shape == shape:
                return held
        (self._cache / f"{name.partition('-')[0]}.json").unlink(missing_ok=True)
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)

    def _digest(self, places: tuple[TilePlace, ...]) -> str:
        """What the kept tiles depend on."""
        facts = {
            "slides": [{k: str(v) for k, v in asdict(e).items()} for e in self._recipe.slides],
            "files": [pair.slide.fingerprint() for pair in self._pairs],
            "markers": self._recipe.markers,
            "raster": (self._recipe.mpp, self._recipe.tile, self._recipe.normalise, self.scales.tolist()),
            "places": [asdict(place) for place in places],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class OpenPair:
    """One pair of slides, open.

    Attributes:
        entry: of the manifest.
        slide: the H&E.
        size: of the H&E at the recipe's um/px.
        is_8bit: whether the target's levels are grey levels already.
        recolor: what brings the H&E to the first slide's staining, or None.
    """

    def __init__(self, entry: PairEntry, recipe: Recipe, stack: ExitStack) -> None:
        self.entry, self._recipe = entry, recipe
        self.recolor: StainTransfer | None = None
        self.slide: Slide = stack.enter_context(open_slide(entry.he, mpp=entry.he_mpp))
        self.size = output_size(self.slide.size, self.slide.mpp, recipe.mpp)
        self._channels: ChannelImage | None = None
        self._ihc: Slide | None = None
        if recipe.stain == "mif":
            self._channels = stack.enter_context(open_channels(entry.target, mpp=entry.target_mpp))
            self._planes = _planes_of(self._channels, recipe.markers)
            self.is_8bit, target = self._channels.is_8bit, self._channels
            whole, mpp = output_size(target.size, target.mpp, recipe.mpp), target.mpp
        else:
            self._ihc = stack.enter_context(open_slide(entry.target, mpp=entry.target_mpp))
            self._white = glass_color(self._ihc.thumbnail(_THUMBNAIL // 4))
            whole, mpp = output_size(self._ihc.size, self._ihc.mpp, recipe.mpp), self._ihc.mpp
            self.is_8bit = True
        self._target_size: Size = whole
        self._affine: Affine | None = entry.registration(self.slide.mpp, mpp)

    def places(self) -> Iterator[TilePlace]:
        """Whole tiles that hold tissue, on the slide's own raster."""
        side, mpp = self._recipe.tile, self._recipe.mpp
        scale = self.slide.thumbnail_scale(_THUMBNAIL) * self.slide.mpp.mean
        tissue = TissueMask.from_thumbnail(self.slide.thumbnail(_THUMBNAIL), scale)
        wanted = self._wanted()
        for y in range(self.size.height // side):
            for x in range(self.size.width // side):
                region = Region(x * side, y * side, side, side)
                if wanted.contains(region) and tissue.fraction(region, mpp) >= MIN_TISSUE:
                    yield TilePlace(x, y)

    def he(self, region: Region) -> NDArray[np.uint8]:
        """H&E, uint8 (h, w, 3); px of the slide at the recipe's um/px."""
        pixels = self.slide.read(region, self._recipe.mpp)
        return self.recolor.apply(pixels) if self.recolor else pixels

    def target(self, region: Region, high: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Targets at the H&E's place, uint8 (C, h, w); black where the target slide ends."""
        levels = self._warped(region)
        scale = 1.0 if self.is_8bit else 255.0 / high[:, None, None]
        return np.clip(np.rint(levels * scale), 0, 255).astype(np.uint8)

    def levels(self) -> Iterator[NDArray[np.float32]]:
        """Stored levels (C, n) of some tiles with tissue."""
        places, side = list(self.places()), self._recipe.tile
        for i in np.unique(np.linspace(0, len(places) - 1, LOOKED_AT).astype(int)) if places else ():
            region = Region(places[i].x * side, places[i].y * side, side, side)
            yield self._warped(region)[:, ::4, ::4].reshape(len(self._recipe.markers), -1)

    def profile(self) -> StainProfile | None:
        """The H&E's staining, from some tiles with tissue."""
        places, side = list(self.places()), self._recipe.tile
        if not places:
            return None
        chosen = np.unique(np.linspace(0, len(places) - 1, LOOKED_AT).astype(int))
        he = np.stack([self.he(Region(places[i].x * side, places[i].y * side, side, side)) for i in chosen])
        return fit_stain_reference(he, PairedTiles((), he, np.empty((0, 1, 1, 1), np.uint8)).patch_tissue)

    def _wanted(self) -> Region:
        roi = self.entry.region
        if roi is None:
            return Region(0, 0, self.size.width, self.size.height)
        scale_x, scale_y = self.slide.mpp.x / self._recipe.mpp, self.slide.mpp.y / self._recipe.mpp
        x, y = round(roi.x * scale_x), round(roi.y * scale_y)
        return Region(x, y, max(1, round(roi.width * scale_x)), max(1, round(roi.height * scale_y)))

    def _warped(self, region: Region) -> NDArray[np.float32]:
        if self._affine is None:
            return self._stored(region)
        linear, shift = self._affine[:, :2], self._affine[:, 2] / self._recipe.mpp
        corners = np.array([[x, y] for x in (region.x, region.right) for y in (region.y, region.bottom)])
        there = corners @ linear.T + shift
        low, high = np.floor(there.min(axis=0)).astype(int) - 2, np.ceil(there.max(axis=0)).astype(int) + 2
        source = self._stored(Region(int(low[0]), int(low[1]), *(int(v) for v in high - low)))
        start = linear @ (np.array([region.x, region.y]) + 0.5) + shift - 0.5 - low
        matrix = np.column_stack([linear, start])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = (region.width, region.height)
        return np.stack([cv2.warpAffine(plane, matrix, size, flags=flags) for plane in source]).astype(np.float32)

    def _stored(self, region: Region) -> NDArray[np.float32]:
        """Levels of the target, float32 (C, h, w), 0 outside it; px of the target at the recipe's um/px."""
        out = np.zeros((len(self._recipe.markers), region.height, region.width), np.float32)
        part = Region(0, 0, self._target_size.width, self._target_size.height).intersection(region)
        if part is None:
            return out
        if self._channels is not None:
            pixels = self._channels.read(part, self._recipe.mpp, self._planes)
        else:
            assert self._ihc is not None
            pixels = stain_densities(self._ihc.read(part, self._recipe.mpp), self._white) * GREY_PER_DENSITY
        place = np.s_[:, part.y - region.y : part.bottom - region.y, part.x - region.x : part.right - region.x]
        out[place] = pixels
        return out


def _planes_of(image: ChannelImage, markers: tuple[str, ...]) -> tuple[int, ...]:
    by_name = {canonical(name): i for i, name in reversed(list(enumerate(image.names)))}
    missing = [name for name in markers if canonical(name) not in by_name]
    if missing:
        raise UsageError(f"{image.path.name} has no channel {', '.join(missing)}; it has: {', '.join(image.names)}")
    return tuple(by_name[canonical(name)] for name in markers)
