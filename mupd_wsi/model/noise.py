"""Standard normal noise as a function of the place on the slide.

Overlapping tiles must see the same noise in any order, batch or process, so noise is computed from
(seed, absolute x, absolute y, channel) by the counter-based generator Philox4x32-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC11) and the Box-Muller transform: there is no state.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)


def philox4x32(counter: tuple[NDArray[np.uint32], ...], key: tuple[int, int]) -> tuple[NDArray[np.uint32], ...]:
    """Four random words for each counter.

    Args:
        counter: four arrays of one shape, uint32.
        key: two 32-bit words.

    Returns:
        Four uint32 arrays of that shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0.astype(np.uint64) * _MULTIPLIERS[0], c2.astype(np.uint64) * _MULTIPLIERS[1]
        high0, high1 = (p0 >> _HALF).astype(np.uint32), (p1 >> _HALF).astype(np.uint32)
        c0, c2 = high1 ^ c1 ^ np.uint32(k0), high0 ^ c3 ^ np.uint32(k1)
        c1, c3 = (p1 & _LOW).astype(np.uint32), (p0 & _LOW).astype(np.uint32)
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def slide_noise(seed: int, x: int, y: int, channels: int, height: int, width: int) -> NDArray[np.float32]:
    """Noise of a rectangle of the slide.

    Args:
        seed: 0 to 2**64 - 1.
        x: column of the rectangle's left edge in output pixels; may be negative.
        y: row of its top edge.
        channels: number of channels.
        height: rows.
        width: columns.

    Returns:
        float32 (channels, height, width), standard normal, independent from place to place.
    """
    groups = -(-channels // 4)
    shape = (groups, height, width)
    columns = np.arange(x, x + width).astype(np.uint32)
    rows = np.arange(y, y + height).astype(np.uint32)
    counter = (
        np.broadcast_to(columns, shape),
        np.broadcast_to(rows[:, None], shape),
        np.broadcast_to(np.arange(groups, dtype=np.uint32)[:, None, None], shape),
        np.zeros(shape, np.uint32),
    )
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    normals = [value for pair in (words[:2], words[2:]) for value in _box_muller(*pair)]
    return np.stack(normals, axis=1).reshape(4 * groups, height, width)[:channels]


def _box_muller(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    uniform = (a.astype(np.float32) + np.float32(1)) * np.float32(2**-32)  # (0, 1]
    radius = np.sqrt(np.float32(-2) * np.log(uniform))
    angle = b.astype(np.float32) * np.float32(2 * np.pi * 2**-32)
    return radius * np.cos(angle), radius * np.sin(angle)
