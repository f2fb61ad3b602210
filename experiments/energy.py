"""A student that is given noise, and learns its target's law instead of the mean.

    f(x, t, c, z), z ~ N(0, I)        S = ½ (|f_a − y| + |f_b − y| − |f_a − f_b|),    y = f⁻(x_m, t_m, c, z_y)

f_a and f_b are draws of two z. The mean of S over y is least where f has y's own law (Gneiting & Raftery 2007), where
that of a squared error is least at the mean of a noisy walk's ends, and loses their spread. z is two tokens beside the
caption's, so that the network stays what it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scott.diffusion import ConsistencyFunction, Denoiser
from scott.errors import UserError
from scott.objective import consistency_target, loss_weight
from scott.samplers import StudentSampler
from scott.teachers import Cond
from scott.training.draws import Draws
from scott.training.step import Distillation

TOKENS = 2


def energy_score(first: Tensor, second: Tensor, target: Tensor) -> Tensor:
    """S (B,), over sqrt(D), of draws and target (B, D)."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().mean(1).add(1e-8).sqrt()

    return (distance(first, target) + distance(second, target) - distance(first, second)) / 2


def with_noise(cond: Cond, z: Tensor) -> Cond:
    """The condition with z, the first elements of which (B, D) are its tokens."""
    text = cond["text"]
    tokens = z[:, : TOKENS * text.shape[2]].view(len(z), TOKENS, -1)
    return cond | {"text": torch.cat([text, tokens.to(text)], 1)}


@dataclass(frozen=True)
class EnergyDistillation(Distillation):
    """z is of the noises that a critic would be shown, which it has not. Raises `UserError` where there is a critic."""

    def __post_init__(self) -> None:
        if self.config.has_critic:
            raise UserError("got an energy score with a critic; --set critic=none")

    def consistency(
        self, f: ConsistencyFunction, f_target: ConsistencyFunction, x_n: Tensor, x_m: Tensor, cond: Cond, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Both draws of f(x_n, t_n), (2 B, C, H, W), and the mean of √w S."""
        t_n, (one, other) = draws.t_n, (noise.flatten(1) for noise in draws.critic_noise)
        first, second = one.chunk(2, 1)
        target = consistency_target(f_target, x_m, self.grid.target(t_n), with_noise(cond, other))
        twice = {name: torch.cat([value, value]) for name, value in cond.items()}
        f_n = f(torch.cat([x_n, x_n]), torch.cat([t_n, t_n]), with_noise(twice, torch.cat([first, second])))
        score = energy_score(*(value.flatten(1) for value in (*f_n.chunk(2), target)))
        w = loss_weight(self.config.weighting, f.schedule, t_n, self.grid.trained_times)
        return f_n, (w.sqrt().to(score) * score).mean()


class EnergySampler(StudentSampler):
    """A student that is given noise of its own in each step."""

    def draw(self, student: Denoiser, noise: Tensor, cond: Cond, generator: torch.Generator) -> Tensor:
        def noisy(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            z = torch.randn(x.shape, generator=generator).flatten(1)
            return student(x, t, with_noise(cond, z.to(x)))

        return super().draw(noisy, noise, cond, generator)
