"""Few-step sampling: predict clean data, noise it to the next time, repeat; no noise at the end."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from scott.choices import check_gamma
from scott.diffusion import Denoiser, JumpGrid, NoiseSchedule, expand_like, normal_like, time_like
from scott.errors import NotFinite, UserError


@torch.no_grad()
def sample(
    student: Denoiser,
    schedule: NoiseSchedule,
    noise: Tensor,
    cond: Any,
    steps: int | None = None,
    generator: torch.Generator | None = None,
    times: Sequence[float] | None = None,
    draw: Callable[[Tensor, torch.Generator | None], Tensor] = normal_like,
    gamma: float = 1.0,
) -> Tensor:
    """γ-sampling (Kim et al. 2024, Consistency Trajectory Models, arXiv 2310.02279), by a student that jumps to data.

        x0 = f(x_1, t_1), x_1 = noise;    for k = 2 .. steps:
            ε̂ = (x_{k−1} − α x0) / σ at t_{k−1},    w ~ N(0, I)
            x_k = α x0 + σ (√(1 − γ²) ε̂ + γ w) at t_k,    x0 = f(x_k, t_k)

    γ = 1 is consistency multistep sampling (Song et al. 2023, algorithm 1), as diffusers' LCMScheduler does it; γ = 0
    keeps all noise and draws none: steps of DDIM, as its EulerDiscreteScheduler makes them.

    Args:
        student: f with the boundary built in.
        noise: N(0, I), (B, ...): the state at the first time.
        steps: the number of steps; their times are those of the default `JumpGrid`.
        generator: draws the noise between steps.
        times: descending times to use instead, such as another grid's `inference_times(steps)`.
        draw: N(0, I) like a tensor, from a generator.
        gamma: γ, 0 to 1: how much of a later step's noise is new.

    Returns:
        x0 like noise.

    Raises:
        UserError: neither steps nor times, two that disagree, times that do not descend or are not of the schedule,
            or another γ.
    """
    if times is None:
        if steps is None:
            raise UserError("got neither steps nor times; expected one of them, such as steps=4.")
        times = JumpGrid(schedule).inference_times(steps)
    if len(times) == 0 or (steps is not None and steps != len(times)):
        raise UserError(f"got {steps} steps and {len(times)} times; expected one time for each step.")
    if any(later >= earlier for earlier, later in pairwise(times)):
        raise UserError(f"got times {list(times)}; expected them to descend towards clean data.")

    check_gamma(gamma)
    schedule.alpha(torch.tensor([*times], dtype=torch.float64))  # which refuses times that are not its own

    each = [torch.full((len(noise),), time, dtype=schedule.time_dtype) for time in times]
    x_t, x0 = noise, student(noise, time_like(each[0], noise), cond)
    for before, t in pairwise(each):
        new = draw(x0, generator) if gamma > 0 else torch.zeros_like(x0)
        if gamma < 1:
            kept = (x_t - expand_like(schedule.alpha(before), x0) * x0) / expand_like(schedule.sigma(before), x0)
            new = (1 - gamma**2) ** 0.5 * kept + gamma * new
        x_t = schedule.add_noise(x0, new, t)
        x0 = student(x_t, time_like(t, x_t), cond)
    return x0


def check_finite(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) themselves; `NotFinite` where a value is not: as a file it would be black."""
    if not pictures.isfinite().all():
        raise NotFinite(
            "got pictures that are not finite; if the model draws in fp16, give --precision bf16 or fp32, or else its "
            "weights are broken"
        )
    return pictures
