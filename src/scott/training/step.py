"""One training step of SCott (Algorithm 1 of the paper), in plain torch: draws in, gradients and named terms out.

    x_n = α x0 + σ ε at t_n          x̂_m = Φ_SDE(guided teacher, x_n, t_n → t_m, h sub-steps)
    L_CD  = w(t_n) d(f_θ(x_n, t_n), f_θ⁻(x̂_m, t_m))
    L_adv = −w(t) D(fake, t)         L_D = max(0, 1 − D(x0)) + max(0, 1 + D(fake)) + γ R1

A fake is f_θ(x_n, t_n), as in the paper, or what sampling makes of noise ε and w: f_θ(x, t) with x = ε at the first
time, and x = α f_θ(ε, t_max) + σ w at a later one. w(t) is 1 by default; the paper has a weight on L_CD alone.

The student descends L_CD + λ_adv L_adv and the critic L_D. The critic sees a leaf with the fake: λ_adv ∂L_adv/∂fake is
taken there and L_D goes back to the critic. Then it goes back to the student: together with ∂L_CD/∂f_θ, which it meets
at f_θ, or after it where the fakes are of a forward pass of their own.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Self

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
    r1_penalty,
)
from scott.solvers import Solver
from scott.teachers import Cond, LatentBackbone
from scott.training.config import DistillConfig
from scott.training.draws import Draws, sampling_times

TINY = torch.finfo(torch.float32).tiny
R1_DISTANCE = 0.01
"""In standard deviations of the data."""


@dataclass(frozen=True)
class Engine:
    """How a step is made: by default with the backbone's own models, and in one pass."""

    student: Callable[..., Tensor] | None = None
    critic: Callable[..., Tensor] | None = None
    """What is called instead of the backbone's own: where several processes train, models that average."""
    has_critic: bool = True
    """Whether the step has the critic that the config has."""
    adversarial_weight: float | None = None
    """λ_adv, where it is not the config's."""
    apart: Callable[[], AbstractContextManager[None]] | None = None
    """Within it `grad` is to hold the student's gradient of L_adv alone, that of a forward pass of its own."""
    scale: Callable[[Tensor], Tensor] = lambda loss: loss
    """What a loss is multiplied with, in the gradients and not in the terms."""
    mark: Callable[[str], None] = lambda part: None
    """Called as a part ends: teacher, student or critic."""


BARE = Engine()


class Shown(NamedTuple):
    """What the critic compares: samples of the student's at times t, and the data x0 of the same captions."""

    fakes: Tensor
    x0: Tensor
    t: Tensor
    cond: Cond
    draws: Draws


