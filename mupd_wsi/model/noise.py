"""Normal noise as a function of the place on the slide: white, or with the power spectrum of a stain.

Overlapping tiles must see the same noise in any order, batch or process, so noise is computed from
(seed, absolute x, absolute y, channel) by the counter-based generator Philox4x32-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC11) and the Box-Muller transform: there is no state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
#: Gaussian blurs whose weighted sum colours white noise, each (standard deviation in px, weight); none leaves it white.
Blurs = tuple[tuple[float, float], ...]
#: How many times as strong each blur's part of the noise is made, a row a channel; empty: as it is.
Gains = tuple[tuple[float, ...], ...]

_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)
#: Places worked on at a time: what the rounds need of them fits a core's second-level cache.
_CHUNK: Final = 16_384


def philox4x32(counter: tuple[NDArray[np.uint32], ...], key: tuple[int, int]) -> tuple[Words, ...]:
    """Four random words for each counter.

    Args:
        counter: four arrays of 32-bit words, whose shapes broadcast together. Counters that vary along one axis alone
            save the first rounds most of their work.
        key: two 32-bit words.

    Returns:
        Four arrays of the common shape, each value below 2**32.
    """
    shape = np.broadcast_shapes(*(words.shape for words in counter))
    c0, c1, c2, c3 = (words.astype(np.uint64) for words in counter)
    for k0, k1 in _round_keys(key):
        product0, product1 = _multiplied(c0, _MULTIPLIERS[0], shape), _multiplied(c2, _MULTIPLIERS[1], shape)
        c0, c1 = _mixed(product1, c1, k0)
        c2, c3 = _mixed(product0, c3, k1)
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
    noise = np.empty((channels, height, width), np.float32)
    columns = np.arange(x, x + width).astype(np.uint32)[None]
    rows = np.arange(y, y + height).astype(np.uint32)[:, None]
    key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    step = max(1, _CHUNK // width)
    for group in range(-(-channels // 4)):
        for top in range(0, height, step):
            part = slice(top, top + step)
            fixed = (np.full((1, 1), group, np.uint32), np.zeros((1, 1), np.uint32))
            a, b, c, d = philox4x32((columns, rows[part], *fixed), key)
            _box_muller(a, b, noise[4 * group : 4 * group + 2, part])
            _box_muller(c, d, noise[4 * group + 2 : 4 * group + 4, part])
    return noise


def slide_noise_colored(
    seed: int, x: int, y: int, channels: int, height: int, width: int, blurs: Blurs, gains: Gains = ()
) -> NDArray[np.float32]:
    """The same, coloured (:func:`colored`): normal, and neighbours are alike as the blurs say."""
    edge = reach(blurs)
    return colored(slide_noise(seed, x - edge, y - edge, channels, height + 2 * edge, width + 2 * edge), blurs, gains)


def colored(white: NDArray[np.float32], blurs: Blurs, gains: Gains = ()) -> NDArray[np.float32]:
    """White noise with another power spectrum, of unit variance but for the gains.

    The power of a stain falls by three orders of magnitude from 64 to 2 px. A flow that starts from noise of such a
    spectrum decides on all wavelengths at once; from white noise it decides on the coarse ones while all is noise
    yet, and has to take away fine grain that no stain has.

    Args:
        white: (channels, height + 2 * reach(blurs), width + 2 * reach(blurs)), standard normal.
        blurs: weighted Gaussians; none returns ``white``.
        gains: of the blurs, a row a channel; none leaves each as it is.

    Returns:
        float32 (channels, height, width).
    """
    if not blurs:
        return white
    edge = reach(blurs)
    taps = [_gaussian(sigma, edge) for sigma, _ in blurs]
    # The variance of a weighted sum of separable filters of the same noise.
    power = sum(
        a * b * float(one @ other) ** 2
        for (_, a), one in zip(blurs, taps, strict=True)
        for (_, b), other in zip(blurs, taps, strict=True)
    )
    out = np.zeros((len(white), white.shape[1] - 2 * edge, white.shape[2] - 2 * edge), np.float32)
    for source, target, shares in zip(white, out, gains or ((1.0,) * len(blurs),) * len(white), strict=True):
        for (_, weight), tap, share in zip(blurs, taps, shares, strict=True):
            scaled = tap[tap > 0] * (share * weight / math.sqrt(power))
            blurred = cv2.sepFilter2D(source, cv2.CV_32F, tap[tap > 0], scaled)
            target += blurred[edge : len(source) - edge, edge : source.shape[1] - edge]
    return out


def reach(blurs: Blurs) -> int:
    """Pixels around a place that its coloured noise depends on."""
    return max((math.ceil(3 * sigma) for sigma, _ in blurs), default=0)


def _gaussian(sigma: float, edge: int) -> NDArray[np.float32]:
    """Taps of a Gaussian that is cut at three standard deviations, (2 * edge + 1,), of sum 1."""
    places = np.arange(-edge, edge + 1)
    taps = np.where(np.abs(places) <= math.ceil(3 * sigma), np.exp(-0.5 * (places / sigma) ** 2), 0)
    return np.asarray(taps / taps.sum(), np.float32)


def _round_keys(key: tuple[int, int]) -> Iterator[tuple[np.uint64, np.uint64]]:
    k0, k1 = key
    for _ in range(_ROUNDS):
        yield np.uint64(k0), np.uint64(k1)
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF


def _multiplied(words: Words, multiplier: np.uint64, shape: tuple[int, ...]) -> Words:
    """The 64-bit products; in place where the words have their full shape."""
    if words.shape != shape:
        return words * multiplier
    words *= multiplier
    return words


def _mixed(product: Words, other: Words, key: np.uint64) -> tuple[Words, Words]:
    """The product's high half with another word and the key, and its low half. Both arguments are used up."""
    high = product >> _HALF
    if high.shape == np.broadcast_shapes(high.shape, other.shape):
        high ^= key
        high ^= other
    else:
        high = high ^ (other ^ key)
    product &= _LOW
    return high, product


def _box_muller(a: Words, b: Words, out: NDArray[np.float32]) -> None:
    """Write at most two planes of normals from two words a place (G. E. P. Box, M. E. Muller, 1958)."""
    if not len(out):
        return
    radius = a.astype(np.float32)
    radius += np.float32(1)
    radius *= np.float32(2**-32)  # (0, 1]
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle = b.astype(np.float32)
    angle *= np.float32(2 * np.pi * 2**-32)
    for plane, wave in zip(out, (np.cos, np.sin), strict=False):
        np.multiply(wave(angle), radius, out=plane)
