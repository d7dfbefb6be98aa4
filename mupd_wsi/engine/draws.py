"""Several draws of one stain: their seeds, their mean, and how far they spread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mupd_wsi.rendering import Intensities

#: Odd, so that no two draws of a run share a seed; 2**64 over the golden ratio, so that runs with seeds 1, 2, 3... do
#: not share draws either (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
SEED_STEP: Final = 0x9E3779B97F4A7C15


def draw_seeds(seed: int, samples: int) -> tuple[int, ...]:
    """The seeds of a run's draws, 0 to 2**64 - 1; the first is the run's own."""
    return tuple((seed + number * SEED_STEP) % 2**64 for number in range(samples))


def mean_and_spread(draws: Iterable[Intensities]) -> NDArray[np.float32]:
    """Mean and standard deviation of draws, taken one after the other (Welford, Technometrics 4 (1962) 419-420).

    Memory bound: three arrays of a draw's size, however many draws there are.

    Args:
        draws: at least 2, of one shape (..., channels, height, width).

    Returns:
        (..., 2 * channels, height, width): the means, then the standard deviations (of the sample, divided by n - 1).
    """
    taken: Iterator[Intensities] = iter(draws)
    mean = next(taken).astype(np.float32)
    squares = np.zeros_like(mean)
    count = 1
    for draw in taken:
        count += 1
        away = draw - mean
        mean += away / np.float32(count)
        away *= draw - mean
        squares += away
    spread = np.sqrt(np.maximum(squares, 0) / np.float32(max(count - 1, 1)))
    return np.concatenate([mean, spread], axis=-3)
