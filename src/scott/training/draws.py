"""Everything random in a training step, drawn from one generator."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from scott.diffusion import JumpGrid
from scott.training.config import DistillConfig

SAMPLING_STEPS = (2, 4)
"""Numbers of steps that samples are drawn in for the critic."""


@dataclass(frozen=True)
class Draws:
    """Everything random in a step. Noises are like the latents (B, C, H, W); those of an optional part are none without
    it, but for `critic_noise` and a deterministic walk's, which are drawn unread.

    `drawn` (B,) says for which rows a sample is drawn for the critic, `drawn_t` (B,) at which time it ends, and
    `drawn_noise` what it starts from and what is added to its first step's output.
    """

    t_n: Tensor
    omega: Tensor
    latent: Tensor
    noise: Tensor
    walk: list[Tensor]
    critic_t: Tensor
    critic_noise: tuple[Tensor, Tensor]
    drawn: Tensor
    drawn_t: Tensor
    drawn_noise: tuple[Tensor, ...]
    r1_noise: tuple[Tensor, ...]

    @classmethod
    def make(
        cls,
        shape: torch.Size,
        grid: JumpGrid,
        config: DistillConfig,
        generator: torch.Generator,
        of_jump: torch.Generator | None = None,
    ) -> "Draws":
        """Draw on the CPU, so that every device sees the same; with `of_jump` all up to the walk from that one."""
        batch, jump = shape[0], generator if of_jump is None else of_jump
        rows, count = torch.arange(batch + 1), config.drawn_rows(batch)
        stops = torch.tensor(sampling_times(grid, config)).to(grid.times)
        drawn, r1 = 2 * config.draws_fakes, 1 * (config.critic_r1 > 0)

        uniform = torch.rand(batch, generator=jump)

        def normal(source: torch.Generator) -> Tensor:
            return torch.randn(shape, generator=source)

        return cls(
            t_n=grid.sample(batch, jump),
            omega=config.guidance_min + (config.guidance_max - config.guidance_min) * uniform,
            latent=normal(jump),
            noise=normal(jump),
            walk=[normal(jump) for _ in range(grid.substeps)],
            critic_t=grid.sample_any(batch, generator),
            critic_noise=(normal(generator), normal(generator)),
            drawn=(rows * count // batch).diff() > 0,  # as many among n rows as among any other n that divide the batch
            drawn_t=stops[torch.randint(len(stops), (batch,), generator=generator)],
            drawn_noise=tuple(normal(generator) for _ in range(drawn)),
            r1_noise=tuple(normal(generator) for _ in range(r1)),
        )

    def to(self, device: torch.device | str) -> "Draws":
        """The draws with their noises on a device. What is (B,) stays where schedules read its values, on the CPU:
        fetched from a GPU, each would be waited for until all that was launched before it is done."""
        return self.map(lambda value: value.to(device) if value.ndim > 1 else value)

    def __getitem__(self, rows: slice | Tensor) -> "Draws":
        """The draws of some samples of the batch."""
        return self.map(lambda value: value[rows])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Draws":
        """The draws with each tensor replaced."""

        def apply(value: Any) -> Any:
            return function(value) if isinstance(value, Tensor) else type(value)(map(function, value))

        return Draws(**{field.name: apply(getattr(self, field.name)) for field in fields(self)})


def sampling_times(grid: JumpGrid, config: DistillConfig) -> list[float]:
    """Where sampling for the critic ends, each time as often as it does: in 2 and in 4 steps, or as the config says."""
    if config.drawn_timesteps:
        return [int(time) for time in config.drawn_timesteps]
    return [time for steps in SAMPLING_STEPS for time in grid.inference_times(steps)]
