"""InstaFlow (Liu et al. 2023, arXiv 2309.06380) on the embedded teacher: straighten the flow, then take it in one step.

X0 is noise, X1 a picture, X_t = t X1 + (1 − t) X0, and v(X_t, t, c) = E[X1 − X0 | X_t].

    pairs     (text, X0, X1): X1 is what the guided teacher makes of the noise X0, once; no real pictures
    reflow    min E ‖(X1 − X0) − v(X_t, t, c)‖², t ~ U[0, 1], from the teacher's weights
    ends      ODE[v](X0), of v = ω v(c) + (1 − ω) v(∅), by Euler steps
    distil    min E D(ODE[v](X0), X0 + v'(X0, 0, c)): D = L2, then a perceptual distance of the decoded pictures

    python -m experiments.baselines.instaflow --out runs/baselines/instaflow --cpu-minutes 240
    scott evaluate runs/baselines/instaflow/student --steps 1
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from experiments.baselines.student import Baseline, main
from experiments.embedded_teacher.decoder import Perceptual
from experiments.embedded_teacher.stage import Tensors
from torch import Tensor, nn
from torch.nn import functional as F

from scott.diffusion import Denoiser, NoiseSchedule, expand_like
from scott.errors import UserError
from scott.guidance import GuidedDenoiser
from scott.mini.embedded import GUIDANCE
from scott.rng import generator_for
from scott.samplers import trailing_times
from scott.solvers import make

DROPOUT = 0.1
"""Of captions in reflow, as in the teacher's own training; v(∅) needs it."""
PAIRS, MINUTES = 10_000, 240
MEASURED = 64
"""Noises that straightness is measured on."""


