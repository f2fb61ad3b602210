"""Samplers as `evaluation` wants them: (prompts, seed) → images, with what they cost."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scott.choices import unknown
from scott.diffusion import ConsistencyFunction, Denoiser, FlowSchedule, JumpGrid, normal_like
from scott.errors import UserError
from scott.measured import TeacherSolver
from scott.sampling import check_finite, sample
from scott.solvers import make
from scott.teachers import Cond, LatentBackbone

TEACHER_SOLVERS: dict[TeacherSolver, tuple[str, dict[str, Any]]] = {
    "ddim": ("ddim", {"eta": 0.0}),
    "dpmpp": ("dpmpp-sde", {"eta": 0.0, "order": 2}),
    "er-sde": ("er-sde", {"phi": "5", "order": 2}),
}


@dataclass(frozen=True)
class _Sampler(ABC):
    """Pictures as a backbone decodes the latents that are drawn."""

    backbone: LatentBackbone

    def __call__(self, prompts: Sequence[str], seed: int) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1]. Raises `NotFinite`."""
        return check_finite(self.backbone.decode(self.latents(prompts, seed)))

    @abstractmethod
    def latents(self, prompts: Sequence[str], seed: int) -> Tensor:
        """Normalised latents (B, C, H, W) of B prompts."""


@dataclass(frozen=True)
class TeacherSampler(_Sampler):
    """The guided teacher under a solver of many steps: by default DDIM (η = 0), the paper's baseline."""

    steps: int
    guidance: float
    truncate: bool = False
    """Cut prompts that are too long for the text encoder, as preparing captions does."""
    solver: TeacherSolver = "ddim"

    @property
    def network_calls(self) -> int:
        """One a step, or where there is guidance as many as the family's takes."""
        return self.steps if self.guidance == 1 else self.backbone.teacher_calls * self.steps

    @torch.no_grad()
    def latents(self, prompts: Sequence[str], seed: int) -> Tensor:
        if self.solver not in TEACHER_SOLVERS:
            raise unknown("teacher solver", self.solver, TEACHER_SOLVERS)
        backbone = self.backbone
        guided = backbone.guided_teacher(backbone.unconditional(), self.guidance)
        generator = torch.Generator().manual_seed(seed)
        noise = _noise(backbone, len(prompts), generator)
        cond = backbone.encode_prompts(prompts, truncate=self.truncate)
        times = trailing_times(backbone, self.steps, len(prompts))
        name, options = TEACHER_SOLVERS[self.solver]
        return make(name, backbone.schedule, **options).walk(guided, noise, times, cond, generator)


@dataclass(frozen=True)
class StudentSampler(_Sampler):
    """A student under few-step sampling, by default at its training grid's times and with all of a step's noise new."""

    network: Denoiser
    """The backbone's model that draws: `target` of one in training, `teacher` where a saved student was loaded."""
    grid: JumpGrid
    steps: int
    guidance: float
    truncate: bool = False
    """As a teacher's."""
    stops: tuple[float, ...] = ()
    """Times to draw at, descending, one a step, where they are not the grid's for as many steps."""
    gamma: float = 1.0
    """γ of `sample`: how much of a later step's noise is new."""
    size: tuple[int, int] | None = None
    """Height and width in pixels, where they are not the backbone's."""
    image: Tensor | None = None
    """Pixels (1, 3, H, W) in [0, 1] that drawing starts from, noised to the first time."""
    strength: float = 1.0
    """Of an image: fraction of the steps that is made, the last ones; stock pipelines round a part of one down, those
    of flows up."""

    def __post_init__(self) -> None:
        if self.stops and len(self.stops) != self.steps:
            raise UserError(f"got {len(self.stops)} stops for {self.steps} steps; expected one for each")

    @property
    def times(self) -> list[float]:
        """Of the steps that are made."""
        made = self.steps * self.strength
        count = math.ceil(made) if isinstance(self.backbone.schedule, FlowSchedule) else int(made)
        return [*(self.stops or self.grid.inference_times(self.steps))][self.steps - count :]

    @property
    def network_calls(self) -> int:
        return len(self.times)

    @torch.no_grad()
    def latents(self, prompts: Sequence[str], seed: int) -> Tensor:
        """For one prompt, the same draws in the same order as a stock pipeline with a CPU generator of this seed."""
        backbone, times = self.backbone, self.times
        generator = torch.Generator().manual_seed(seed)
        image = None if self.image is None else self._encoded(self.image, generator)
        noise = _noise(backbone, len(prompts), generator, self.size)
        if image is not None:
            first = torch.full((len(noise),), times[0], dtype=backbone.schedule.time_dtype)
            noise = backbone.schedule.add_noise(image.expand_as(noise), noise, first)
        omega = torch.full((len(prompts),), self.guidance, device=backbone.device)
        cond = backbone.encode_prompts(prompts, truncate=self.truncate) | {"guidance": omega}
        if self.size:
            cond |= {name: value.repeat(len(prompts), 1) for name, value in backbone.size_cond(*self.size).items()}
        student = ConsistencyFunction(self.network, backbone.schedule)
        return self.draw(student, noise, cond, generator)

    def draw(self, student: Denoiser, noise: Tensor, cond: Cond, generator: torch.Generator) -> Tensor:
        """From N(0, I) at the first time, (B, C, H, W), to latents."""
        schedule, times = self.backbone.schedule, self.times
        return sample(student, schedule, noise, cond, None, generator, times, self.backbone.noise_like, self.gamma)

    def _encoded(self, image: Tensor, generator: torch.Generator) -> Tensor:
        mean, std = self.backbone.encode_images(image)
        if std.any():  # of Sana's VAE it is 0, and its pipelines draw nothing there
            mean = mean + std * normal_like(mean, generator)
        return mean.to(self.backbone.device)


def trailing_times(backbone: LatentBackbone, steps: int, batch: int) -> list[Tensor]:
    """`steps` + 1 times (batch,) from t_max to clean data, evenly spaced ("trailing" in diffusers' words), whole ones
    rounded as diffusers' schedulers do.

    Where the pipeline's scheduler has a `shift_terminal`, 1 − σ is stretched to put the last σ before clean data there.
    Raises `UserError` for no step.
    """
    if steps < 1:
        raise UserError(f"got {steps} steps of a teacher; expected 1 or more")
    schedule = backbone.schedule
    span = schedule.t_max - schedule.t_data
    if schedule.time_dtype.is_floating_point:
        above = span * torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    else:
        above = torch.tensor([*np.arange(span, 0, -span / steps).round()[:steps], 0])
    times = schedule.t_data + above
    terminal = backbone.pipeline.scheduler.config.get("shift_terminal")
    if terminal and steps > 1 and isinstance(schedule, FlowSchedule):
        alpha = schedule.alpha(times[:-1])
        times = torch.cat([schedule.time_of(1 - alpha * (1 - terminal) / alpha[-1]), times[-1:]])
    return [time.to(schedule.time_dtype).repeat(batch) for time in times]


def _noise(
    backbone: LatentBackbone, batch: int, generator: torch.Generator, size: tuple[int, int] | None = None
) -> Tensor:
    channels, *sides = backbone.latent_shape
    if size:
        sides = [pixels * sides[0] // backbone.resolution for pixels in size]
    return normal_like(torch.empty(batch, channels, *sides, device=backbone.device), generator)
