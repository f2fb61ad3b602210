"""The options of the game against the critic: what it is, what it compares, how it learns, and what it counts."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """The defaults are the paper's, as far as it says."""

    adversarial_weight: float = 0.4
    """λ_adv; 0 trains no critic."""
    adversarial_share: float = 0.0
    """Instead of a fixed λ_adv, the one at which the gradient of L_adv has this share of the norm of L_CD's."""
    adversarial_share_every: int = 1
    """After the first 100 steps with the critic: both norms are measured in each so-manieth step alone. Of fakes that
    are f of noised data that costs a forward and a backward pass of the student; drawn ones are always measured."""
    adversarial_weighting: Literal["same", "uniform", "snr+1"] = "same"
    """Weight of L_adv at a time: as L_CD's, 1 (the paper's), or α²/σ² + 1 over its mean."""
    critic_start: float = 0.0
    """Fraction of the steps, the first ones, that have no critic and cost what they do without one. Past
    --warmup-steps the critic begins at its full rate: --critic-warmup trains it alone first."""
    critic_warmup: int = 0
    """Steps from there in which the critic learns and L_adv counts nothing."""
    adversarial_ramp: int = 0
    """Steps after these over which λ_adv rises to its value."""

    critic: Literal["lora", "full", "unconditional", "heads", "none"] = "lora"
    """Table 7 of the paper: LoRA on the decoder, a trained copy of the whole network, LoRA given neither time nor text;
    or heads on the frozen encoder, which compute the least; or no critic (as with an adversarial weight of 0)."""
    critic_fakes: Literal["noised", "drawn"] = "noised"
    """What the critic is shown: f of noised data, as the paper says, or what sampling in 2 and 4 steps makes: f of pure
    noise, and f of what such a first step gave, noised again."""
    drawn_fraction: float = 0.5
    """Of a batch's captions: for how many a sample is drawn for the critic."""
    drawn_timesteps: tuple[float, ...] = ()
    """Where these samples end, each as often as it stands here, as in 999 599 599 599; if left out, where sampling in 2
    and 4 steps stops. Not of flows."""
    critic_input: Literal["paper", "matched", "renoised", "clean"] = "paper"
    """What time the critic is given: 0 for data and t_n for the student's output (paper), t_n for both (matched), one
    random time to which both are noised (renoised), or 0 for both (clean)."""
    critic_rank: int = 64

    critic_learning_rate: float = 2e-5
    critic_head_rate: float | None = None
    """Learning rate of the critic's heads; the critic's by default."""
    critic_betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's, for the critic."""
    critic_r1: float = 0.0
    """γ of the penalty γ/2 ‖∂D/∂x0‖² on the data (R1)."""

    @property
    def has_critic(self) -> bool:
        return self.adversarial_weight > 0 and self.critic != "none"

    @property
    def draws_fakes(self) -> bool:
        """Whether the critic is shown samples that are drawn for it."""
        return self.has_critic and self.critic_fakes == "drawn"

    @property
    def head_rate(self) -> float:
        """Learning rate of the critic's heads."""
        return self.critic_learning_rate if self.critic_head_rate is None else self.critic_head_rate

    def drawn_rows(self, batch: int) -> int:
        """K: for how many rows of a batch a sample is drawn, 1 or more."""
        return max(1, round(self.drawn_fraction * batch))
