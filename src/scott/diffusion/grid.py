"""The times of SCott: where a jump starts and lands, its sub-steps, and where few-step sampling stops by.

With a jump of J training steps walked in h sub-steps, everything happens on the grid t_i = t_data + i d,
i = 0 .. M, d = J / h. On SD's 1,000 steps with J = 24, h = 3 that is {8i − 1}: the times a stock few-step
scheduler visits with `original_inference_steps` = M = 125, so training and inference coincide.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from scott.diffusion.flow import FlowSchedule
from scott.diffusion.schedule import NoiseSchedule
from scott.errors import UserError


class JumpGrid:
    """The grid of a jump of `jump` training steps in `substeps` equal sub-steps.

    t_n is any grid time but clean data, and t_m = max(t_n − jump, t_data). The lowest h of them land on clean data,
    where the boundary condition makes the target the data itself. Every target time is clean data or drawn as a t_n
    in turn, so each of the h interleaved chains of targets is anchored.

    Args:
        schedule, jump, substeps: as above.
        few_steps: draw as t_n only what sampling in one of these numbers of steps needs: the times it stops at, and the
            targets between them and clean data. Where sampling stops on one of the h chains, that is one time in h.

    Raises:
        UserError: a flow with `few_steps`, whose sampling stops at times of its own; the sub-steps do not divide the
            jump, the jump exceeds the schedule, or no whole `original_inference_steps` spaces its times by
            jump / substeps; a flow whose grid ends below t = 1, where its sampling begins.
    """

    def __init__(
        self, schedule: NoiseSchedule, jump: int = 24, substeps: int = 3, few_steps: Sequence[int] = ()
    ) -> None:
        if jump < 1 or substeps < 1 or jump % substeps:
            raise UserError(
                f"got jump {jump} and {substeps} sub-steps; jump must be a multiple of substeps. "
                f"Use jump={max(jump // max(substeps, 1), 1) * max(substeps, 1)}."
            )
        steps = schedule.training_steps
        if jump > steps:
            raise UserError(
                f"got jump {jump} on a schedule of {steps} training steps: t_m would fall below clean data. "
                f"Use a jump of at most {steps}."
            )
        self.schedule = schedule
        self.jump = jump
        self.substeps = substeps
        self.spacing = jump // substeps
        self.original_inference_steps = steps // self.spacing
        reached = self.original_inference_steps * self.spacing
        falls_short = isinstance(schedule, FlowSchedule) and reached != steps
        if steps // self.original_inference_steps != self.spacing or falls_short:
            # a divisor of the steps reaches t_max as well
            spacings = [spacing for spacing in range(1, steps // substeps + 1) if steps % spacing == 0]
            nearest = min(spacings, key=lambda spacing: abs(spacing - self.spacing))
            if falls_short:
                raise UserError(
                    f"got jump {jump} in {substeps} sub-steps of {self.spacing}, which end at {reached} of {steps} "
                    f"training steps; a flow is sampled from the last one on. Use jump={nearest * substeps}."
                )
            raise UserError(
                f"got jump {jump} in {substeps} sub-steps of {self.spacing}, a spacing that no "
                f"original_inference_steps gives on {steps} training steps. Use jump={nearest * substeps}."
            )

        if few_steps and isinstance(schedule, FlowSchedule):
            raise UserError("got times needed on a flow, which is sampled at times off the grid; use times all")
        self.few_steps = tuple(n for n in few_steps if n <= self.original_inference_steps)

    @cached_property
    def times(self) -> Tensor:
        """(M + 1,) every grid time, ascending; the first is clean data."""
        schedule = self.schedule
        steps = torch.arange(self.original_inference_steps + 1, dtype=torch.float64) * self.spacing
        span = schedule.t_max - schedule.t_data
        return (schedule.t_data + span * steps / schedule.training_steps).to(schedule.time_dtype)

    @cached_property
    def trained_times(self) -> Tensor:
        """Those that t_n is drawn from, ascending: all above clean data, or what `few_steps` need."""
        if not self.few_steps:
            return self.times[1:]
        stops = torch.tensor([time for n in self.few_steps for time in self.inference_times(n)]).to(self.times)
        indices = {index for first in self._index(stops).tolist() for index in range(first, 0, -self.substeps)}
        return self.times[sorted(indices)]

    def sample(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """(batch,) times t_n, uniform over `trained_times`, on the generator's device."""
        return _drawn(self.trained_times, batch, generator)

    def sample_any(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """(batch,) times, uniform over all above clean data, on the generator's device."""
        return _drawn(self.times[1:], batch, generator)

    def target(self, t_n: Tensor) -> Tensor:
        """t_m = max(t_n − jump, t_data), (B,) like t_n.

        Raises:
            UserError: a t_n is off the grid, or clean data already.
        """
        return self.substep_times(t_n)[-1]

    def substep_times(self, t_n: Tensor) -> list[Tensor]:
        """[t_n, .., t_m]: the h + 1 times of the walk, each (B,); once on clean data, it stays. Raises as `target`."""
        index = self._index(t_n)
        return [self.times[(index - k).clamp(min=0)].to(t_n.device) for k in range(self.substeps + 1)]

    def inference_times(self, steps: int) -> list[float]:
        """The descending times of `steps`-step sampling: grid indices M − ⌊k M / steps⌋, k = 0 .. steps − 1.

        Those of diffusers' LCMScheduler.set_timesteps(steps, original_inference_steps=M). A flow has times of its own
        (`FlowSchedule.inference_times`), which need not be on the grid.

        Raises:
            UserError: steps is not from 1 to M.
        """
        count = self.original_inference_steps
        if not 1 <= steps <= count:
            raise UserError(f"got {steps} inference steps; expected from 1 to {count}, the times on the grid.")
        if isinstance(self.schedule, FlowSchedule):
            return self.schedule.inference_times(steps)
        return self.times[[count - k * count // steps for k in range(steps)]].tolist()

    def _index(self, t_n: Tensor) -> Tensor:
        t = t_n.detach().cpu()
        elapsed = (t.double() - self.schedule.t_data) / self.schedule.unit / self.spacing
        index = elapsed.round().long()
        off = (elapsed - index).abs() > 1e-3
        off |= (index < 1) | (index > self.original_inference_steps)
        if bool(off.any()):
            first, last = self.times[1].item(), self.times[-1].item()
            raise UserError(
                f"got t_n {t[off][0].item()}; expected a grid time from {first} to {last} in steps of "
                f"{self.spacing * self.schedule.unit}. Draw t_n with JumpGrid.sample."
            )
        return index


def _drawn(times: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return times.to(device)[torch.randint(len(times), (count,), generator=generator, device=device)]


def equal_substeps(t_n: Tensor, t_m: Tensor, substeps: int) -> list[Tensor]:
    """[t_n, .., t_m]: substeps + 1 equally spaced times, each (B,), of t_n's dtype.

    Raises:
        UserError: there is no whole number of sub-steps, or integer times do not divide into them.
    """
    if substeps < 1:
        raise UserError(f"got {substeps} sub-steps; expected 1 or more.")
    span = t_m - t_n
    if t_n.is_floating_point():
        return [t_n + span * (k / substeps) for k in range(substeps)] + [t_m]
    if bool((span % substeps).any()):
        worst = int(-span[span % substeps != 0][0])
        raise UserError(
            f"got jump {worst} and {substeps} sub-steps; jump must be a multiple of substeps. "
            f"Use a jump of {max(worst // substeps, 1) * substeps}."
        )
    return [t_n + span // substeps * k for k in range(substeps + 1)]
