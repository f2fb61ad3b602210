"""SCott's losses as pure functions: L_CD against the target student, a hinge game against the discriminator.

    L_CD  = E[ w(t_n) d(f_θ(z_tn, t_n), f_θ⁻(ẑ_tm, t_m)) ]
    L_D   = E[max(0, 1 − D(real))] + E[max(0, 1 + D(fake))]
    L_adv = −E[ w(t_n) D(fake) ]
    R1    = E[ ½ ‖∂D(real)/∂real‖² ]

Nothing is hidden or drawn, and a loss that is not finite is returned as it is, for the trainer to stop on.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scott.choices import unknown
from scott.diffusion import Denoiser, NoiseSchedule
from scott.errors import UserError


@dataclass(frozen=True)
class DiscriminatorLoss:
    """Scalars; the accuracies are the fractions of logits with the right sign."""

    loss: Tensor
    real_accuracy: Tensor
    fake_accuracy: Tensor


@torch.no_grad()
def consistency_target(target_student: Denoiser, x_m: Tensor, t_m: Tensor, cond: Any) -> Tensor:
    """f_θ⁻(ẑ_tm, t_m) without gradient, like x_m (B, ...); ω, where the student takes it, travels in cond.

    The target student has the boundary built in, so on clean data the target is x_m itself.
    """
    return target_student(x_m, t_m, cond)


def consistency_loss(
    prediction: Tensor,
    target: Tensor,
    kind: str = "l2",
    huber_c: float = 1e-3,
    weight: Tensor | None = None,
) -> Tensor:
    """L_CD, a scalar: the mean over samples of w d, in float32 at least.

    With δ = prediction − target and the mean over a sample's elements,
    l2: d = mean δ²;  l1: d = mean |δ|;  huber: d = mean (sqrt(δ² + c²) − c).

    Args:
        prediction, target: (B, ...); no gradient goes through the target.
        kind: l2 (the paper's) | l1 | huber.
        huber_c: c, in units of the data.
        weight: w(t_n), (B,); 1 if not given.

    Raises:
        UserError: an unknown kind, prediction and target of different shapes, or a weight of another than (B,).
    """
    if prediction.shape != target.shape:
        raise UserError(
            f"got prediction {tuple(prediction.shape)} and target {tuple(target.shape)}; expected one shape. "
            "Broadcasting them would compare every sample with every other."
        )
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    delta = prediction.to(dtype) - target.detach().to(dtype)
    match kind:
        case "l2":
            distance = delta**2
        case "l1":
            distance = delta.abs()
        case "huber":
            distance = (delta**2 + huber_c**2).sqrt() - huber_c
        case _:
            raise unknown("consistency loss", kind, ("l2", "l1", "huber"))
    return _mean(distance.flatten(1).mean(1), weight)


def _mean(per_sample: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return per_sample.mean()
    if weight.shape != per_sample.shape:
        raise UserError(
            f"got a weight of shape {tuple(weight.shape)}; expected one a sample, {tuple(per_sample.shape)}. "
            "Broadcasting another may weight every sample by every other's."
        )
    return (per_sample * weight.to(per_sample)).mean()


def loss_weight(kind: str, schedule: NoiseSchedule, t_n: Tensor, times: Tensor) -> Tensor:
    """w(t_n), (B,) in float64, with mean 1 over `times`, those that t_n is drawn from: `JumpGrid.trained_times`.

    uniform: 1.  snr+1: in proportion to α²/σ² + 1 (Salimans & Ho 2022, section 4). An error of the variance-preserving
    kind's x0 by δ is one of its v by δ/σ, so w d is what an L2 loss of v would be.

    Raises:
        UserError: an unknown kind, or a time of clean data, whose snr is infinite.
    """
    if kind == "uniform":
        return torch.ones(t_n.shape, dtype=torch.float64)
    if kind != "snr+1":
        raise unknown("weighting", kind, ("uniform", "snr+1"))
    own, mean = 1 + schedule.lam(t_n) ** -2, (1 + schedule.lam(times) ** -2).mean()
    if own.isinf().any() or mean.isinf():
        raise UserError("got a time of clean data, whose snr is infinite; expected those of grid.trained_times")
    return own / mean


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> DiscriminatorLoss:
    """L_D = E[max(0, 1 − D(real))] + E[max(0, 1 + D(fake))] for logits of any shape."""
    loss = torch.relu(1 - real_logits).mean() + torch.relu(1 + fake_logits).mean()
    return DiscriminatorLoss(loss, (real_logits > 0).float().mean(), (fake_logits < 0).float().mean())


def hinge_generator(fake_logits: Tensor, weight: Tensor | None = None) -> Tensor:
    """L_adv = −E[w D(fake)] for logits (B, ...) and weights w(t_n) (B,), 1 if not given.

    Raises:
        UserError: a weight of another shape.
    """
    return -_mean(fake_logits.reshape(len(fake_logits), -1).mean(1), weight)


def r1_penalty(logits: Tensor, logits_nearby: Tensor, distance: float) -> Tensor:
    """R1 (Mescheder et al. 2018) without a second derivative: E[½ (D(x + δ w) − D(x))² / δ²], w ~ N(0, I).

    Over w this is ½ ‖∂D/∂x‖² to first order in δ (Lin et al. 2025, section 3.4). D is the mean of a sample's logits.

    Args:
        logits, logits_nearby: those of x and of x + δ w, (B, ...).
        distance: δ, in units of the data.
    """
    change = (logits_nearby - logits).reshape(len(logits), -1).mean(1) / distance
    return 0.5 * change.square().mean()
