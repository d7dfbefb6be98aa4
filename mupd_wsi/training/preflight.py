"""What is looked at before a training: do the pairs lie on one another, and are the splits apart?"""

from __future__ import annotations

from dataclasses import dataclass

from mupd_wsi.errors import UsageError
from mupd_wsi.training.manifest import Leakage
from mupd_wsi.training.recipe import Recipe
from mupd_wsi.training.registration import MAX_SHIFT, MIN_CORRELATION, Registration, measure_registration
from mupd_wsi.training.sources import PairSource


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found.

    Attributes:
        tiles: by split.
        registration: by split; None where no channel shows nuclei.
        leakage: what the splits share.
        warnings: one sentence each, for people.
    """

    tiles: dict[str, int]
    registration: dict[str, Registration | None]
    leakage: Leakage
    warnings: tuple[str, ...]

    def lines(self, mpp: float) -> list[str]:
        """For people, a line a fact."""
        found = []
        for split, tiles in self.tiles.items():
            slides = self.leakage.groups.get(split, 0)
            found.append(f"{split:<6} {tiles} tiles of {slides} {'slide' if slides == 1 else 'slides'}")
            one = self.registration[split]
            found.append(
                f"{'':<6} registration not measured: no channel shows nuclei"
                if one is None
                else f"{'':<6} registration: correlation {one.correlation:.2f} (chance {one.shuffled:.2f}), shift "
                f"{one.shift:.2f} px = {one.shift * mpp:.2f} um, medians of {one.tiles} tiles"
            )
        shared = (*self.leakage.slides, *(f"patient {name}" for name in self.leakage.patients))
        found.append(f"{'both':<6} {', '.join(shared) if shared else 'no slide and no patient'}")
        return found


def look_before(recipe: Recipe, pairs: PairSource) -> Preflight:
    """Measure registration and leakage.

    Raises:
        UsageError: a slide or patient is in both splits, and the recipe does not say ``splits_within_slide: true``.
    """
    leakage, warnings = pairs.leakage(), []
    shared = ", ".join((*leakage.slides, *(f"patient {name}" for name in leakage.patients)))
    if shared and not recipe.splits_within_slide:
        raise UsageError(
            f"train and dev share {shared}: what is measured on dev would flatter the model; move it to one split, or "
            "set splits_within_slide: true and claim nothing about other slides"
        )
    if shared:
        warnings.append(f"train and dev share {shared}: dev figures say nothing about other slides or patients")
    tiles = {split: pairs.tiles(split) for split in ("train", "dev")}
    registration = {split: measure_registration(found, recipe.markers) for split, found in tiles.items()}
    warnings += [
        f"{split}: H&E and target lie badly on one another (correlation {one.correlation:.2f}, wanted at least "
        f"{MIN_CORRELATION}; shift {one.shift:.1f} px, wanted at most {MAX_SHIFT}): register them first"
        for split, one in registration.items()
        if one is not None and not one.is_good
    ]
    return Preflight({split: len(t.places) for split, t in tiles.items()}, registration, leakage, tuple(warnings))
