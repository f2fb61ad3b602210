"""Distribution matching in the critic's place: what is drawn follows the difference of two scores.

    ∂L/∂x = (μ(x_t, t) − x̂0(x_t, t)) / mean |x − x̂0(x_t, t)|,      L_μ = (α_t/σ_t)² (μ(x_t, t) − x)²

x is a sample of the student's, as sampling in 2 and 4 steps makes it, x_t that noised to a random time, and x̂0 the
guided teacher; μ is the critic's network, a denoiser that is trained to denoise such samples. (Yin et al. 2024, arXiv
2311.18828 and 2405.14867.) Data have no part in it: the samples are moved to the teacher's law.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scott.diffusion import expand_like, to_x0
from scott.errors import UserError
from scott.training.step import Distillation, Engine, Shown


@dataclass(frozen=True)
class MatchingDistillation(Distillation):
    """μ is `--critic full` or lora, which begins as the teacher. Raises `UserError` for another one, or for fakes that
    are not drawn."""

    def __post_init__(self) -> None:
        if not self.config.draws_fakes or self.config.critic not in ("full", "lora"):
            raise UserError("got distribution matching of no drawn samples, or by heads; --set critic=full")

    def play(self, engine: Engine, shown: Shown) -> tuple[Tensor, dict[str, Tensor]]:
        """Send L_μ back to what is trained of μ; scaled λ ∂L/∂x, and terms."""
        backbone, schedule = self.backbone, self.backbone.schedule
        engine.mark("student")
        weight = self.config.adversarial_weight if engine.adversarial_weight is None else engine.adversarial_weight
        x, t, noise = shown.fakes.detach(), shown.draws.critic_t, shown.draws.critic_noise[0]
        x_t, alpha, sigma = schedule.add_noise(x, noise, t), schedule.alpha(t), schedule.sigma(t)
        cond = {name: value for name, value in shown.cond.items() if name != "guidance"}
        with torch.no_grad():
            teacher = backbone.guided_teacher(self.uncond, shown.draws.omega, self.config.low_memory)
            truth = teacher(x_t, t, cond)
        mu = to_x0(backbone.prediction, backbone.output("critic", x_t, t, cond), x_t, alpha, sigma)
        loss = (expand_like(alpha / sigma, x) * (mu - x)).square().mean()
        engine.scale(loss).backward(inputs=[*backbone.critic_parameters().values()])
        size = (x - truth).abs().flatten(1).mean(1).view(-1, 1, 1, 1).clamp(min=1e-4)
        towards_teacher = (mu.detach() - truth) / size
        engine.mark("critic")
        terms = {"denoiser": loss.detach(), "apart": towards_teacher.abs().mean()}
        return engine.scale(weight * towards_teacher / x.numel()), terms
