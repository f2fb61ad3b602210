"""One training step of SCott (Algorithm 1 of the paper), in plain torch: draws in, gradients and named terms out.

    x_n = α x0 + σ ε at t_n          x̂_m = Φ_SDE(guided teacher, x_n, t_n → t_m, h sub-steps)
    L_CD  = w(t_n) d(f_θ(x_n, t_n), f_θ⁻(x̂_m, t_m))
    L_adv = −w(t_n) D(f_θ(x_n, t_n), t_n)    L_D = max(0, 1 − D(x0)) + max(0, 1 + D(f_θ))

w(t_n) is 1 by default; the paper has a weight on L_CD alone (docs/architecture.md says why L_adv has it here).

The student descends L_CD + λ_adv L_adv and the critic L_D, both from the same forward passes: the features of a fake
are computed once and decoded once. The gradients of the student's two terms meet at its output f_θ, where they are
compared, and go on to its parameters together.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scott.data.batch import Batch
from scott.diffusion import ConsistencyFunction, JumpGrid
from scott.objective import (
    consistency_loss,
    consistency_target,
    hinge_discriminator,
    hinge_generator,
    loss_weight,
)
from scott.solvers import Solver
from scott.teachers import Backbone, Cond
from scott.training.config import DistillConfig


@dataclass(frozen=True)
class Draws:
    """Everything random in a step. Noises are like the latents (B, C, H, W)."""

    t_n: Tensor
    omega: Tensor
    latent: Tensor
    noise: Tensor
    walk: list[Tensor]
    critic_t: Tensor
    critic_noise: tuple[Tensor, Tensor]

    @classmethod
    def make(cls, shape: torch.Size, grid: JumpGrid, config: DistillConfig, generator: torch.Generator) -> "Draws":
        """Draw on the generator's device (the CPU, so that every device sees the same)."""
        normal = partial(torch.randn, shape, generator=generator)
        share = torch.rand(shape[0], generator=generator)
        return cls(
            t_n=grid.sample(shape[0], generator),
            omega=config.guidance_min + (config.guidance_max - config.guidance_min) * share,
            latent=normal(),
            noise=normal(),
            walk=[normal() for _ in range(grid.substeps)],
            critic_t=grid.sample_any(shape[0], generator),
            critic_noise=(normal(), normal()),
        )

    def to(self, device: torch.device) -> "Draws":
        return self._map(lambda value: value.to(device))

    def __getitem__(self, rows: slice) -> "Draws":
        """The draws of some samples of the batch."""
        return self._map(lambda value: value[rows])

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Draws":
        def apply(value: Any) -> Any:
            return function(value) if isinstance(value, Tensor) else type(value)(map(function, value))

        return Draws(**{field.name: apply(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class Gradients:
    """Gradients in the order of the parameters, and the step's terms as 0-d tensors."""

    student: tuple[Tensor, ...]
    critic: tuple[Tensor, ...]
    terms: dict[str, Tensor]


def distillation_step(
    backbone: Backbone,
    solver: Solver,
    grid: JumpGrid,
    batch: Batch,
    uncond: Cond,
    draws: Draws,
    config: DistillConfig,
    loss_scale: float = 1.0,
    lap: Callable[[str], None] = lambda part: None,
) -> Gradients:
    """The gradients of one step, times `loss_scale`; changes nothing.

    `uncond` is the condition guidance pushes away from, with batch 1. `lap` is told as each part ends: teacher, student
    or critic. Among the terms is `adversarial_ratio`, ‖λ_adv ∂L_adv/∂f_θ‖ / ‖∂L_CD/∂f_θ‖.
    """
    schedule, t_n = backbone.schedule, draws.t_n
    cond = batch.cond | {"guidance": draws.omega}
    student, target = (ConsistencyFunction(f, schedule) for f in (backbone.student, backbone.target))
    x0 = batch.mean + batch.std * draws.latent
    x_n = schedule.add_noise(x0, draws.noise, t_n)

    with torch.no_grad():
        uncond = uncond | {name: batch.cond[name] for name in backbone.size_names}
        teacher = backbone.guided_teacher(uncond, draws.omega, config.low_memory)
        times = grid.substep_times(t_n)
        x_m = solver.walk(teacher, x_n, times, batch.cond, noises=draws.walk)
    lap("teacher")
    f_m = consistency_target(target, x_m, times[-1], cond)
    f_n = student(x_n, t_n, cond)
    weight = loss_weight(config.weighting, schedule, t_n, grid.trained_times)
    consistency = consistency_loss(f_n, f_m, config.loss, weight=weight)
    terms = {"consistency": consistency.loss.detach()}
    student_parameters = tuple(backbone.student_parameters().values())
    if not config.has_critic:
        gradients = torch.autograd.grad(loss_scale * consistency.loss, student_parameters)
        lap("student")
        return Gradients(gradients, (), terms)
    towards_target = torch.autograd.grad(loss_scale * consistency.loss, f_n, retain_graph=True)[0]
    lap("student")

    fake_logits, real_logits = _critic_logits(backbone, x0, f_n, cond, draws, config)
    critic, adversarial = hinge_discriminator(real_logits, fake_logits), hinge_generator(fake_logits, weight)
    # one decoder pass serves both updates: each backward walks only towards what it is for
    adversarial_loss = loss_scale * config.adversarial_weight * adversarial.loss
    towards_data = torch.autograd.grad(adversarial_loss, f_n, retain_graph=True)[0]
    critic_gradients = torch.autograd.grad(loss_scale * critic.loss, tuple(backbone.critic_parameters().values()))
    lap("critic")
    gradients = torch.autograd.grad(f_n, student_parameters, towards_target + towards_data)
    lap("student")
    terms |= {
        "adversarial": adversarial.loss.detach(),
        "critic": critic.loss.detach(),
        "critic_real_accuracy": critic.real_accuracy,
        "critic_fake_accuracy": critic.fake_accuracy,
        "adversarial_ratio": towards_data.norm() / towards_target.norm().clamp(min=torch.finfo(torch.float32).tiny),
    }
    return Gradients(gradients, critic_gradients, terms)


def _critic_logits(
    backbone: Backbone, x0: Tensor, f_n: Tensor, cond: Cond, draws: Draws, config: DistillConfig
) -> tuple[Tensor, Tensor]:
    """D's logits of the student's output and of the data (what it is told of time is `critic_input`)."""
    schedule = backbone.schedule
    fake, real, t_fake, t_real = f_n, x0, draws.t_n, draws.t_n
    if config.critic_input == "paper":
        t_real = torch.full_like(t_fake, schedule.t_data)
    elif config.critic_input == "renoised":
        t_fake = t_real = draws.critic_t
        fake = schedule.add_noise(fake, draws.critic_noise[0], t_fake)
        real = schedule.add_noise(real, draws.critic_noise[1], t_real)
    fake_logits = backbone.critic(fake, t_fake, cond)
    return fake_logits, backbone.critic(real, t_real, cond)
