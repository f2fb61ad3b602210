"""Gaussian mixtures: data whose score, distribution function and consistency function are known exactly.

p_0 = Σ_k p_k N(m_k, diag s_k²),  brought to zero mean and unit variance in every direction of the axes
p_t = Σ_k p_k N(α_t m_k, α_t² s_k² + σ_t²)
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from scott.diffusion import Denoiser, NoiseSchedule

BISECTIONS = 60


@dataclass(frozen=True)
class Mixture:
    """Weights (K,), means and spreads (K, D), float64; `standardised` has them in one scale."""

    weights: Tensor
    means: Tensor
    spreads: Tensor

    @classmethod
    def standardised(cls, weights: Tensor, means: Tensor, spreads: Tensor) -> "Mixture":
        p = weights / weights.sum()
        means = means - (p[:, None] * means).sum(0)
        scale = (p[:, None] * (means**2 + spreads**2)).sum(0).sqrt()
        return cls(p, means / scale, spreads / scale)

    def denoiser(self, schedule: NoiseSchedule) -> Denoiser:
        """x̂0(x_t, t) = E[x0 | x_t], exact: posterior-weighted means of the components. x (B, D), t (B,) or (1,)."""

        def x0(x: Tensor, t: Tensor, cond: None) -> Tensor:
            levels, which = t.cpu().unique(return_inverse=True)  # few: products over all of them are cheapest
            alpha, sigma = schedule.alpha(levels)[:, None, None], schedule.sigma(levels)[:, None, None]
            variance = alpha**2 * self.spreads**2 + sigma**2  # (L, K, D)
            gain = alpha * self.spreads**2 / variance
            shift, constant = alpha * self.means, self.weights.log() - 0.5 * variance.log().sum(2)
            squares, linear, at_zero, gains = (
                value.flatten(0, 1).to(x.dtype)
                for value in (-0.5 / variance, shift / variance, self.means - gain * shift, gain)
            )
            constant = (constant - 0.5 * (shift**2 / variance).sum(2)).to(x.dtype)
            log_p = torch.addmm(constant.flatten(), x**2, squares.T).addmm(x, linear.T)  # (B, L K)
            other = torch.arange(len(levels)) != which.expand(len(x))[:, None]  # (B, L)
            p = log_p.masked_fill(other.repeat_interleave(len(self.weights), 1), -torch.inf).softmax(1)
            return p @ at_zero + (p @ gains) * x

        return x0

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, D), float64."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[which] + self.spreads[which] * noise

    # --- in one dimension -------------------------------------------------------------------------------------

    def log_cdf(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
        """log F_t(x) and log (1 − F_t(x)) of p_t by its levels, for D = 1 and any shape of x."""
        spread = (alpha**2 * self.spreads[:, 0] ** 2 + sigma**2).sqrt()
        z = (x[..., None] - alpha * self.means[:, 0]) / spread
        weighted = (self.weights.log() + torch.special.log_ndtr(sign * z) for sign in (1, -1))
        below, above = (log.logsumexp(-1) for log in weighted)
        return below, above

    def consistency_function(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """f(x, t) = F_0⁻¹(F_t(x)): in one dimension the flow's ODE moves no probability past a point.

        By bisection, on the logarithm of the smaller tail, so that it holds far out.
        """
        below, above = self.log_cdf(x, alpha, sigma)
        reach = (self.means.abs() + 40 * self.spreads).max().item()
        low, high = torch.full_like(x, -reach), torch.full_like(x, reach)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            there_below, there_above = self.log_cdf(middle)
            left = torch.where(below < above, there_below < below, there_above > above)
            low, high = torch.where(left, middle, low), torch.where(left, high, middle)
        return (low + high) / 2

    @cached_property
    def quantiles(self) -> Tensor:
        """F_0⁻¹((i + ½) / N), N = 100,000, ascending: what an exact sampler would draw, without its chance."""
        uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
        return self.consistency_function(torch.special.ndtri(uniform), 0.0, 1.0)

    def wasserstein(self, samples: Tensor) -> float:
        """W1 of samples (N,) to p_0, N a divisor of 100,000."""
        quantiles = self.quantiles.view(len(samples), -1)
        return (samples.sort().values[:, None] - quantiles).abs().mean().item()


def one_dimension(weights: tuple[float, ...], means: tuple[float, ...], spreads: tuple[float, ...]) -> Mixture:
    p, m, s = (torch.tensor(values, dtype=torch.float64) for values in (weights, means, spreads))
    return Mixture.standardised(p, m[:, None], s[:, None])


def clusters(dimension: int, components: int, spread: float, seed: int = 0) -> Mixture:
    """Components at random in `dimension` directions, each of its own weight, and of spreads about `spread`."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(components, dimension, generator=generator, dtype=torch.float64)
    weights = 0.5 + torch.rand(components, generator=generator, dtype=torch.float64)
    ratios = (0.5 * torch.randn(components, dimension, generator=generator, dtype=torch.float64)).exp()
    return Mixture.standardised(weights, means, spread * ratios)


GAUSSIAN = one_dimension((1.0,), (0.0,), (1.0,))
THREE_MODES = one_dimension((0.3, 0.3, 0.4), (-1.5, 0.0, 1.5), (0.3, 0.3, 0.3))
HEAVY_TAILS = one_dimension((0.05, 0.3, 0.3, 0.3, 0.05), (-4.0, -1.0, 0.0, 1.0, 5.0), (0.4, 0.2, 0.2, 0.2, 0.6))
