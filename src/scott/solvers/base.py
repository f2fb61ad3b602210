"""One step of a solver, and the jump of several: each solver is the same first-order step with its own q.

A step goes from s to t, t < s. The denoiser gives x̂0 at x_s, and so the noise ε̂ = (x_s − α_s x̂0) / σ_s.
Then

    x_t = α_t x̂0 + σ_t (q ε̂ + sqrt(1 − q²) w),    w ~ N(0, I)

keeps the part q of the noise and redraws the rest, v = σ_t² (1 − q²). q = 1 is the probability-flow ODE.
Higher orders add to this the part of x̂0's change over the step that earlier steps foretell. Written so, a
step is finite from pure noise (α_s = 0, λ_s = ∞) and lands exactly on x̂0 at clean data (σ_t = 0).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scott.diffusion import Denoiser, NoiseSchedule, equal_substeps, expand_like, normal_like, time_like
from scott.errors import UserError


@dataclass(frozen=True)
class Span:
    """The noise levels at both ends of a step from s down to t, each float64 (B,) on the CPU."""

    alpha_s: Tensor
    sigma_s: Tensor
    lam_s: Tensor
    alpha_t: Tensor
    sigma_t: Tensor
    lam_t: Tensor

    @classmethod
    def between(cls, schedule: NoiseSchedule, s: Tensor, t: Tensor) -> "Span":
        """The levels at s and t. Raises UserError unless t < s throughout."""
        if not bool((backward := t < s).all()):
            raise UserError(
                f"got a step from s = {s[~backward][0].item()} to t = {t[~backward][0].item()}; "
                "expected t < s: solvers walk towards clean data."
            )
        at_s, at_t = ((schedule.alpha(u), schedule.sigma(u), schedule.lam(u)) for u in (s, t))
        return cls(*at_s, *at_t)

    @property
    def rho(self) -> Tensor:
        """ρ = λ_t / λ_s, in [0, 1): 0 from pure noise and on clean data."""
        return self.lam_t / self.lam_s


LAM_NOISE = 14.615
"""λ up to which a solver with a noise-scale function redraws noise; from higher levels down to it, a step is the ODE's.

