"""The φ table, its integrals against scipy's quadrature, and what a φ of one's own must satisfy."""

import math

import pytest
import torch
from scipy.integrate import quad

from scott.diffusion import DiscreteSchedule, FlowSchedule
from scott.errors import UserError
from scott.solvers import NOISE_SCALES, make
from scott.solvers.noise_scale import growth, integral_1, integral_2

PAPER = {
    "ode": lambda x: x,
    "1": lambda x: x * (math.exp(-1 / x) + 10),
    "2": lambda x: x**1.5,
    "3": lambda x: x**2.5,
    "4": lambda x: x**0.9 * math.log10(1 + 100 * x**1.5),
    "5": lambda x: x * (math.exp(x**0.3) + 10),
}
SPANS = [(0.03, 0.06), (0.06, 0.0601), (0.5, 14.6), (0.01, 14.6), (1e-3, 1e3), (100.0, 999.0)]


@pytest.mark.parametrize("name", PAPER)
def test_table(name):
    x = torch.logspace(-3, 3, 50, dtype=torch.float64)
    expected = torch.tensor([PAPER[name](value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(NOISE_SCALES[name](x), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", PAPER)
def test_integrals(name):
    lam_t, lam_s = torch.tensor(SPANS, dtype=torch.float64).T
    ours = zip(
        integral_1(NOISE_SCALES[name], lam_t, lam_s),
        integral_2(NOISE_SCALES[name], lam_t, lam_s),
        strict=True,
    )
    for (low, high), (i1, i2) in zip(SPANS, ours, strict=True):

        def integral(f, low=low, high=high):
            return quad(lambda u: math.exp(u) * f(math.exp(u)), math.log(low), math.log(high), epsrel=1e-12, limit=500)[
                0
            ]

        assert i1.item() == pytest.approx(integral(lambda x: 1 / PAPER[name](x)), rel=1e-8)
        assert i2.item() == pytest.approx(integral(lambda x, s=high: (x - s) / PAPER[name](x)), rel=1e-8)


def test_growth_has_its_limits():
    ends = torch.tensor([0.0, float("inf")], dtype=torch.float64)
    limits = {"ode": [1, 1], "1": [10, 11], "5": [11, float("inf")]}
    for name, expected in limits.items():
        assert growth(NOISE_SCALES[name], ends).tolist() == expected
    assert growth(NOISE_SCALES["2"], ends)[0] < 1e-90
    assert growth(NOISE_SCALES["2"], ends)[1] > 1e90


@pytest.mark.parametrize(
    ("phi", "message"),
    [
        (lambda lam: -lam, "expected phi > 0"),
        (lambda lam: lam * float("nan"), "expected phi > 0"),
        (lambda lam: lam**0.5, "falls from lam"),
        (lambda lam: lam * (2 + torch.sin(lam)), "falls from lam"),
    ],
)
def test_a_phi_with_negative_variance_is_refused(phi, message):
    with pytest.raises(UserError, match=message):
        make("er-sde", DiscreteSchedule.stable_diffusion(), phi=phi)


def test_phi_4_redraws_all_noise_from_pure_noise():
    """φ₄(λ)/λ falls to 0 beyond λ = 1000, so its limit would ask for a negative variance."""
    flow, s, t = FlowSchedule(), torch.tensor([1.0, 1.0]), torch.tensor([0.9, 0.9])
    x, noise = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    out, _ = make("er-sde", flow, phi="4").step(lambda x, t, cond: torch.zeros_like(x), x, s, t, None, noise)
    torch.testing.assert_close(out, torch.tensor([0.0, 0.9]))
