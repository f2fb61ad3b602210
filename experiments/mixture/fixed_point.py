"""The exact fixed point of squared-L2 consistency distillation in one dimension, by dynamic programming.

With an exact teacher, θ = θ⁻ at the optimum and no critic, the student's target at a grid time is the mean of its own
value one sub-step below, so

    f_0(x) = x,    f_i(x) = E_w[ f_{i−1}( Φ(x, t_i → t_{i−1}; w) ) ],    w ~ N(0, 1),

whatever h is (the h interleaved chains of targets are one and the same recursion, for solvers of first order). Each
mean is a Gauss–Hermite quadrature over the solver's own `step`; f_i is held on a grid of states. There is no network
and no training error: what is wrong with the samples of f is the method's own doing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scott.diffusion import JumpGrid, NoiseSchedule
from scott.solvers import Solver

NODES = 32
STATES = 1601


@dataclass(frozen=True)
class Mixture:
    """Σ_k p_k N(m_k, s_k²) in one dimension, brought to zero mean and unit variance."""

    means: tuple[float, ...]
    spreads: tuple[float, ...]
    weights: tuple[float, ...]

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """(p, m, s) of the standardised mixture, each (K,), float64."""
        p, m, s = (torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.means, self.spreads))
        p = p / p.sum()
        m = m - (p * m).sum()
        scale = (p * (m**2 + s**2)).sum().sqrt()
        return p, m / scale, s / scale

    def denoiser(self, schedule: NoiseSchedule):
        """x̂0(x_t, t) = E[x0 | x_t], exact: posterior-weighted means of the components. x (B, 1), t (B,)."""
        p, m, s = self.components()

        def x0(x: Tensor, t: Tensor, cond: None) -> Tensor:
            alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
            variance = alpha**2 * s**2 + sigma**2
            log = p.log() - 0.5 * variance.log() - (x - alpha * m) ** 2 / (2 * variance)
            posterior = m + alpha * s**2 / variance * (x - alpha * m)
            return (log.softmax(1) * posterior).sum(1, keepdim=True)

        return x0

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        p, m, s = (value.numpy() for value in self.components())
        which = rng.choice(len(p), count, p=p)
        return m[which] + s[which] * rng.standard_normal(count)


THREE_MODES = Mixture((-1.5, 0.0, 1.5), (0.3, 0.3, 0.3), (0.3, 0.3, 0.4))
HEAVY_TAILS = Mixture((-4.0, -1.0, 0.0, 1.0, 5.0), (0.4, 0.2, 0.2, 0.2, 0.6), (0.05, 0.3, 0.3, 0.3, 0.05))


class FixedPoint:
    """f on every grid time, for one data distribution, solver (of first order) and grid."""

    def __init__(self, data: Mixture, solver: Solver, grid: JumpGrid) -> None:
        self.data, self.schedule, self.grid = data, solver.schedule, grid
        denoiser = data.denoiser(solver.schedule)
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        noise, weight = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
        times = grid.times
        self.states = [self._states(time) for time in times]
        self.values = [self.states[0]]
        for index in range(1, len(times)):
            x = self.states[index].repeat_interleave(NODES)[:, None]
            s, t = times[index].expand(len(x)), times[index - 1].expand(len(x))
            below, _ = solver.step(denoiser, x, s, t, None, noise.repeat(STATES)[:, None])
            reached = self._interpolate(index - 1, below[:, 0])
            self.values.append(reached.view(STATES, NODES) @ weight)

    def _states(self, time: Tensor) -> Tensor:
        """A grid that holds the marginal at a time, eight standard deviations wide on either side."""
        _, m, s = self.data.components()
        alpha, sigma = self.schedule.alpha(time[None]), self.schedule.sigma(time[None])
        reach = (alpha * m.abs().max() + 8 * ((alpha * s.max()) ** 2 + sigma**2).sqrt()).item()
        return torch.linspace(-reach, reach, STATES, dtype=torch.float64)

    def _interpolate(self, index: int, x: Tensor) -> Tensor:
        """f at x, linear between states; beyond them the slope goes on."""
        states, values = self.states[index], self.values[index]
        left = (torch.searchsorted(states, x) - 1).clamp(0, STATES - 2)
        share = (x - states[left]) / (states[left + 1] - states[left])
        return values[left] + share * (values[left + 1] - values[left])

    def sample(self, steps: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Consistency multistep samples at the grid's own times (`inference_times`), (count,)."""
        fed = [(self.grid.times - time).abs().argmin().item() for time in self.grid.inference_times(steps)]
        x0 = torch.zeros(count, dtype=torch.float64)
        for index in fed:
            time = self.grid.times[index][None]
            w = torch.from_numpy(rng.standard_normal(count))
            # pure noise only where the schedule ends in it, or it is the first step, which samplers start from N(0, 1)
            x = w if index == fed[0] else self.schedule.alpha(time) * x0 + self.schedule.sigma(time) * w
            x0 = self._interpolate(int(index), x)
        return x0.numpy()


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """W1 of two samples of one size: the mean distance of their sorted values."""
    return float(np.abs(np.sort(a) - np.sort(b)).mean())
