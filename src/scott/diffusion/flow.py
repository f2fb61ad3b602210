"""Rectified flow: the schedule with times in [0, 1] and α + σ = 1, and where its few-step sampling stops."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scott.diffusion.schedule import DiscreteSchedule, NoiseSchedule
from scott.errors import UserError

FEW_STEP_SHIFT = 38.71
"""Shift of the stock scheduler of a student of a flow whose pipeline hands it no σ (`FlowSchedule.inference_times`)."""


@dataclass(frozen=True)
class FlowSchedule(NoiseSchedule):
    """Rectified flow: σ_t = k t / (1 + (k − 1) t), α_t = 1 − σ_t, t in [0, 1], k the shift (SD3, eq. 23).

    `evenly` says how few-step sampling spaces its times (`inference_times`).

    Raises:
        UserError: the shift is not positive and finite.
    """

    shift: float = 1.0
    evenly: bool = False

    prediction_type = "flow"
    t_data = 0.0
    t_max = 1.0
    unit = 0.001
    # The ends are exact in it, and every device has it.
    time_dtype = torch.float32

    def __post_init__(self) -> None:
        if not (0 < self.shift < math.inf):
            raise UserError(f"got shift {self.shift}; expected a positive number. 1 is no shift; SD3 uses 3.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "FlowSchedule":
        """The schedule of a flow-matching diffusers scheduler's config.

        Raises:
            UserError: the shift depends on the image size, or a training step is not 1/1000.
        """
        if config.get("use_dynamic_shifting"):
            raise UserError(
                "got a scheduler config with use_dynamic_shifting; expected one fixed shift. "
                "Distil at one image size and pass FlowSchedule(shift=exp(mu)) for it."
            )
        if (steps := config.get("num_train_timesteps", 1000)) != 1000:
            raise UserError(f"got num_train_timesteps {steps} in a flow scheduler's config; expected 1000.")
        return cls(float(config.get("shift", config.get("flow_shift", 1.0))))

    def alpha(self, t: Tensor) -> Tensor:
        t = self._checked(t)
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Tensor) -> Tensor:
        return _shifted(self._checked(t), self.shift)

    def timestep(self, t: Tensor) -> Tensor:
        """1000 σ_t, float32 on t's device."""
        return (1000 * self.sigma(t)).float().to(t.device)

    def inference_times(self, steps: int) -> list[float]:
        """Descending times of few-step sampling: those of diffusers' `FlowMatchLCMScheduler`.

        `evenly`, t = 1, 1 − 1/n, .., 1/n: what a pipeline that hands it these as σ (FLUX's) makes of `shift=k`.
        Otherwise what a pipeline that hands it none (SD3's) makes of `shift=FEW_STEP_SHIFT` and
        `use_exponential_sigmas=True`:

        With K = FEW_STEP_SHIFT and S_K(x) = K x / (1 + (K − 1) x), it takes σ from 1 down to S_K(S_K(1/1000)), each by
        the same factor below the one before; K is chosen to make that last σ .6. In σ, which is all that the network
        is fed, they do not depend on this schedule's shift.
        """
        if self.evenly:
            return (1 - torch.arange(steps, dtype=torch.float64) / steps).to(self.time_dtype).tolist()
        last = _shifted(_shifted(torch.tensor(0.001, dtype=torch.float64), FEW_STEP_SHIFT), FEW_STEP_SHIFT)
        return self.time_of(last ** torch.linspace(0, 1, steps, dtype=torch.float64)).tolist()

    def time_of(self, sigma: Tensor) -> Tensor:
        """t of σ_t, float64 → `time_dtype`."""
        return (sigma / (self.shift - (self.shift - 1) * sigma)).to(self.time_dtype)

    def _checked(self, t: Tensor) -> Tensor:
        t = t.detach().cpu().to(torch.float64)
        if not bool((on := (t >= 0) & (t <= 1)).all()):
            raise UserError(
                f"got time {t[~on][0].item()}; expected one from 0 (clean data) to 1. "
                "Divide a network's timestep by 1000 and undo the shift, or take times from JumpGrid."
            )
        return t


def schedule_from_config(config: Mapping[str, Any]) -> NoiseSchedule:
    """The schedule of a diffusers scheduler's config."""
    if config.get("_class_name", "").startswith("EDM"):
        raise UserError(
            f"got the scheduler {config['_class_name']}: a teacher preconditioned as in EDM (Playground v2.5) is not "
            "supported; expected one of epsilon, v, x0 or flow"
        )
    return FlowSchedule.from_config(config) if is_flow(config) else DiscreteSchedule.from_config(config)


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a diffusers scheduler's config is a flow's."""
    # A scheduler object's config has no class name, a file's has one; only flow schedulers have a shift.
    return bool("Flow" in config.get("_class_name", "") or "shift" in config or config.get("use_flow_sigmas"))


def _shifted(t: Tensor, shift: float) -> Tensor:
    return shift * t / (1 + (shift - 1) * t)
