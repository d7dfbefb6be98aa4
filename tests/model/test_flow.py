"""The sampler against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mupd_wsi.model.flow import euler_states, euler_times, interpolate, read_out

MEAN, STD = 1.5, 0.7


def _gaussian_x0(x_t, t):
    """E[x0 | x_t] where x0 ~ N(MEAN, STD^2): exact, so only the solver's error remains."""
    t = t[:, None, None, None]
    a, variance = 1 - t, ((1 - t) * STD) ** 2 + t**2
    return MEAN + a * STD**2 / variance * (x_t - a * MEAN)


def _euler_error(steps: int) -> float:
    """Distance of Euler's end point from the exact flow map, which for Gaussians is x0 = MEAN + STD * eps."""
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *_, last = euler_states(lambda x, t: _gaussian_x0(x, t.double()), noise, steps)
    return float((last - (MEAN + STD * noise)).abs().mean())


def test_euler_converges_to_the_closed_form_with_order_one():
    steps = np.array([16, 32, 64, 128])
    errors = np.array([_euler_error(int(n)) for n in steps])
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-1, abs=0.15)
    assert errors[-1] < 0.02


def test_one_euler_step_from_zero_noise_is_the_read_out():
    def predict(x, _t):
        seen = torch.zeros(2, 3, 4, 4) if x is None else x
        return torch.sin(torch.arange(96.0).reshape(2, 3, 4, 4)) + 0.1 * seen

    (stepped,) = euler_states(predict, torch.zeros(2, 3, 4, 4), 1)
    torch.testing.assert_close(stepped, read_out(predict, 2, torch.device("cpu")))


def test_path_starts_at_the_stain_and_ends_at_the_noise():
    x0, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(interpolate(x0, noise, torch.zeros(3)), x0)
    torch.testing.assert_close(interpolate(x0, noise, torch.ones(3)), noise)


def test_euler_times_run_from_one_to_zero():
    assert euler_times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert euler_times(4, shift=3.0).tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
