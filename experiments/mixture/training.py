"""Students of one method, trained side by side with scott's own solvers, grid and losses and an exact teacher."""

import copy
import time
from collections.abc import Iterator, Sequence

import torch
from experiments.energy import energy_score
from experiments.mixture.data import Mixture
from experiments.mixture.methods import Method, Trial
from experiments.mixture.networks import FEATURES, Networks, Student, time_features
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from scott.diffusion import DiscreteSchedule, JumpGrid
from scott.objective import consistency_loss, consistency_target, hinge_discriminator, hinge_generator, loss_weight
from scott.solvers import make

SD = DiscreteSchedule.stable_diffusion()
BATCH = 64
"""Of each student."""
EMA = 0.98
OPPONENT_RATE = 3e-3
"""Of critics and of denoisers of the fakes."""
FIRST = BATCH // 4
"""How many of the drawn fakes are first steps, from noise; the others are second ones."""


class Training:
    """Students of a method, one for each of the trials given, in one batch of S · BATCH rows."""

    def __init__(self, method: Method, data: Mixture, trials: Sequence[Trial], width: int, seed: int) -> None:
        self.method, self.data = method, data
        self.grid = JumpGrid(SD, method.jump, method.substeps)
        self.solvers = [make(kind, SD, **options) for kind, options in method.solvers]
        self.teacher = data.denoiser(SD)
        self.generator = torch.Generator().manual_seed(seed)
        dimension = data.means.shape[1]
        z = dimension if method.loss == "energy" else 0
        rates = torch.tensor([trial.rate for trial in trials])
        networks = Networks(rates, dimension + FEATURES + z, dimension, width, self.generator, direct=dimension > 2)
        self.student = Student(networks, data, SD, z)
        self.target = Student(copy.deepcopy(networks).requires_grad_(False), data, SD, z)
        self.strength = torch.tensor([trial.strength for trial in trials]).repeat_interleave(BATCH)
        self.optimizer = adam(networks, (0.9, 0.99))
        inputs, outputs = (dimension, 1) if method.added == "critic" else (dimension + FEATURES, dimension)
        rates = torch.full((len(trials),), OPPONENT_RATE)
        self.opponent = Networks(rates, inputs, outputs, width, self.generator)
        self.opponent_optimizer = adam(self.opponent, (0.0, 0.99))
        self.done, self.cpu_seconds = 0, 0.0

    def train(self, updates: int, of: int) -> None:
        """`updates` more of the `of` that the phases divide."""
        began = time.process_time()
        for _ in range(updates):
            self.step(self.done * len(self.solvers) // of)
            self.done += 1
        self.cpu_seconds += time.process_time() - began

    def step(self, phase: int) -> None:
        x0 = self.data.sample(len(self.strength), self.generator).float()
        t_n = self.grid.sample(len(x0), self.generator)
        x_n = SD.add_noise(x0, self.normal(x0), t_n)
        loss, f_n = self.consistency(x_n, t_n, phase)
        if self.method.added != "nothing":
            fakes = f_n if self.method.fakes == "noised" else self.drawn(x0)
            loss = loss + (self.against_critic if self.method.added == "critic" else self.matching)(x0, fakes)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        target, student = ([*model.networks.parameters()] for model in (self.target, self.student))
        get_ema_multi_avg_fn(EMA)(target, student, None)

    def consistency(self, x_n: Tensor, t_n: Tensor, phase: int) -> tuple[Tensor, Tensor]:
        """L_CD, or the energy score against the target's draw; and f(x_n)."""
        times = self.grid.substep_times(t_n)
        with torch.no_grad():
            x_m = self.solvers[phase].walk(self.teacher, x_n, times, None, self.generator)
        target = consistency_target(self.target, x_m, times[-1], None)
        f_n = self.student(x_n, t_n)
        if self.method.loss == "energy":
            return energy_score(f_n, self.student(x_n, t_n), target).mean(), f_n
        weight = loss_weight(self.method.weighting, SD, t_n, self.grid.trained_times)
        return consistency_loss(f_n, target, weight=weight), f_n

    def drawn(self, like: Tensor) -> Tensor:
        """f of noise at t_max (FIRST rows of each student), and of the noised end of such a step, with gradient."""
        later = [time for steps in (2, 4) for time in self.grid.inference_times(steps)[1:]]
        which = torch.randint(len(later), (len(like),), generator=self.generator)
        t = torch.tensor(later)[which].to(SD.time_dtype)
        top, noise = torch.full_like(t, int(SD.t_max)), self.normal(like)
        with torch.no_grad():
            second = SD.add_noise(self.student(noise, top), self.normal(like), t)
        first = torch.arange(len(like)) % BATCH < FIRST
        return self.student(torch.where(first[:, None], noise, second), torch.where(first, top, t))

    def against_critic(self, real: Tensor, fakes: Tensor) -> Tensor:
        """λ L_adv, after an update of the critic by L_D; it sees states alone."""
        self.move_opponent(hinge_discriminator(self.opponent(real), self.opponent(fakes.detach())).loss)
        return hinge_generator(self.opponent(fakes), self.strength)

    def matching(self, real: Tensor, fakes: Tensor) -> Tensor:
        """λ times DMD's loss: ∂L/∂fake = (μ(x_t) − x̂0(x_t)) / mean |fake − x̂0(x_t)| at a random time and x_t of a fake.
        μ, the fakes' denoiser, is as it was before its own update, on the same x_t."""
        t = self.grid.sample_any(len(fakes), self.generator)
        fixed = fakes.detach()
        x_t = SD.add_noise(fixed, self.normal(fixed), t)
        truth = self.teacher(x_t, t, None)
        mu = truth + self.opponent(torch.cat([x_t, time_features(SD, t)], dim=1))
        self.move_opponent(consistency_loss(mu, fixed))
        gradient = (mu.detach() - truth) / (fixed - truth).abs().mean(1, keepdim=True).clamp(min=1e-3)
        return ((fakes * gradient).mean(1) * self.strength).mean()

    def move_opponent(self, loss: Tensor) -> None:
        self.opponent_optimizer.zero_grad()
        loss.backward()
        self.opponent_optimizer.step()

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator)


def adam(networks: Networks, betas: tuple[float, float]) -> torch.optim.Adam:
    """Of rate 1, which `Networks` makes each one's own. The gradient of δ is scaled by its network's rate and by one
    over the rows, down to about Adam's usual ε, 1e-8, which would damp the steps of small rates."""
    return torch.optim.Adam(networks.parameters(), lr=1.0, betas=betas, eps=1e-15)


def strides(updates: int) -> Iterator[int]:
    """In four parts, after each of which students are measured."""
    return (updates * (part + 1) // 4 - updates * part // 4 for part in range(4))
