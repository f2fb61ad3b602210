"""Exact teachers: denoisers E[x0 | x_t] known in closed form."""

import torch
from torch import Tensor

from scott.diffusion import Denoiser, NoiseSchedule, expand_like


def gaussian(schedule: NoiseSchedule, std: float) -> Denoiser:
    """x0 ~ N(0, std²): x̂0 = α std² x / (α² std² + σ²)."""

    def denoiser(x: Tensor, t: Tensor, cond: None) -> Tensor:
        alpha, sigma = expand_like(schedule.alpha(t), x), expand_like(schedule.sigma(t), x)
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x

    return denoiser


def mixture(schedule: NoiseSchedule, modes: list[float], std: float) -> Denoiser:
    """x0 an equal mixture of N(m, std²): the Gaussian answer of each mode, weighted by its posterior."""

    def denoiser(x: Tensor, t: Tensor, cond: None) -> Tensor:
        means = torch.tensor(modes, dtype=x.dtype)
        alpha, sigma = (
            expand_like(schedule.alpha(t), x)[..., None],
            expand_like(schedule.sigma(t), x)[..., None],
        )
        variance = alpha**2 * std**2 + sigma**2
        residual = x[..., None] - alpha * means
        posterior = torch.softmax(-(residual**2) / (2 * variance), dim=-1)
        return (posterior * (means + alpha * std**2 / variance * residual)).sum(-1)

    return denoiser


def marginal_variance(schedule: NoiseSchedule, std: float, t: Tensor) -> Tensor:
    """α² std² + σ², the variance of x_t when x0 ~ N(0, std²)."""
    return schedule.alpha(t) ** 2 * std**2 + schedule.sigma(t) ** 2
