"""One training step of SCott (Algorithm 1 of the paper), in plain torch: draws in, gradients and named terms out.

    x_n = α x0 + σ ε at t_n          x̂_m = Φ_SDE(guided teacher, x_n, t_n → t_m, h sub-steps)
    L_CD  = w(t_n) d(f_θ(x_n, t_n), f_θ⁻(x̂_m, t_m))
    L_adv = −w(t_n) D(f_θ(x_n, t_n), t_n)    L_D = max(0, 1 − D(x0)) + max(0, 1 + D(f_θ))

w(t_n) is 1 by default; the paper has a weight on L_CD alone (docs/architecture.md says why L_adv has it here).

The student descends L_CD + λ_adv L_adv and the critic L_D, by one ordinary backward pass each, from the same forward
passes. The critic sees a leaf with the student's output f_θ: λ_adv ∂L_adv/∂f_θ is taken there and L_D goes back to the
critic. Then both of the student's gradients, which meet at f_θ and are compared there, go back to the student together.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scott.data.batch import Batch
from scott.diffusion import ConsistencyFunction, JumpGrid, NoiseSchedule
from scott.objective import (
    consistency_loss,
    consistency_target,
    hinge_discriminator,
    hinge_generator,
    loss_weight,
)
from scott.solvers import Solver
from scott.teachers import Cond, LatentBackbone
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
        uniform = torch.rand(shape[0], generator=generator)
        return cls(
            t_n=grid.sample(shape[0], generator),
            omega=config.guidance_min + (config.guidance_max - config.guidance_min) * uniform,
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


def distillation_step(
    backbone: LatentBackbone,
    solver: Solver,
    grid: JumpGrid,
    batch: Batch,
    uncond: Cond,
    draws: Draws,
    config: DistillConfig,
    *,
    student: Callable[..., Tensor] | None = None,
    critic: Callable[..., Tensor] | None = None,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    mark: Callable[[str], None] = lambda part: None,
) -> dict[str, Tensor]:
    """Add the gradients of both losses to the parameters' `grad`; the step's terms as 0-d tensors.

    Among the terms is `adversarial_ratio`, ‖λ_adv ∂L_adv/∂f_θ‖ / ‖∂L_CD/∂f_θ‖.

    Args:
        uncond: the condition that guidance pushes away from, with batch 1.
        student, critic: what to call instead of the backbone's own: where several processes train, those that average.
        scale: what a loss is multiplied with, in the gradients and not in the terms.
        mark: called as a part ends: teacher, student or critic.
    """
    schedule, t_n = backbone.schedule, draws.t_n
    cond = batch.cond | {"guidance": draws.omega}
    x0 = batch.mean + batch.std * draws.latent
    x_n = schedule.add_noise(x0, draws.noise, t_n)
    with torch.no_grad():
        uncond = uncond | {name: batch.cond[name] for name in backbone.size_names}
        teacher = backbone.guided_teacher(uncond, draws.omega, config.low_memory)
        times = grid.substep_times(t_n)
        x_m = solver.walk(teacher, x_n, times, batch.cond, noises=draws.walk)
    mark("teacher")
    f_m = consistency_target(ConsistencyFunction(backbone.target, schedule), x_m, times[-1], cond)
    f_n = ConsistencyFunction(student or backbone.student, schedule)(x_n, t_n, cond)
    weight = loss_weight(config.weighting, schedule, t_n, grid.trained_times)
    consistency = consistency_loss(f_n, f_m, config.loss, weight=weight)
    terms = {"consistency": consistency.detach()}
    if not config.has_critic:
        scale(consistency).backward()
        mark("student")
        return terms
    towards_target = torch.autograd.grad(scale(consistency), f_n, retain_graph=True)[0]
    mark("student")

    fake = f_n.detach().requires_grad_()
    fake_logits, real_logits = _critic_logits(critic or backbone.critic, schedule, x0, fake, cond, draws, config)
    adversarial, discriminator = hinge_generator(fake_logits, weight), hinge_discriminator(real_logits, fake_logits)
    towards_data = torch.autograd.grad(scale(config.adversarial_weight * adversarial), fake, retain_graph=True)[0]
    scale(discriminator.loss).backward()
    mark("critic")
    f_n.backward(towards_target + towards_data)
    mark("student")
    return terms | {
        "adversarial": adversarial.detach(),
        "critic": discriminator.loss.detach(),
        "critic_real_accuracy": discriminator.real_accuracy,
        "critic_fake_accuracy": discriminator.fake_accuracy,
        "adversarial_ratio": towards_data.norm() / towards_target.norm().clamp(min=torch.finfo(torch.float32).tiny),
    }


def _critic_logits(
    critic: Callable[..., Tensor],
    schedule: NoiseSchedule,
    x0: Tensor,
    fake: Tensor,
    cond: Cond,
    draws: Draws,
    config: DistillConfig,
) -> tuple[Tensor, Tensor]:
    """D's logits of the student's output and of the data (what it is told of time is `critic_input`)."""
    real, t_fake, t_real = x0, draws.t_n, draws.t_n
    if config.critic_input == "paper":
        t_real = torch.full_like(t_fake, schedule.t_data)
    elif config.critic_input == "renoised":
        t_fake = t_real = draws.critic_t
        fake = schedule.add_noise(fake, draws.critic_noise[0], t_fake)
        real = schedule.add_noise(real, draws.critic_noise[1], t_real)
    return critic(fake, t_fake, cond), critic(real, t_real, cond)
