"""The fixed point on Gaussian data, where it is linear: the shrinkage of an L2 student in closed form.

With z_0 ~ N(0, s²) and v_t = α_t² s² + σ_t², the exact teacher's x̂0 = α s² z / v and ε̂ = σ z / v are linear in z. So
f(z_t, t) = a_t z_t, and a sub-step from s down to t that keeps the part q of the noise has

    a_s = a_t (α_t α_s s² + σ_t q σ_s) / v_s,    a = 1 on clean data,

since the fresh noise has mean zero. One step from N(0, 1) draws a spread of a_T.
"""

import torch
from torch import Tensor

from scott.solvers import Solver, Span


def shrinkage(solver: Solver, times: Tensor, spread: float) -> float:
    """a_T / s: the standard deviation of one-step samples over the data's `spread`; `times` ascend from clean data."""
    span = Span.between(solver.schedule, times[1:], times[:-1])
    data, noise = span.alpha_t * span.alpha_s * spread**2, span.sigma_t * solver.kept_noise(span) * span.sigma_s
    factors = (data + noise) / ((span.alpha_s * spread) ** 2 + span.sigma_s**2)
    return (torch.prod(factors) / spread).item()