class Flow:
    """A network of a variance-preserving schedule as the velocity of the straight paths, by a change of variables.

    X_t is the schedule's state at the time τ of the same λ = σ/α = (1 − t)/t, scaled: with n = √(t² + (1 − t)²),
    t = α_τ/(α_τ + σ_τ), x_τ = X_t / n and

        v(X_t, t) = (x̂0(X_t / n, τ) − X_t) / (1 − t),    so that ε̂ = X_t − t v.

    The schedule's last time, where sampling starts from noise, is taken for t = 0.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        times = torch.arange(schedule.training_steps)
        self.t = 1 / (1 + schedule.lam(times))
        """t (1,000,) of each τ, float64."""
        self.t[-1] = 0

    def nearest(self, t: Tensor) -> Tensor:
        """The τ (B,) whose t is nearest."""
        return (self.t - t.double()[:, None]).abs().argmin(dim=1)

    def state(self, start: Tensor, end: Tensor, tau: Tensor) -> Tensor:
        """X_t = t X1 + (1 − t) X0."""
        return torch.lerp(start, end, expand_like(self.t[tau], start))

    def velocity(self, denoiser: Denoiser, x: Tensor, tau: Tensor, cond: Any) -> Tensor:
        t = self.t[tau]
        norm, rest = expand_like((t**2 + (1 - t) ** 2).sqrt(), x), expand_like(1 - t, x)
        return (denoiser(x / norm, tau, cond) - x) / rest

    @torch.no_grad()
    def integrate(self, denoiser: Denoiser, start: Tensor, cond: Any, steps: int) -> tuple[Tensor, float]:
        """Z_1 of dZ = v dt from `start`, by Euler steps, and its straightness ∫ ‖(Z_1 − Z_0) − v(Z_t, t)‖² dt, a mean
        over elements: 0 of straight paths."""
        taus = self.nearest(torch.arange(steps) / steps)
        widths = torch.cat([self.t[taus], torch.ones(1)]).diff()
        z, velocities = start, []
        for tau, width in zip(taus, widths.tolist(), strict=True):
            velocities.append(self.velocity(denoiser, z, tau.expand(len(z)), cond))
            z = z + width * velocities[-1]
        bends = [(z - start - v).square().mean().item() for v in velocities]
        return z, sum(width * bend for width, bend in zip(widths.tolist(), bends, strict=True))


@dataclass(kw_only=True)
class InstaFlow(Baseline):
    """Train InstaFlow. Half of what pairs and ends leave of the budget is for reflow, a quarter for each D."""

    out: Path = Path("runs/baselines/instaflow")
    pairs: int = 0
    """0: 10,000 in 240 minutes, in another budget as many in proportion; with `steps` 10,000."""
    pair_steps: int = 25
    pair_guidance: float = GUIDANCE
    """ω of the teacher, whose ODE is solved by DPM-Solver++(2M)."""
    flow_steps: int = 25
    flow_guidance: float = 1.5

    method: ClassVar[str] = "instaflow"
    drawn_in: ClassVar[tuple[int, ...]] = (1,)

    def __post_init__(self) -> None:
        minutes = self.cpu_minutes or MINUTES
        if not self.pairs and math.isfinite(minutes):  # `train` refuses others
            self.pairs = max(1, round(PAIRS * minutes / MINUTES))

    def fit(self) -> nn.Module:
        network = self.backbone.copies["student"] = self.backbone.copy_network({})
        self.ends = self.kept("pairs", self.pairs, self._teachers)["ends"]
        spent = self.seconds * (1 + self.flow_steps / self.pair_steps)
        left = 60 * (self.cpu_minutes or 0) - spent / self.slower
        if self.cpu_minutes is not None and left <= 0:
            raise UserError(f"got {self.cpu_minutes} CPU minutes, less than {self.pairs:,} pairs take; give more")
        self.straightness = [self._straightness()]
        average = self.stage("reflow", network, self.draw, self.reflow, share=0.5, seconds=left)
        network.load_state_dict(average)
        self.straightness.append(self._straightness())
        self.ends = self.kept("ends", self.pairs, self._flowed)["ends"]
        for name, losses in (("l2", self.l2), ("perceptual", self.perceptual)):
            network.load_state_dict(self.stage(name, network, self.draw, losses, share=0.25, seconds=left))
        return network

    def start(self, samples: Sequence[int]) -> tuple[Tensor, Tensors]:
        """X0 and the condition of pairs."""
        text = self.data["text"][torch.tensor(samples) % self.scenes].float()
        noise = [torch.randn(self.backbone.latent_shape, generator=generator_for(self.seed, 0, i)) for i in samples]
        return torch.stack(noise), {"text": text}

    def _teachers(self, samples: range) -> Tensors:
        noise, cond = self.start(samples)
        guided = self.backbone.guided_teacher(self.uncond, self.pair_guidance)
        solver = make("dpmpp-sde", self.backbone.schedule, eta=0.0)
        return {"ends": solver.walk(guided, noise, trailing_times(self.backbone, self.pair_steps, len(noise)), cond)}

    def _flowed(self, samples: range) -> Tensors:
        noise, cond = self.start(samples)
        guided = GuidedDenoiser(self.backbone.student, self.uncond, self.flow_guidance)
        return {"ends": self.flow.integrate(guided, noise, cond, self.flow_steps)[0]}

    def _straightness(self) -> float:
        noise, cond = self.start(range(min(self.pairs, MEASURED)))
        return self.flow.integrate(self.backbone.student, noise, cond, self.flow_steps)[1]

    @cached_property
    def uncond(self) -> Tensors:
        return self.backbone.unconditional()

    @cached_property
    def flow(self) -> Flow:
        return Flow(self.backbone.schedule)

    def draw(self, indices: range, generator: torch.Generator) -> Tensors:
        rows = torch.randint(self.pairs, (self.batch_size,), generator=generator)
        noise, cond = self.start(rows.tolist())
        t, dropped = torch.rand(2, self.batch_size, generator=generator)
        return {
            "noise": noise,
            "end": self.ends[rows],
            "tau": self.flow.nearest(t),
            "dropped": dropped < DROPOUT,
        } | cond

    def reflow(self, drawn: Tensors) -> Tensors:
        noise, end, tau = drawn["noise"], drawn["end"], drawn["tau"]
        cond = {"text": torch.where(drawn["dropped"][:, None, None], self.uncond["text"], drawn["text"])}
        velocity = self.flow.velocity(self.backbone.student, self.flow.state(noise, end, tau), tau, cond)
        return {"velocity_mse": F.mse_loss(velocity, end - noise)}

    def one_step(self, drawn: Tensors) -> Tensor:
        """X0 + v(X0, 0): the network's x̂0 at the schedule's last time."""
        last = torch.full((len(drawn["noise"]),), len(self.flow.t) - 1)
        return self.backbone.student(drawn["noise"], last, {"text": drawn["text"]})

    def l2(self, drawn: Tensors) -> Tensors:
        return {"l2": F.mse_loss(self.one_step(drawn), drawn["end"])}

    def perceptual(self, drawn: Tensors) -> Tensors:
        """The substitute for LPIPS."""
        pictures = [self._decoded(latents) for latents in (self.one_step(drawn), drawn["end"])]
        return {"perceptual": self._distance(*pictures)}

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.backbone.vae.decode(self.backbone.normaliser.restore(latents)).sample / 2 + 0.5

    @cached_property
    def _distance(self) -> Perceptual:
        return Perceptual()

    def figures(self) -> dict[str, Any]:
        return {"pairs": self.pairs, "straightness": [round(value, 5) for value in self.straightness]}


if __name__ == "__main__":
    main(InstaFlow, __doc__)
