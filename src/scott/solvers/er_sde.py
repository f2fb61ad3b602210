"""Extended reverse-time SDE solvers of order 1 to 3 with a noise-scale function φ (Cui et al. 2023)."""

import torch
from torch import Tensor

from scott.diffusion import NoiseSchedule, expand_like
from scott.errors import UserError
from scott.solvers.base import LAM_NOISE, Solver, Span, one_of_orders
from scott.solvers.noise_scale import (
    NoiseScale,
    bounded,
    check_noise_scale,
    growth,
    integral_1,
    integral_2,
    noise_scale,
)


class ERSDE(Solver):
    """v = α_t² (λ_t² − r² λ_s²) with r = φ(λ_t) / φ(λ_s), so q = g(λ_t) / g(λ_s) with g(λ) = φ(λ) / λ.

    It is usually written x_t = (α_t / α_s) r x_s + α_t (1 − r) x̂0 + α_t sqrt(λ_t² − r² λ_s²) w. Higher
    orders add

        order 2:  α_t [λ_t − λ_s + φ(λ_t) I1] D1              D1 = (x̂0 − x̂0_prev) / (λ_s − λ_prev)
        order 3:  α_t [(λ_t − λ_s)² / 2 + φ(λ_t) I2] D2       D2 = 2 (D1 − D1_prev) / (λ_s − λ_prevprev)

    with I1, I2 of `noise_scale`; "5" at order 2 is the paper's best. A step to clean data (I1 = ∞) is first order.
    φ is taken with g(min(λ, LAM_NOISE)): nothing is redrawn above, where a φ whose g is unbounded would keep nothing
    of pure noise (λ_s = ∞).

    D1 is a one-sided difference, so the third order as published converges like the second, with a smaller
    error.

    Raises:
        UserError: an unknown φ or order, or a φ of one's own whose variance is negative on this schedule.
    """

    def __init__(self, schedule: NoiseSchedule, *, phi: str | NoiseScale = "5", order: int = 2) -> None:
        super().__init__(schedule)
        self.phi = bounded(noise_scale(phi), LAM_NOISE)
        self.memory = one_of_orders(order, highest=3) - 1
        self.order = min(order, 2)
        self.stochastic = phi != "ode"
        if callable(phi):
            steps = torch.arange(schedule.training_steps + 1, dtype=torch.float64)
            span = schedule.t_max - schedule.t_data
            lam = schedule.lam(schedule.t_data + span * steps / schedule.training_steps)
            check_noise_scale(self.phi, lam[(lam > 0) & lam.isfinite()])

    def kept_noise(self, span: Span) -> Tensor:
        q = growth(self.phi, span.lam_t) / growth(self.phi, span.lam_s)
        if bool((negative := q > 1 + 1e-9).any()):
            raise UserError(
                f"got a step from lam {span.lam_s[negative][0]:.4g} to {span.lam_t[negative][0]:.4g}, where "
                "the variance of this phi is negative; expected phi(lam) / lam not to fall. Use another phi."
            )
        return q.clamp(max=1)

    def correction(self, span: Span, x0: tuple[Tensor, ...], lam: tuple[Tensor, ...]) -> Tensor:
        lands = span.lam_t == 0
        lam_s, lam_t = span.lam_s, torch.where(lands, span.lam_s, span.lam_t)
        phi_t = self.phi(lam_t)
        weight_1 = torch.where(lands, 0, span.alpha_t * (lam_t - lam_s + phi_t * integral_1(self.phi, lam_t, lam_s)))
        slope = weight_1 / (lam[0] - lam[1])
        if len(x0) == 2:
            return expand_like(slope, x0[0]) * (x0[0] - x0[1])
        weight_2 = span.alpha_t * ((lam_t - lam_s) ** 2 / 2 + phi_t * integral_2(self.phi, lam_t, lam_s))
        curve = torch.where(lands, 0, 2 * weight_2 / (lam[0] - lam[2]))
        newer, older = slope + curve / (lam[0] - lam[1]), curve / (lam[1] - lam[2])
        return expand_like(newer, x0[0]) * (x0[0] - x0[1]) - expand_like(older, x0[0]) * (x0[1] - x0[2])
