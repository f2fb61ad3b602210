"""The exact fixed points of consistency distillation in one dimension, by dynamic programming.

With an exact teacher, θ = θ⁻ at the optimum and no critic, what the student of a solver converges to is known: with

    (U_i g)(x) = E_w[ (U_{i−h} g)( Φ(x, t_i → t_{i−h}; w) ) ],   U_0 g = g,    w ~ N(0, 1) for each of the h sub-steps,

* squared L2: f_i = U_i g with g(y) = y. The target's mean is all that is learnt, so the weight w(t_n) changes nothing.
* an energy score, for a student that is given noise of its own: a strictly proper score is least for the target's law
  itself, so f_i(x, ·) has the distribution function c ↦ U_i 1{y ≤ c}: the law of the teacher's own walk from x down
  to clean data. Nothing of its spread is lost; of Var y = Var E[y | x] + E Var[y | x], L2 keeps the first part alone.

For solvers of first order the h sub-steps of a jump are h backups of one, whatever h is. One with a memory forgets at
the end of a jump, where the next network's target begins: h steps are one backup, over the product of their noises.
Each mean is a Gauss–Hermite quadrature over the solver's own `step`; U_i g is held on a grid of states. There is no
network and no training error: what is wrong with the samples is the method's own doing.
"""

import math

import numpy as np
import torch
from experiments.mixture.data import Mixture
from torch import Tensor

from scott.diffusion import JumpGrid
from scott.solvers import Solver

NODES = {1: 20, 2: 12, 3: 8}
"""Of the quadrature over one sub-step's noise, by how many sub-steps are integrated at once."""
STATES = {0: 9601, 1: 1201, 2: 1201, 3: 801}
"""By how many noises are integrated at once; 801 for laws."""


class FixedPoint:
    """U g on every grid time, for one data distribution, solver and grid.

    Args:
        thresholds: None for squared L2 (g(y) = y); or the c of g(y) = 1{y ≤ c}, ascending, for the energy score.
        anchor: how many grid times above clean data are given the exact consistency function instead (L2 alone).
    """

    def __init__(
        self, data: Mixture, solver: Solver, grid: JumpGrid, thresholds: Tensor | None = None, anchor: int = 0
    ) -> None:
        self.data, self.solver, self.grid, self.thresholds = data, solver, grid, thresholds
        self.schedule, self.denoiser = solver.schedule, data.denoiser(solver.schedule)
        self.depth, self.anchor = grid.substeps if solver.memory else 1, anchor
        count = STATES[self.depth if solver.stochastic else 0] if thresholds is None else 801
        self.states = [self._states(index, count) for index in range(len(grid.times))]
        self.values: list[Tensor] = []
        for index in range(len(grid.times)):
            self.values.append(self._boundary(index) if index <= anchor else self._backup(index))

    def _states(self, index: int, count: int) -> Tensor:
        """A grid that holds the marginal at a time, eight standard deviations wide on either side."""
        alpha, sigma = self.levels(index)
        spread = math.hypot(alpha * self.data.spreads.max().item(), sigma)
        reach = alpha * self.data.means.abs().max().item() + 8 * spread
        return torch.linspace(-reach, reach, count, dtype=torch.float64)

    def levels(self, index: int) -> tuple[float, float]:
        """α and σ at a grid time."""
        time = self.grid.times[index][None]
        return self.schedule.alpha(time).item(), self.schedule.sigma(time).item()

    def exact(self, index: int) -> Tensor:
        """The consistency function of the flow's ODE, at the states of a grid time."""
        return self.data.consistency_function(self.states[index], *self.levels(index)) if index else self.states[0]

    def _boundary(self, index: int) -> Tensor:
        """g of the exact consistency function, (STATES, J); on clean data that is x itself."""
        exact = self.exact(index)
        return exact[:, None] if self.thresholds is None else (exact[:, None] <= self.thresholds).double()

    def _backup(self, index: int) -> Tensor:
        """(STATES, J): the mean over the noises of up to `depth` sub-steps, none of which goes below the anchor."""
        depth = min(index - self.anchor, self.depth)
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES[depth] if self.solver.stochastic else 1)
        noise, weight = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
        x, history = self.states[index][:, None], None
        for step in range(depth):
            s, t = (self.grid.times[index - step - k][None] for k in (0, 1))  # one time broadcasts over all rows
            x = x.repeat_interleave(len(noise), 0)
            if history:
                history = history._replace(x0=tuple(x0.repeat_interleave(len(noise), 0) for x0 in history.x0))
            w = noise.repeat(len(x) // len(noise))[:, None]
            x, history = self.solver.step(self.denoiser, x, s, t, None, w, history)
        mean = self._interpolate(index - depth, x[:, 0])
        for _ in range(depth):
            mean = torch.einsum("snj,n->sj", mean.view(-1, len(noise), mean.shape[-1]), weight)
        return mean

    def _interpolate(self, index: int, x: Tensor) -> Tensor:
        """U g at x (N,), (N, J): linear between states; beyond them the slope goes on."""
        states, values = self.states[index], self.values[index]
        left = (torch.searchsorted(states, x) - 1).clamp(0, len(states) - 2)
        fraction = ((x - states[left]) / (states[left + 1] - states[left]))[:, None]
        return torch.lerp(values[left], values[left + 1], fraction)

    def at(self, index: int, x: Tensor, generator: torch.Generator) -> Tensor:
        """What the student makes of x (N,) at a grid time: f(x), or a draw from the law of f(x, ·)."""
        values = self._interpolate(index, x)
        if self.thresholds is None:
            return values[:, 0]
        uniform = torch.rand(len(x), 1, generator=generator, dtype=torch.float64)
        right = torch.searchsorted(values.contiguous(), uniform).clamp(1, len(self.thresholds) - 1)
        low, high = values.gather(1, right - 1), values.gather(1, right)
        fraction = ((uniform - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        return torch.lerp(self.thresholds[right - 1], self.thresholds[right], fraction)[:, 0]

    def sample(self, steps: int, count: int, generator: torch.Generator, gamma: float = 1.0) -> Tensor:
        """γ-samples (`scott.sampling.sample`) at the grid's own times (`inference_times`), (count,)."""
        fed = [(self.grid.times - time).abs().argmin().item() for time in self.grid.inference_times(steps)]
        x0 = kept = torch.zeros(count, dtype=torch.float64)
        for index in map(int, fed):
            alpha, sigma = self.levels(index)
            w = torch.randn(count, generator=generator, dtype=torch.float64)
            # pure noise only where the schedule ends in it, or it is the first step, which samplers start from N(0, 1)
            x = w if index == fed[0] else alpha * x0 + sigma * ((1 - gamma**2) ** 0.5 * kept + gamma * w)
            x0 = self.at(index, x, generator)
            kept = (x - alpha * x0) / sigma
        return x0
