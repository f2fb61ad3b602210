"""Few-step sampling: predict clean data, add fresh noise to the next time, repeat; no noise at the end."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from scott.diffusion import Denoiser, JumpGrid, NoiseSchedule, normal_like, time_like
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
) -> Tensor:
    """Consistency multistep sampling (Song et al. 2023, algorithm 1), as diffusers' LCMScheduler does it.

        x0 = f(noise, t_1);    for k = 2 .. steps:  w ~ N(0, I),  x_k = α x0 + σ w at t_k,  x0 = f(x_k, t_k)

    Args:
        student: f with the boundary built in.
        noise: N(0, I), (B, ...): the state at the first time.
        steps: the number of steps; their times are those of the default `JumpGrid`.
        generator: draws the noise between steps.
        times: descending times to use instead, such as another grid's `inference_times(steps)`.
        draw: N(0, I) like a tensor, from a generator.

    Returns:
        x0 like noise.

    Raises:
        UserError: neither steps nor times, two that disagree, or times that do not descend.
    """
    if times is None:
        if steps is None:
            raise UserError("got neither steps nor times; expected one of them, such as steps=4.")
        times = JumpGrid(schedule).inference_times(steps)
    if len(times) == 0 or (steps is not None and steps != len(times)):
        raise UserError(f"got {steps} steps and {len(times)} times; expected one time for each step.")
    if any(later >= earlier for earlier, later in pairwise(times)):
        raise UserError(f"got times {list(times)}; expected them to descend towards clean data.")

    first, *rest = (torch.full((len(noise),), time, dtype=schedule.time_dtype) for time in times)
    x0 = student(noise, time_like(first, noise), cond)
    for t in rest:
        x_t = schedule.add_noise(x0, draw(x0, generator), t)
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
