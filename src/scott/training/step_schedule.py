"""What changes from step to step of a run: both learning rates, and when the critic comes and how much it counts."""

import math

from scott.training.adversary import Adversary

SETTLING = 100
"""Steps that the critic is given until λ_adv, where it is set by gradients, may stand still for some."""


class StepSchedule(Adversary):
    """By a config's settings, which are described there."""

    max_steps: int
    warmup_steps: int
    decay: float

    def rate_factor(self, step: int) -> float:
        """Of both learning rates at step n = 0, ..., N − 1: min(1, (n + 1) / warm-up, (N − n) / (decay · N))."""
        rise = (step + 1) / max(1, self.warmup_steps)
        fall = (self.max_steps - step) / max(1.0, self.decay * self.max_steps)
        return min(1.0, rise, fall)

    @property
    def first_with_critic(self) -> int:
        """The step n = 0, 1, ... that is the first to have the critic, where there is one."""
        return math.ceil(round(self.critic_start * self.max_steps, 6))  # .55 of 100 is 55.00000000000001 in float64

    def adversarial_factor(self, step: int) -> float:
        """Of λ_adv at step n = 0, 1, ..., c of them with the critic: 0 in its warm-up, then (c − warm-up) / ramp, at
        most 1."""
        made = step + 1 - self.first_with_critic - self.critic_warmup
        return min(1.0, max(0.0, made / max(1, self.adversarial_ramp)))

    def share_interval(self, step: int) -> int:
        """At step n = 0, 1, ...: steps from one to the next that measures the gradients of L_CD and L_adv apart."""
        settled = step - self.first_with_critic >= SETTLING and not self.draws_fakes
        return self.adversarial_share_every if settled else 1

    def measures_share(self, step: int) -> bool:
        """Whether step n = 0, 1, ..., which has the critic, is one of these."""
        return self.adversarial_share > 0 and (step + 1) % self.share_interval(step) == 0

    @property
    def measures_seldom(self) -> bool:
        """Whether there are steps that have the critic and measure nothing, where others do."""
        return self.has_critic and self.adversarial_share > 0 and self.share_interval(self.max_steps - 1) > 1
