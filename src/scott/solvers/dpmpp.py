"""SDE-DPM-Solver++ of first and second order, multistep, with noise strength η (Lu et al. 2022, appendix)."""

import torch
from torch import Tensor

from scott.diffusion import NoiseSchedule, expand_like
from scott.solvers.base import LAM_NOISE, Solver, Span, nonnegative, one_of_orders


class DPMPlusPlusSDE(Solver):
    """q = ρ^η, that is φ(λ) = λ^{1 + η}; order 2 adds ½ α_t (1 − ρ q) (h / h_last) (x̂0 − x̂0_prev).

    Nothing is redrawn above LAM_NOISE: q = (min(λ_t, LAM_NOISE) / min(λ_s, LAM_NOISE))^η. h = log(λ_s / λ_t) and
    h_last = log(λ_prev / λ_s). η = 1 is SDE-DPM-Solver++, η = 0 the ODE solver DPM-Solver++. A step to clean data
    (h = ∞) is first order, and so is the second step from pure noise (h_last = ∞).

    Raises:
        UserError: η is negative, or the order is not 1 or 2.
    """

    def __init__(self, schedule: NoiseSchedule, *, eta: float = 1.0, order: int = 2) -> None:
        super().__init__(schedule)
        self.eta = nonnegative("eta", eta)
        self.order = one_of_orders(order, highest=2)
        self.memory = self.order - 1
        self.stochastic = self.eta > 0

    def kept_noise(self, span: Span) -> Tensor:
        return (span.lam_t.clamp(max=LAM_NOISE) / span.lam_s.clamp(max=LAM_NOISE)) ** self.eta

    def correction(self, span: Span, x0: tuple[Tensor, ...], lam: tuple[Tensor, ...]) -> Tensor:
        h, h_last = (span.lam_s / span.lam_t).log(), (lam[1] / lam[0]).log()
        weight = span.alpha_t / 2 * (1 - span.rho * self.kept_noise(span)) * h / h_last
        return expand_like(torch.where(span.lam_t > 0, weight, 0), x0[0]) * (x0[0] - x0[1])
