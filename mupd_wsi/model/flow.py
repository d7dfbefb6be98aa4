"""The whole theory of the sampler. It does no I/O and knows no slide.

Flow matching on the linear path (Lipman et al., arXiv 2210.02747; MuPD, arXiv 2604.03635)::

    x_t = (1 - t) x0 + t eps        v = dx_t / dt = eps - x0 = (x_t - x0) / t

The network predicts x0, from which v follows: a network narrower than its noisy input cannot carry v, of which the
noise is a part, but it can carry x0. At t = 1 with eps = 0 one evaluation gives the conditional mean E[x0 | H&E]: the
one-pass read-out, equal to one Euler step from that point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = TypeVar("Values", Tensor, NDArray[np.float32])

#: Predicts x0 from (x_t, t), shapes (B, C, H, W) and (B,); x_t None stands for zeros.
PredictX0 = Callable[[Tensor | None, Tensor], Tensor]


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t on the linear path; ``x0`` and ``noise`` (B, C, H, W), ``t`` (B,)."""
    t = t[:, None, None, None]
    return (1 - t) * x0 + t * noise


def shifted(t: Tensor, shift: float) -> Tensor:
    """Flow times in [0, 1] moved towards 1 (Esser et al., arXiv 2403.03206, section 5.3.2); a shift of 1 leaves them.

    Where neighbouring pixels tell the same, as those of a cell do, what is there is decided while there is still much
    noise, and an even walk would step over that.
    """
    return shift * t / (1 + (shift - 1) * t)


def euler_times(steps: int, shift: float = 1.0) -> Tensor:
    """Flow times 1 = t_0 > ... > t_steps = 0, (steps + 1,): evenly spaced, then :func:`shifted`."""
    return shifted(torch.linspace(1.0, 0.0, steps + 1), shift)


def euler_step(x: Values, x0: Values, t: float, t_next: float) -> Values:
    """x at ``t_next`` from x at ``t`` and the x0 predicted there: ``x + (t_next - t) v`` with ``v = (x - x0) / t``."""
    return x0 + (t_next / t) * (x - x0)


def euler_states(predict: PredictX0, noise: Tensor, steps: int, shift: float = 1.0) -> Iterator[Tensor]:
    """Euler's method from ``noise`` at t = 1 to a sample at t = 0; yields x after every step.

    Each step moves x_t by ``(t_next - t) v`` with ``v = (x_t - x0) / t``: a weighted mean of x_t and the predicted x0.

    Args:
        predict: the network, conditions bound.
        noise: (B, C, H, W) of standard normal values.
        steps: number of evaluations, at least 1.
        shift: of the times; see :func:`shifted`.
    """
    x = noise
    for t, t_next in pairwise(euler_times(steps, shift).tolist()):
        x0 = predict(x, torch.full((len(x),), t, device=x.device))
        x = euler_step(x, x0, t, t_next)
        yield x


def read_out(predict: PredictX0, batch: int, device: torch.device) -> Tensor:
    """The conditional mean in one evaluation, at t = 1 with zero noise: (B, C, H, W)."""
    return predict(None, torch.ones(batch, device=device))
