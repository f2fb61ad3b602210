"""Every solver converges to the exact answer at the order it declares, and keeps the marginals."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.interpolate import CubicSpline
from scipy.stats import norm

from scott.diffusion import DiscreteSchedule, FlowSchedule
from scott.solvers import NOISE_SCALES, make
from teachers import gaussian, marginal_variance, mixture

FLOW = FlowSchedule()
STD = 0.5
S, T = torch.tensor([0.9, 0.1], dtype=torch.float64)
STEPS = [32, 64, 128, 256]

DETERMINISTIC = [
    ("ddim", {"eta": 0.0}),
    ("dpmpp-sde", {"eta": 0.0, "order": 1}),
    ("dpmpp-sde", {"eta": 0.0, "order": 2}),
    *(("er-sde", {"phi": "ode", "order": order}) for order in (1, 2, 3)),
]
# With the exponent p of the φ(λ) = λ^p whose SDE small steps follow; None where φ is no power.
STOCHASTIC = [
    ("ddim", {"eta": 0.2}, 1.04),
    ("ddim", {"eta": 0.6}, 1.36),
    ("dpmpp-sde", {"eta": 0.5, "order": 1}, 1.5),
    ("dpmpp-sde", {"eta": 1.0, "order": 2}, 2.0),
    ("dpmpp-sde", {"eta": 0.3, "order": 2}, 1.3),
    *(("er-sde", {"phi": "2", "order": order}, 1.5) for order in (1, 2, 3)),
    *(("er-sde", {"phi": "5", "order": order}, None) for order in (1, 2, 3)),
    ("er-sde", {"phi": "4", "order": 1}, None),
]


def walk(solver, denoiser, x, steps, noises=None):
    times, history = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64), None
    for k in range(steps):
        s, t = times[k].expand(len(x)), times[k + 1].expand(len(x))
        noise = None if noises is None else noises[k]
        x, history = solver.step(denoiser, x, s, t, None, noise, history)
    return x


def slope(errors):
    return -np.polyfit(np.log(STEPS), np.log(np.abs(errors)), 1)[0]


@pytest.mark.parametrize(("name", "options"), DETERMINISTIC, ids=str)
def test_deterministic_order_on_a_gaussian(name, options):
    """x_t = x_s sqrt(v_t / v_s) solves the ODE."""
    solver = make(name, FLOW, **options)
    exact = (marginal_variance(FLOW, STD, T) / marginal_variance(FLOW, STD, S)).sqrt().item()
    x = torch.ones(1, 1, dtype=torch.float64)
    errors = [walk(solver, gaussian(FLOW, STD), x, steps).item() - exact for steps in STEPS]
    assert slope(errors) == pytest.approx(solver.order, abs=0.2)


@pytest.mark.parametrize(("name", "options"), DETERMINISTIC, ids=str)
def test_deterministic_order_on_a_mixture(name, options):
    """dx/dt = α' x̂0 + σ' ε̂ = ε̂ − x̂0, integrated to 1e-12 elsewhere."""
    solver, denoiser = make(name, FLOW, **options), mixture(FLOW, [-1.0, 0.3, 1.5], 0.4)

    def velocity(t, x):
        x, t = torch.from_numpy(x), torch.full((len(x),), t, dtype=torch.float64)
        x0 = denoiser(x, t, None)
        return ((x - (1 - t) * x0) / t - x0).numpy()

    x = torch.linspace(-1.5, 1.8, 7, dtype=torch.float64)
    exact = solve_ivp(velocity, (0.9, 0.1), x.numpy(), method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    errors = [np.abs(walk(solver, denoiser, x, steps).numpy() - exact).mean() for steps in STEPS]
    assert slope(errors) == pytest.approx(solver.order, abs=0.3)


@pytest.mark.parametrize(("name", "options", "power"), STOCHASTIC, ids=str)
def test_weak_order_on_a_gaussian(name, options, power):
    """A linear teacher makes x_t linear in x_s and the noises: a batch of unit vectors gives its moments.

    Exactly, with y = x/α: d log y = λ² / (s² + λ²) d log φ, and the variance is the marginal's.
    """
    solver = make(name, FLOW, **options)
    lam_s, lam_t = FLOW.lam(S).item(), FLOW.lam(T).item()
    if power is None:
        phi = NOISE_SCALES[options["phi"]]

        def integrand(lam):
            h = 1e-5 * lam
            ends = phi(torch.tensor([lam - h, lam + h], dtype=torch.float64)).log().tolist()
            return lam**2 / (STD**2 + lam**2) * (ends[1] - ends[0]) / (2 * h)

        decay = math.exp(-quad(integrand, lam_t, lam_s, epsrel=1e-10)[0])
    else:
        decay = ((STD**2 + lam_t**2) / (STD**2 + lam_s**2)) ** (power / 2)
    exact_mean = (FLOW.alpha(T) / FLOW.alpha(S)).item() * decay
    v_s, v_t = marginal_variance(FLOW, STD, S).item(), marginal_variance(FLOW, STD, T).item()

    mean_errors, variance_errors = [], []
    for steps in STEPS:
        basis = torch.eye(1 + steps, dtype=torch.float64)
        out = walk(solver, gaussian(FLOW, STD), basis[0][:, None], steps, basis[1:, :, None])[:, 0]
        mean_errors.append(out[0].item() - exact_mean)
        variance_errors.append((out[0] ** 2 * v_s + out[1:].square().sum()).item() - v_t)
    for errors in (mean_errors, variance_errors):
        assert max(np.abs(errors)) < 1e-9 or slope(errors) > solver.order - 0.3


FIRST_ORDER = [(name, options) for name, options, _ in STOCHASTIC if options.get("order", 1) == 1]


@pytest.mark.parametrize(("name", "options"), FIRST_ORDER, ids=str)
@pytest.mark.parametrize("function", [np.square, np.sin], ids=["square", "sine"])
def test_weak_order_on_a_mixture(name, options, function):
    """E[g(x_t)] from x_s ~ p_s, without sampling: u_K = g, u_k(x) = E_w[u_{k+1}(m_k(x) + s_k w)] by Gauss-Hermite on
    a spline, and the exact answer is p_t's. (With a memory of earlier steps, x alone is no Markov chain.)"""
    solver, means, std = make(name, FLOW, **options), np.array([-1.0, 0.3, 1.5]), 0.4
    denoiser = mixture(FLOW, means.tolist(), std)
    grid = np.linspace(-9, 9, 2401)
    x = torch.from_numpy(grid)
    nodes, weights = np.polynomial.hermite_e.hermegauss(15)
    weights = weights / weights.sum()

    def expectation(values, t):
        alpha, spread = FLOW.alpha(t).item(), (FLOW.alpha(t) ** 2 * std**2 + FLOW.sigma(t) ** 2).sqrt().item()
        density = norm.pdf(grid[:, None], alpha * means, spread).mean(1)
        return (density * values).sum() * (grid[1] - grid[0])

    errors = []
    for steps in STEPS:
        times, u = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64), function(grid)
        for k in reversed(range(steps)):
            ends = (times[k].expand(len(x)), times[k + 1].expand(len(x)))
            low, high = (
                solver.step(denoiser, x, *ends, None, torch.full_like(x, w), None)[0].numpy() for w in (0.0, 1.0)
            )
            reached = low[:, None] + (high - low)[:, None] * nodes
            u = CubicSpline(grid, u)(np.clip(reached, grid[0], grid[-1])) @ weights
        errors.append(expectation(u, S) - expectation(function(grid), T))
    assert slope(errors) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("name", "options"), [*DETERMINISTIC, *(case[:2] for case in STOCHASTIC)], ids=str)
