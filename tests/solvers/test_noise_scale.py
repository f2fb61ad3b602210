"""The φ table, its integrals against scipy's quadrature, and what a φ of one's own must satisfy."""

import math

import pytest
import torch
from scipy.integrate import quad

from scott.diffusion import DiscreteSchedule, FlowSchedule, JumpGrid
from scott.errors import UserError
from scott.solvers import NOISE_SCALES, make
from scott.solvers.base import LAM_NOISE, Span
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


@pytest.mark.parametrize("phi", sorted(NOISE_SCALES))
def test_nothing_is_redrawn_above_the_level_stable_diffusion_starts_at(phi):
    flow = FlowSchedule()
    for name, options in (("er-sde", {"phi": phi}), ("dpmpp-sde", {"eta": 0.7})):
        solver = make(name, flow, **options)
        # λ = ∞, 99, 19 → 49, 19, 15.7: all above 14.6
        s, t = (torch.tensor(times, dtype=torch.float64) for times in ([1.0, 0.99, 0.95], [0.98, 0.95, 0.94]))
        assert torch.equal(solver.kept_noise(Span.between(flow, s, t)), torch.ones(3, dtype=torch.float64))


def test_stable_diffusions_whole_schedule_is_below_that_level():
    schedule = DiscreteSchedule.stable_diffusion()
    top = schedule.lam(torch.tensor([999])).item()
    assert LAM_NOISE - 0.001 < top < LAM_NOISE


SCHEDULES = {
    "sd": DiscreteSchedule.stable_diffusion(),
    "pixart": DiscreteSchedule("linear", 0.0001, 0.02),
    "zero snr": DiscreteSchedule("scaled_linear", 0.00085, 0.012, rescale_betas_zero_snr=True, prediction_type="v"),
    "flow": FlowSchedule(3.0),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(
    ("name", "options"),
    [("er-sde", {"phi": "5"}), ("er-sde", {"phi": "4"}), ("ddim", {"eta": 0.2}), ("dpmpp-sde", {"eta": 0.2})],
    ids=str,
)
def test_a_jumps_end_depends_on_where_it_began_at_every_time_of_the_grid(schedule, name, options):
    """With a denoiser that says 0, x_m is the kept noise and the redrawn: their parts are read off two starts."""
    grid, solver = JumpGrid(schedule), make(name, schedule, **options)
    t_n = grid.times[grid.substeps + 1 :]
    still = [torch.zeros(len(t_n), 1, dtype=torch.float64)] * grid.substeps
    ends = [
        solver.walk(lambda x, t, cond: torch.zeros_like(x), start, grid.substep_times(t_n), None, noises=still)
        for start in (torch.zeros(len(t_n), 1, dtype=torch.float64), schedule.sigma(t_n)[:, None])
    ]
    kept = ((ends[1] - ends[0])[:, 0] / schedule.sigma(grid.target(t_n))).squeeze()
    assert kept.min() > 0.2
    assert kept[-1] > 0.9  # of the first jump, from the highest time