@dataclass(frozen=True)
class Distillation:
    """Student, target and critic of a backbone under its teacher, and how a config has them learn."""

    backbone: LatentBackbone
    config: DistillConfig
    solver: Solver
    grid: JumpGrid
    uncond: Cond
    """What guidance pushes away from, of batch 1."""

    @classmethod
    def of(cls, backbone: LatentBackbone, config: DistillConfig) -> Self:
        """Raises `UserError` where the solver or the grid do not suit the teacher's schedule."""
        schedule = backbone.schedule
        return cls(backbone, config, config.make_solver(schedule), config.make_grid(schedule), backbone.unconditional())

    @torch.no_grad()
    def walk(self, batch: Batch, draws: Draws) -> Tensor:
        """x̂_m (B, C, H, W), where the guided teacher's walk from x_n ends. No student has a part in it."""
        uncond = self.uncond | {name: batch.cond[name] for name in self.backbone.size_names}
        teacher = self.backbone.guided_teacher(uncond, draws.omega, self.config.low_memory)
        _, x_n = _noised(self.backbone.schedule, batch, draws)
        return self.solver.walk(teacher, x_n, self.grid.substep_times(draws.t_n), batch.cond, noises=draws.walk)

    def step(self, batch: Batch, draws: Draws, engine: Engine = BARE, x_m: Tensor | None = None) -> dict[str, Tensor]:
        """Add the gradients of both losses to the parameters' `grad`; the step's terms, 0-d tensors but for `moments`.

        `x_m` is what `walk` made of these draws, if it was called. `moments` is what `Spread` takes;
        `adversarial_ratio`, of a fixed λ_adv whose gradient is of the same forward pass as that of L_CD, is
        ‖λ_adv ∂L_adv/∂f_θ‖ / ‖∂L_CD/∂f_θ‖.
        """
        backbone, config, grid = self.backbone, self.config, self.grid
        schedule, t_n, cond = backbone.schedule, draws.t_n, batch.cond | {"guidance": draws.omega}
        f = ConsistencyFunction(engine.student or backbone.student, schedule)
        f_target = ConsistencyFunction(backbone.target, schedule)
        x0, x_n = _noised(schedule, batch, draws)
        x_m = self.walk(batch, draws) if x_m is None else x_m
        engine.mark("teacher")
        f_n, loss = self.consistency(f, f_target, x_n, x_m, cond, draws)
        stops = sampling_times(grid, config)
        terms = {"consistency": loss.detach(), "moments": _moments(f_n[: len(x0)], x0, t_n, stops)}
        towards_target, shown = torch.autograd.grad(engine.scale(loss), f_n)[0], Shown(f_n, x0, t_n, cond, draws)
        if not (config.has_critic and engine.has_critic):
            f_n.backward(towards_target)
        elif not config.draws_fakes and not engine.apart:
            towards_data, played = self.play(engine, shown)
            f_n.backward(towards_target + towards_data)
            terms |= played
            if not config.adversarial_share:  # whose ratio is one over θ
                terms["adversarial_ratio"] = towards_data.norm() / towards_target.norm().clamp(min=TINY)
        else:
            f_n.backward(towards_target)
            with engine.apart() if engine.apart else nullcontext():
                if config.draws_fakes:
                    shown = self.drawn(f, shown)
                    drawn = _moments(shown.fakes, shown.x0, shown.t, stops)
                    terms["moments"] = torch.cat([terms["moments"], drawn])
                else:
                    shown = shown._replace(fakes=f(x_n, t_n, cond))
                towards_data, played = self.play(engine, shown)
                shown.fakes.backward(towards_data)
                terms |= played
        engine.mark("student")
        return terms

    def consistency(
        self, f: ConsistencyFunction, f_target: ConsistencyFunction, x_n: Tensor, x_m: Tensor, cond: Cond, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """f(x_n, t_n) and L_CD, whose gradient goes through it alone.

        A variant may draw f of each row several times: the first rows are then those of the batch.
        """
        t_n, config = draws.t_n, self.config
        target = self.target(f_target, x_m, x_n, t_n, cond)
        f_n = f(x_n, t_n, cond)
        w = loss_weight(config.weighting, f.schedule, t_n, self.grid.trained_times)
        return f_n, consistency_loss(f_n, target, config.loss, weight=w)

    def target(self, f: ConsistencyFunction, x_m: Tensor, x_n: Tensor, t_n: Tensor, cond: Cond) -> Tensor:
        """What f(x_n, t_n) is to be (B, C, H, W), where the walk from x_n ends at x_m: f_θ⁻(x_m, t_m)."""
        return consistency_target(f, x_m, self.grid.target(t_n), cond)

    def drawn(self, f: ConsistencyFunction, shown: Shown) -> Shown:
        """f_θ(x, t) as sampling makes it of the draws' noises, with the data of the same rows.

        The first step is made for the rows that go on from it, and for one at least: over several processes each calls
        a split network as often. Compiled, it is made for all, so that a network meets one size of batch.
        """
        each, (t_max,) = self.config.compile, self.grid.inference_times(1)
        rows = shown.draws.drawn.nonzero().squeeze(1)
        cond, draws = {name: value[rows] for name, value in shown.cond.items()}, shown.draws[rows]
        (noise, again), t = draws.drawn_noise, draws.drawn_t
        later, x = t < t_max, noise.clone()
        some = (later | each).nonzero().squeeze(1) if each or later.any() else slice(0, 1)
        with torch.no_grad():
            first = f(noise[some], torch.full_like(t[some], t_max), {name: value[some] for name, value in cond.items()})
        goes_on = later[some].to(noise.device).view(-1, 1, 1, 1)
        x[some] = torch.where(goes_on, f.schedule.add_noise(first, again[some], t[some]), noise[some])
        return Shown(f(x, t, cond), shown.x0[rows], t, cond, draws)

    def play(self, engine: Engine, shown: Shown) -> tuple[Tensor, dict[str, Tensor]]:
        """Send L_D back to what is trained of D; scaled λ_adv ∂L_adv/∂fakes, and terms."""
        backbone, config, grid = self.backbone, self.config, self.grid
        engine.mark("student")
        critic, scale, weight = engine.critic or backbone.critic, engine.scale, engine.adversarial_weight
        weight = config.adversarial_weight if weight is None else weight
        # None is all there is: a split network's graph has gathered copies of its parameters
        trained = tuple(backbone.critic_parameters().values()) if config.shard == "none" else None
        leaf = shown.fakes.detach().requires_grad_()
        (x_fake, t_fake), (x_real, t_real) = self._critic_inputs(shown._replace(fakes=leaf))
        fake_logits, real_logits = critic(x_fake, t_fake, shown.cond), critic(x_real, t_real, shown.cond)
        kind = config.weighting if config.adversarial_weighting == "same" else config.adversarial_weighting
        times = torch.tensor(sampling_times(grid, config)).to(grid.times) if config.draws_fakes else grid.trained_times
        adversarial = hinge_generator(fake_logits, loss_weight(kind, grid.schedule, shown.t, times))
        discriminator = hinge_discriminator(real_logits, fake_logits)
        terms = {
            "adversarial": adversarial.detach(),
            "critic": discriminator.loss.detach(),
            "critic_real_accuracy": discriminator.real_accuracy,
            "critic_fake_accuracy": discriminator.fake_accuracy,
        }
        loss = discriminator.loss
        if config.critic_r1:
            nearby = critic(x_real + R1_DISTANCE * shown.draws.r1_noise[0], t_real, shown.cond)
            penalty = r1_penalty(real_logits, nearby, R1_DISTANCE)
            loss, terms["critic_r1"] = loss + config.critic_r1 * penalty, penalty.detach()
        towards_data = torch.autograd.grad(scale(weight * adversarial), leaf, retain_graph=True)[0]
        scale(loss).backward(inputs=trained)  # not on through a frozen encoder, down to the fake
        engine.mark("critic")
        return towards_data, terms

    def _critic_inputs(self, shown: Shown) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What D is shown of the student and of the data, and what time it is given for each (`critic_input`)."""
        schedule = self.backbone.schedule
        clean = torch.full_like(shown.t, schedule.t_data)
        match self.config.critic_input:
            case "renoised":
                t, noises = shown.draws.critic_t, shown.draws.critic_noise
                fake, real = (schedule.add_noise(x, w, t) for x, w in zip((shown.fakes, shown.x0), noises, strict=True))
                return (fake, t), (real, t)
            case "clean":
                return (shown.fakes, clean), (shown.x0, clean)
            case "matched":
                return (shown.fakes, shown.t), (shown.x0, shown.t)
            case _:
                return (shown.fakes, shown.t), (shown.x0, clean)


def _noised(schedule: NoiseSchedule, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
    """x0 and x_n."""
    x0 = batch.mean + batch.std * draws.latent
    return x0, schedule.add_noise(x0, draws.noise, draws.t_n)


@torch.no_grad()
def _moments(output: Tensor, x0: Tensor, t: Tensor, stops: list[float]) -> Tensor:
    """(T, 5) for the T times among `stops`, descending: the fraction of the rows that are at the time, and over the
    whole batch the mean of those rows' output, its square, x0 and its square."""
    times = torch.tensor(sorted({*stops}, reverse=True)).to(t)
    means = [value.flatten(1).mean(1) for value in (output, output.square(), x0, x0.square())]
    rows = torch.stack([torch.ones_like(means[0]), *means], 1).float()
    return (times[:, None] == t).to(rows) @ rows / len(t)