@pytest.mark.parametrize(
    ("schedule", "s", "t"),
    [
        (DiscreteSchedule.stable_diffusion(), 999, 503),
        (DiscreteSchedule.stable_diffusion(), 7, -1),
        (DiscreteSchedule("scaled_linear", 0.00085, 0.012, rescale_betas_zero_snr=True), 999, 991),
        (FLOW, 1.0, 0.5),
        (FLOW, 1.0, 0.0),
    ],
)
def test_one_step_keeps_the_marginal_of_one_point(schedule, s, t, name, options):
    """Data that is a point c has x̂0 = c; then x_t ~ N(α_t c, σ_t²) exactly, whatever the step."""
    solver, c = make(name, schedule, **options), 1.7
    s, t = torch.tensor([s] * 3), torch.tensor([t] * 3)
    eps = torch.tensor([0.0, 1.0, 0.0]).double()
    noise = torch.tensor([0.0, 0.0, 1.0]).double()
    x = schedule.alpha(s) * c + schedule.sigma(s) * eps
    out, _ = solver.step(lambda x, t, cond: torch.full_like(x, c), x, s, t, None, noise)
    mean, kept, fresh = out[0], out[1] - out[0], out[2] - out[0]
    torch.testing.assert_close(mean, schedule.alpha(t)[0] * c, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(kept**2 + fresh**2, schedule.sigma(t)[0] ** 2, rtol=1e-11, atol=1e-14)
