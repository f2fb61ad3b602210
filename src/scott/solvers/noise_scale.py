"""Noise-scale functions φ of ER-SDE solvers, and the integrals their higher orders need (Cui et al. 2023).

φ sets how much noise a step redraws: r = φ(λ_t) / φ(λ_s) of the state is kept. Everything here goes through

    g(λ) = φ(λ) / λ,

since q = g(λ_t) / g(λ_s) is the kept part of σ_t. q ≤ 1, a variance that is not negative, asks that g never
falls as λ grows; φ then rises as well. g ≡ 1 is the ODE.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from scott.choices import unknown
from scott.errors import UserError

NoiseScale = Callable[[Tensor], Tensor]
"""φ: λ > 0 (any shape, float64) → φ(λ) > 0."""

NOISE_SCALES: dict[str, NoiseScale] = {
    "ode": lambda lam: lam,
    "1": lambda lam: lam * (torch.exp(-1 / lam) + 10),
    "2": lambda lam: lam**1.5,
    "3": lambda lam: lam**2.5,
    "4": lambda lam: lam**0.9 * torch.log1p(100 * lam**1.5) / np.log(10),
    "5": lambda lam: lam * (torch.exp(lam**0.3) + 10),
}

# These stand for λ = 0 and ∞: far enough that g is at its limit, near enough that float64 holds λ and 1/λ.
_LAM_MIN, _LAM_MAX = 1e-200, 1e200
_NODES, _WEIGHTS = map(torch.from_numpy, np.polynomial.legendre.leggauss(64))


def noise_scale(phi: str | NoiseScale) -> NoiseScale:
    """φ by its name in the paper's table, or a callable as it is. Raises UserError for another name."""
    if callable(phi):
        return phi
    if phi not in NOISE_SCALES:
        raise unknown("phi", phi, NOISE_SCALES)
    return NOISE_SCALES[phi]


def growth(phi: NoiseScale, lam: Tensor) -> Tensor:
    """g(λ) = φ(λ) / λ, with its limits at λ = 0 and λ = ∞."""
    lam = lam.clamp(_LAM_MIN, _LAM_MAX)
    return phi(lam) / lam


def bounded(phi: NoiseScale, lam_noise: float) -> NoiseScale:
    """φ(λ) = λ g(min(λ, λ_noise)): nothing is redrawn above λ_noise."""
    return lambda lam: lam * growth(phi, lam.clamp(max=lam_noise))


def check_noise_scale(phi: NoiseScale, lam: Tensor) -> None:
    """Hold φ to its two conditions on λ (K,), ascending and finite: φ > 0, and φ(λ)/λ never falls.

    Raises:
        UserError: either does not hold; names the first λ where.
    """
    g = growth(phi, lam)
    if bool((bad := ~(g > 0)).any()):
        raise UserError(f"got a phi with phi({lam[bad][0]:.4g}) = {float((g * lam)[bad][0])}; expected phi > 0.")
    if bool((falls := g[1:] < g[:-1] * (1 - 1e-9)).any()):
        at = lam[:-1][falls][0]
        raise UserError(
            f"got a phi for which phi(lam) / lam falls from lam = {at:.4g} on; expected it never to fall, or "
            "a step's variance alpha_t^2 (lam_t^2 - r^2 lam_s^2) would be negative. "
            "Use phi(x) = x * g(x) with g nondecreasing on the schedule's range, such as x**1.5."
        )


def integral_1(phi: NoiseScale, lam_t: Tensor, lam_s: Tensor) -> Tensor:
    """I1 = ∫_{λ_t}^{λ_s} dλ / φ(λ) = ∫ du / g(e^u), u = log λ: Gauss–Legendre, 0 < λ_t ≤ λ_s < ∞, (B,)."""
    lam, du = _quadrature(lam_t, lam_s)
    return (du / growth(phi, lam)).sum(0)


def integral_2(phi: NoiseScale, lam_t: Tensor, lam_s: Tensor) -> Tensor:
    """I2 = ∫_{λ_t}^{λ_s} (λ − λ_s) / φ(λ) dλ, as `integral_1`."""
    lam, du = _quadrature(lam_t, lam_s)
    return (du * (lam - lam_s) / growth(phi, lam)).sum(0)


def _quadrature(lam_t: Tensor, lam_s: Tensor) -> tuple[Tensor, Tensor]:
    """λ at the nodes and the weights du, each (nodes, B), between log λ_t and log λ_s."""
    low, half = lam_t.log(), (lam_s / lam_t).log() / 2
    shape = (-1,) + (1,) * lam_t.ndim
    return (low + half * (1 + _NODES.reshape(shape))).exp(), half * _WEIGHTS.reshape(shape)