Just above the λ that Stable Diffusion's schedule starts at, for which these functions were chosen. Without it a step
from pure noise (λ = ∞: a flow, zero terminal SNR) would redraw all of the noise, so that its end does not depend on
where it began: an L2 student of such a jump draws the conditional mean (`experiments.mixture`).
"""


class History(NamedTuple):
    """Earlier predictions, newest first: x̂0 (each (B, ...)) and the λ (each (B,)) they were made at."""

    x0: tuple[Tensor, ...] = ()
    lam: tuple[Tensor, ...] = ()


class Solver(ABC):
    """A solver of the reverse process on one schedule.

    Attributes:
        schedule: the noise schedule whose times `step` and `jump` take.
        stochastic: whether w is used; where it is not, noise is ignored.
        memory: how many earlier predictions a step uses.
        order: order of convergence in the step size: of the state where deterministic, of mean and
            variance where noisy.
    """

    stochastic: bool
    memory: int
    order: int

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    @abstractmethod
    def kept_noise(self, span: Span) -> Tensor:
        """q in [0, 1], float64 (B,): the part of σ_t that is kept noise ε̂."""

    def correction(self, span: Span, x0: tuple[Tensor, ...], lam: tuple[Tensor, ...]) -> Tensor:
        """What the order adds to x_t, given x̂0 and λ at s, the step before, ... (two or more of each)."""
        raise NotImplementedError

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        s: Tensor,
        t: Tensor,
        cond: Any,
        noise: Tensor | None,
        history: History | None = None,
    ) -> tuple[Tensor, History]:
        """One step from s down to t: x_t = α_t x̂0 + σ_t (q ε̂ + sqrt(1 − q²) w) + correction.

        Args:
            denoiser: (x (B, ...), s (B,), cond) → x̂0.
            x: the state at s, (B, ...).
            s, t: times in the schedule's units, (B,), t < s.
            noise: w like x; a deterministic solver ignores it.
            history: what the previous step of the same walk returned; without it the step is first order.

        Returns:
            (x_t, history for the next step).

        Raises:
            UserError: t is not below s, or a stochastic solver is given no noise, or noise of another shape than x.
        """
        span = Span.between(self.schedule, s.detach().cpu(), t.detach().cpu())
        x0_hat = denoiser(x, time_like(s, x), cond)
        eps_hat = (x - expand_like(span.alpha_s, x) * x0_hat) / expand_like(span.sigma_s, x)

        q = self.kept_noise(span)
        x_t = expand_like(span.alpha_t, x) * x0_hat + expand_like(span.sigma_t * q, x) * eps_hat
        if self.stochastic:
            if noise is None or noise.shape != x.shape:
                got = "no noise" if noise is None else f"noise of shape {tuple(noise.shape)}"
                step = f"a step of {type(self).__name__} on x {tuple(x.shape)}"
                raise UserError(f"got {got} for {step}; expected w ~ N(0, I) like x.")
            x_t = x_t + expand_like(span.sigma_t * (1 - q**2).sqrt(), x) * noise

        past = history or History()
        x0, lam = (x0_hat, *past.x0), (span.lam_s, *past.lam)
        if len(x0) > 1:
            x_t = x_t + self.correction(span, x0, lam)
        return x_t, History(x0[: self.memory], lam[: self.memory])

    def jump(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t_n: Tensor,
        t_m: Tensor,
        substeps: int,
        cond: Any,
        generator: torch.Generator | None = None,
        noises: list[Tensor] | None = None,
    ) -> Tensor:
        """x_tm = Φ(denoiser, x_tn, t_n, t_m, h): a walk of h equal sub-steps, each with fresh noise.

        Args:
            x: the state at t_n, (B, ...).
            t_n, t_m: times in the schedule's units, (B,), t_m < t_n.
            substeps: h.
            generator: draws the noise, where `noises` is not given.
            noises: h tensors like x.

        Raises:
            UserError: integer times do not divide into h sub-steps, or there are not h noises.
        """
        return self.walk(denoiser, x, equal_substeps(t_n, t_m, substeps), cond, generator, noises)

    def walk(
        self,
        denoiser: Denoiser,
        x: Tensor,
        times: list[Tensor],
        cond: Any,
        generator: torch.Generator | None = None,
        noises: list[Tensor] | None = None,
    ) -> Tensor:
        """The steps times[0] → times[1] → ..., each (B,); a sample whose time does not change rests.

        So a batch may hold jumps that reach clean data early (see `JumpGrid.substep_times`).

        Raises:
            UserError: there is not one noise a step, or a time ascends.
        """
        if noises is not None and len(noises) != len(times) - 1:
            raise UserError(f"got {len(noises)} noises for {len(times) - 1} sub-steps; expected one for each.")
        history = None
        for k, (s, t) in enumerate(pairwise(times)):
            noise = noises[k] if noises is not None else None
            if noise is None and self.stochastic:
                noise = normal_like(x, generator)
            rests = s == t
            # a resting sample goes along with the walk's first step, and its result is dropped
            s, t = torch.where(rests, times[0], s), torch.where(rests, times[1], t)
            stepped, history = self.step(denoiser, x, s, t, cond, noise, history)
            x = torch.where(expand_like(rests, x).bool(), x, stepped)
        return x


def nonnegative(name: str, value: float, upper: float = float("inf")) -> float:
    """A solver's option as a float. Raises UserError unless it is a finite number from 0 to `upper`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 <= value <= upper and value < float("inf")):
        raise UserError(f"got {name} {value!r}; expected a finite number from 0 to {upper:g}. 0 is the ODE.")
    return float(value)


def one_of_orders(value: int, highest: int) -> int:
    """A solver's order. Raises UserError unless it is a whole number from 1 to `highest`."""
    if type(value) is not int or not 1 <= value <= highest:
        raise UserError(f"got order {value!r}; expected one of {', '.join(map(str, range(1, highest + 1)))}.")
    return value
