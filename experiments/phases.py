"""Consistency within phases of the schedule, whose edges are the times that sampling in as many steps stops at.

From t_n in a phase that ends at s, a student goes to x_s by a step of DDIM along its x̂0, and is to end where it would
from x_m, the end of the teacher's walk, t_m in the same phase:

    F(x, t) = α_s x̂0(x, t) + σ_s ε̂,      F(x_n, t_n) = F⁻(x_m, t_m),      F(x, s) = x

Of one phase this is the usual consistency loss, s being clean data and F = x̂0. Of more, no step has to guess a picture
from noise, nothing is noised again between steps, and a student draws in as many steps as there are phases, by DDIM.
(Multistep consistency models, Heek et al. 2024, arXiv 2403.06807; phased ones, Wang et al. 2024, arXiv 2405.18407.)
"""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from scott.diffusion import ConsistencyFunction, Denoiser, expand_like
from scott.errors import UserError
from scott.samplers import StudentSampler
from scott.solvers import Solver, make
from scott.teachers import Cond
from scott.training.step import Distillation, Shown


@dataclass(frozen=True)
class PhasedDistillation(Distillation):
    """Raises `UserError` where a jump would leave its phase."""

    phases: int = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        times = self.grid.trained_times
        if (crossing := times[self.grid.target(times) < self.edge(times)]).numel():
            raise UserError(
                f"got {self.phases} phases and a jump of {self.grid.jump} from t = {crossing[0].item()}, which leaves "
                f"its phase at {self.edge(crossing)[0].item()}; expected phases of whole jumps"
            )

    @cached_property
    def stops(self) -> list[float]:
        """The times of sampling, and clean data."""
        return [*self.grid.inference_times(self.phases), self.grid.schedule.t_data]

    @cached_property
    def ddim(self) -> Solver:
        return make("ddim", self.grid.schedule, eta=0.0)

    def edge(self, t: Tensor) -> Tensor:
        """s, (B,): the last of the stops below t."""
        stops = torch.tensor(self.stops).to(t)
        return torch.where(stops < t[:, None], stops, stops[-1]).amax(1)

    def target(self, f: ConsistencyFunction, x_m: Tensor, x_n: Tensor, t_n: Tensor, cond: Cond) -> Tensor:
        """The x̂0 (B, C, H, W) with which a step from x_n ends at F⁻(x_m, t_m)."""
        s, t_m, schedule = self.edge(t_n), self.grid.target(t_n), self.grid.schedule
        x_s, inside = x_m.clone(), (t_m > s).nonzero().squeeze(1)
        if len(inside):
            some = {name: value[inside] for name, value in cond.items()}
            with torch.no_grad():
                x_s[inside], _ = self.ddim.step(f, x_m[inside], t_m[inside], s[inside], some, None)
        kept = schedule.sigma(s) / schedule.sigma(t_n)
        clean = schedule.alpha(s) - kept * schedule.alpha(t_n)
        return (x_s - expand_like(kept, x_s) * x_n) / expand_like(clean, x_s)

    def drawn(self, f: ConsistencyFunction, shown: Shown) -> Shown:
        """The last step of sampling, the steps before it without gradient, with the data of the same rows."""
        rows = shown.draws.drawn.nonzero().squeeze(1)
        cond, draws = {name: value[rows] for name, value in shown.cond.items()}, shown.draws[rows]
        x, (*ways, last) = draws.drawn_noise[0], [torch.full_like(draws.drawn_t, stop) for stop in self.stops[:-1]]
        with torch.no_grad():
            for s, t in pairwise([*ways, last]):
                x, _ = self.ddim.step(f, x, s, t, cond, None)
        return Shown(f(x, last, cond), shown.x0[rows], last, cond, draws)


class PhasedSampler(StudentSampler):
    """A student of as many phases as steps under DDIM."""

    def draw(self, student: Denoiser, noise: Tensor, cond: Cond, generator: torch.Generator) -> Tensor:
        schedule = self.backbone.schedule
        stops = [torch.full((len(noise),), time, dtype=schedule.time_dtype) for time in (*self.times, schedule.t_data)]
        return make("ddim", schedule, eta=0.0).walk(student, noise, stops, cond, generator)
