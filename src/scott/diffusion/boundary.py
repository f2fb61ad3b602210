"""The boundary condition f(x, t_data) = x, built into the student (with the constants of LCM).

    f(x_t, t) = c_skip(τ) x_t + c_out(τ) x̂0(x_t, t)
    c_skip(τ) = σ_d² / ((10τ)² + σ_d²)        c_out(τ) = 10τ / sqrt((10τ)² + σ_d²)        σ_d = 1/2

τ is the time the network is fed, `schedule.timestep(t)`: 0..999 for a discrete schedule, where this is what
diffusers' LCMScheduler computes, and 1000 σ_t for a flow. Clean data has τ = 0, where c_skip = 1 and
c_out = 0 exactly. (FlowMatchLCMScheduler has no boundary; from τ = 8 on, c_skip < 4e-5, so a student made
here samples alike with it.)
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scott.diffusion.prediction import Denoiser
from scott.diffusion.schedule import NoiseSchedule
from scott.diffusion.tensors import expand_like

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


def c_skip(tau: Tensor) -> Tensor:
    """σ_d² / ((10τ)² + σ_d²), float64 of τ's shape; a time before 0 (clean data) counts as 0."""
    return SIGMA_DATA**2 / (_scaled(tau) ** 2 + SIGMA_DATA**2)


def c_out(tau: Tensor) -> Tensor:
    """10τ / sqrt((10τ)² + σ_d²), float64 of τ's shape; a time before 0 (clean data) counts as 0."""
    return _scaled(tau) / (_scaled(tau) ** 2 + SIGMA_DATA**2).sqrt()


def apply_boundary(x_t: Tensor, x0_hat: Tensor, tau: Tensor) -> Tensor:
    """c_skip(τ) x_t + c_out(τ) x̂0, for x_t and x̂0 (B, ...) and τ (B,); x_t itself on clean data."""
    return expand_like(c_skip(tau), x_t) * x_t + expand_like(c_out(tau), x_t) * x0_hat


@dataclass(frozen=True)
class ConsistencyFunction:
    """The student f = c_skip x_t + c_out x̂0(x_t, t, cond): a denoiser with the boundary built in."""

    denoiser: Denoiser
    schedule: NoiseSchedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return apply_boundary(x_t, self.denoiser(x_t, t, cond), self.schedule.timestep(t))


def _scaled(tau: Tensor) -> Tensor:
    return TIMESTEP_SCALING * tau.detach().cpu().to(torch.float64).clamp(min=0)
