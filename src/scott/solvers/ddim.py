"""DDIM with noise strength η (Song et al. 2021, eq. 12 and 16)."""

from torch import Tensor

from scott.diffusion import NoiseSchedule
from scott.solvers.base import Solver, Span, nonnegative


class DDIM(Solver):
    """v = η² σ_t² (1 − λ_t² / λ_s²), so q² = 1 − η² (1 − ρ²).

    With v = σ(η)², the paper's σ(η) = η sqrt((1 − ᾱ_t) / (1 − ᾱ_s)) sqrt(1 − ᾱ_s / ᾱ_t). η = 0 is the ODE,
    η = 1 ancestral sampling. Small steps of DDIM-η follow the SDE of φ(λ) = λ^{1 + η²}.

    Raises:
        UserError: η is not in [0, 1].
    """

    memory = 0
    order = 1

    def __init__(self, schedule: NoiseSchedule, *, eta: float = 0.0) -> None:
        super().__init__(schedule)
        self.eta = nonnegative("eta", eta, upper=1.0)
        self.stochastic = self.eta > 0

    def kept_noise(self, span: Span) -> Tensor:
        return (1 - self.eta**2 * (1 - span.rho**2)).sqrt()
