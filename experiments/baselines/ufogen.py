"""UFOGen (Xu et al. 2023, arXiv 2311.09257) on the embedded teacher: a diffusion model and a GAN in one.

    min_G max_D  E[log D(x_s, s, c)] + E[log(1 − D(x'_s, s, c))] + λ γ_t ‖x0 − G(x_t, t, c)‖²

x_t is data noised to t; G(x_t) → x'_0, which the forward kernel noises to x'_s, s = t − 250, with noise of its own, as
it does real data to x_s. So D compares the marginals at s, whose match is one of x_0's, and one step suffices to draw.
G and D are both full copies of the teacher; D's last layer starts at zero and gives a logit an element. The game is BCE
of clamped logits; γ_t = α_t²/σ_t² makes the reconstruction one of ε, and `--snr-floor 1` one of ε or of x_0, whichever
weighs more (truncated SNR: Salimans & Ho 2022, arXiv 2202.00512).

    python -m experiments.baselines.ufogen --out runs/baselines/ufogen --cpu-minutes 60
    scott evaluate runs/baselines/ufogen/student --steps 1 2 4
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from experiments.baselines.student import Baseline, main
from experiments.embedded_teacher.stage import Tensors
from torch import Tensor, nn
from torch.nn import functional as F

from scott.diffusion import expand_like

GAP = 250
"""t − s."""
CLAMP = 0.5
EMA = 0.99


def generator_loss(fake: Tensor) -> Tensor:
    """−log D(x'_s), a mean over logits, each no more than .5: above it, the fake is real enough."""
    return F.softplus(-fake.clamp(max=CLAMP)).mean()


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """−log D(x_s) − log(1 − D(x'_s)), means over logits, the real's no more than .5, the fake's no less than −.5."""
    return F.softplus(-real.clamp(max=CLAMP)).mean() + F.softplus(fake.clamp(min=-CLAMP)).mean()


@dataclass(kw_only=True)
class UFOGen(Baseline):
    """Train UFOGen."""

    out: Path = Path("runs/baselines/ufogen")
    ema_decay: float = EMA
    reconstruction: float = 1.0
    """λ."""
    snr_floor: float = 0.0
    """γ_t is no less: at SD's last time α²/σ² is 1/213."""

    method: ClassVar[str] = "ufogen"
    drawn_in: ClassVar[tuple[int, ...]] = (1, 2, 4)

    def fit(self) -> nn.Module:
        generator, critic = (self.backbone.copy_network({}) for _ in range(2))
        nn.init.zeros_(critic.conv_out.weight)
        nn.init.zeros_(critic.conv_out.bias)
        self.backbone.copies |= {"student": generator, "critic": critic}
        models = nn.ModuleDict({"generator": generator, "critic": critic})
        groups = [
            {"params": [*generator.parameters()], "betas": (0.9, 0.999)},
            {"params": [*critic.parameters()], "betas": (0.0, 0.999)},
        ]
        seconds = 60 * (self.cpu_minutes or 0)
        average = self.stage(
            "ufogen", models, self.draw, self.losses, seconds=seconds, groups=groups, ema_decay=self.ema_decay
        )
        models.load_state_dict(average)
        return generator

    def draw(self, indices: range, generator: torch.Generator) -> Tensors:
        """A batch for G, and every second step one for D, whose names begin with "critic_"."""
        drawn = self._batch(generator)
        if indices.start // self.batch_size % 2 == 0:
            drawn |= {f"critic_{name}": value for name, value in self._batch(generator).items()}
        return drawn

    def _batch(self, generator: torch.Generator) -> Tensors:
        rows = torch.randint(self.scenes, (self.batch_size,), generator=generator)
        mean, std, text = (self.data[name][rows].float() for name in ("mean", "std", "text"))
        noises = torch.randn(4, *mean.shape, generator=generator)
        t = torch.randint(1, self.backbone.schedule.training_steps, (self.batch_size,), generator=generator)
        x0 = mean + std * noises[0]
        return {"x0": x0, "text": text, "t": t, "noise": noises[1], "fake_noise": noises[2], "real_noise": noises[3]}

    def losses(self, drawn: Tensors) -> Tensors:
        critic = self.backbone.copies["critic"].requires_grad_(False)
        x0, fake, s, cond = self._generated(drawn)
        terms = {"generator": generator_loss(self.backbone.output("critic", fake, s, cond))}
        critic.requires_grad_(True)
        gamma = self.backbone.schedule.lam(drawn["t"]).pow(-2).clamp(min=self.snr_floor)
        terms["reconstruction"] = self.reconstruction * (expand_like(gamma, x0) * (drawn["x0"] - x0).square()).mean()
        own = {name.removeprefix("critic_"): value for name, value in drawn.items() if name.startswith("critic_")}
        if own:
            with torch.no_grad():
                _, fake, s, cond = self._generated(own)
            real = self.backbone.schedule.add_noise(own["x0"], own["real_noise"], s)
            logits = [self.backbone.output("critic", x_s, s, cond) for x_s in (real, fake)]
            terms["critic"] = critic_loss(*logits)
        return terms

    def _generated(self, drawn: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensors]:
        """x'_0, x'_s, s and the condition."""
        schedule, t, cond = self.backbone.schedule, drawn["t"], {"text": drawn["text"]}
        x0 = self.backbone.student(schedule.add_noise(drawn["x0"], drawn["noise"], t), t, cond)
        s = (t - GAP).clamp(min=0)
        return x0, schedule.add_noise(x0, drawn["fake_noise"], s), s, cond


if __name__ == "__main__":
    main(UFOGen, __doc__)
