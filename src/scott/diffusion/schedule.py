"""Noise schedules: how much data and how much noise a state holds at a time.

    x_t = α_t x0 + σ_t ε,    ε ~ N(0, I),    λ_t = σ_t / α_t, which falls as t falls.

`DiscreteSchedule` is the variance-preserving kind (α² + σ² = 1) with integer times; `flow.FlowSchedule` is
rectified flow (α + σ = 1) with times in [0, 1]. Coefficients are float64 on the CPU, of t's shape, whatever
device t is on.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from scott.choices import unknown
from scott.diffusion.prediction import prediction_name
from scott.diffusion.tensors import expand_like
from scott.errors import UserError


class NoiseSchedule(ABC):
    """α_t, σ_t and λ_t as functions of a time, from clean data (`t_data`: α = 1, σ = 0) to `t_max`.

    `unit` is one training step, `time_dtype` the dtype that times are made in.
    """

    prediction_type: str
    time_dtype: torch.dtype
    t_data: float
    unit: float

    @property
    @abstractmethod
    def t_max(self) -> float: ...

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """α_t, float64 of t's shape. Raises UserError for a time that the schedule does not have."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """σ_t, likewise."""

    @abstractmethod
    def timestep(self, t: Tensor) -> Tensor:
        """The time the network is fed: 0 on clean data, about 1000 at t_max."""

    def lam(self, t: Tensor) -> Tensor:
        """λ_t = σ_t / α_t, float64 of t's shape: 0 on clean data, infinite where α_t = 0."""
        return self.sigma(t) / self.alpha(t)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = α_t x0 + σ_t ε for x0 and noise (B, ...), t (B,)."""
        return expand_like(self.alpha(t), x0) * x0 + expand_like(self.sigma(t), x0) * noise

    @property
    def last_time(self) -> Tensor:
        """t_max as a time (1,)."""
        return torch.tensor([self.t_max], dtype=self.time_dtype)

    @property
    def training_steps(self) -> int:
        """The number of training steps between clean data and t_max."""
        return round((self.t_max - self.t_data) / self.unit)


@dataclass(frozen=True)
class DiscreteSchedule(NoiseSchedule):
    """Variance-preserving steps: ᾱ_t = Π_{i ≤ t} (1 − β_i), α_t = sqrt(ᾱ_t), σ_t = sqrt(1 − ᾱ_t) (DDPM).

    Times are the integers 0 .. N − 1, and −1 is clean data, as in diffusers' samplers with `set_alpha_to_one`. The
    fields are named as in a diffusers scheduler's config. With `rescale_betas_zero_snr`, sqrt(ᾱ) is shifted and scaled
    to end at 0 (Lin et al. 2024, algorithm 1).

    Raises:
        UserError: an unknown beta schedule or prediction type, a β outside (0, 1], or `trained_betas` of another length
            than `num_train_timesteps`.
    """

    beta_schedule: str
    beta_start: float
    beta_end: float
    num_train_timesteps: int = 1000
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"

    t_data = -1
    unit = 1
    time_dtype = torch.int64

    def __post_init__(self) -> None:
        prediction_name(self.prediction_type)
        betas = self._betas()
        if betas.ndim != 1 or betas.numel() == 0 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise UserError(
                f"got betas {betas.tolist()[:3]} ..; expected one or more, each in (0, 1]. "
                "Check beta_start, beta_end and trained_betas."
            )
        if len(betas) != self.num_train_timesteps:
            raise UserError(
                f"got {len(betas)} trained_betas for num_train_timesteps {self.num_train_timesteps}; expected as many"
            )

    @classmethod
    def stable_diffusion(cls) -> "DiscreteSchedule":
        """The schedule of SD1.x, SD2.x and SDXL: sqrt(β) linear, β from .00085 to .012, 1,000 steps."""
        return cls("scaled_linear", 0.00085, 0.012)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "DiscreteSchedule":
        """The schedule of any variance-preserving diffusers scheduler's config.

        Raises:
            UserError: the config lacks β, or changes α in a way that is not supported.
        """
        values = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        if (shift := config.get("snr_shift_scale", 1.0)) != 1.0:
            raise UserError(f"got snr_shift_scale {shift}; expected 1. Pass the shifted betas as trained_betas.")
        if "trained_betas" in values:
            betas = tuple(float(beta) for beta in values["trained_betas"])
            values |= {"beta_schedule": "trained", "beta_start": 0.0, "beta_end": 0.0}
            values |= {"trained_betas": betas, "num_train_timesteps": len(betas)}
        elif missing := {"beta_schedule", "beta_start", "beta_end"} - values.keys():
            raise UserError(
                f"got a config without {', '.join(sorted(missing))}; expected these or trained_betas. "
                "Pass the `.config` of a diffusers scheduler, which has its defaults filled in."
            )
        return cls(**values)

    @property
    def t_max(self) -> float:
        return self.num_train_timesteps - 1

    def alpha(self, t: Tensor) -> Tensor:
        return self._alpha_bar[self._index(t)].sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._alpha_bar[self._index(t)]).sqrt()

    def timestep(self, t: Tensor) -> Tensor:
        """t as int64; clean data is fed as time 0, the lowest the network has met."""
        return t.long().clamp(min=0)

    @cached_property
    def _alpha_bar(self) -> Tensor:
        """ᾱ for t = −1, 0, .., N − 1."""
        alpha_bar = torch.cumprod(1 - self._betas(), dim=0)
        if self.rescale_betas_zero_snr:
            alpha = alpha_bar.sqrt()
            alpha_bar = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
        return torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar])

    def _betas(self) -> Tensor:
        """β_0 .. β_{N−1}, float64."""
        if self.trained_betas is not None:
            return torch.tensor(self.trained_betas, dtype=torch.float64)
        if self.beta_schedule not in _BETAS:
            raise unknown("beta_schedule", self.beta_schedule, _BETAS)
        return _BETAS[self.beta_schedule](self.beta_start, self.beta_end, self.num_train_timesteps)

    def _index(self, t: Tensor) -> Tensor:
        t = t.detach().cpu()
        index = t.long()
        if bool((off := (index != t) | (index < -1) | (index > self.t_max)).any()):
            raise UserError(
                f"got time {t[off][0].item()}; expected an integer from -1 (clean data) to {self.t_max}. "
                "Take times from JumpGrid, or use a FlowSchedule for continuous time."
            )
        return index + 1


def _squaredcos_cap_v2(start: float, end: float, steps: int) -> Tensor:
    """β_i = min(1 − c_{i+1} / c_i, .999), c_i = cos²(π/2 · (i/N + .008) / 1.008) (Improved DDPM, eq. 17)."""
    alpha_bar = torch.cos((_LINSPACE(0, 1, steps + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


_LINSPACE = partial(torch.linspace, dtype=torch.float64)
_BETAS: dict[str, Callable[[float, float, int], Tensor]] = {
    "linear": _LINSPACE,
    "scaled_linear": lambda start, end, steps: _LINSPACE(start**0.5, end**0.5, steps) ** 2,
    "squaredcos_cap_v2": _squaredcos_cap_v2,
}
