"""The formulas as they are usually written, and the identities between the solvers."""

import pytest
import torch

from scott.diffusion import DiscreteSchedule, FlowSchedule
from scott.solvers import NOISE_SCALES, make
from teachers import mixture

SD = DiscreteSchedule.stable_diffusion()
MIXTURE = mixture(SD, [-1.0, 0.3, 1.5], 0.4)
S, T = torch.tensor([999, 503, 103, 39]), torch.tensor([751, 495, 95, 31])
X = torch.tensor([0.3, -0.8, 1.1, 0.9], dtype=torch.float64)
W = torch.tensor([1.0, -0.5, 0.2, 2.0], dtype=torch.float64)


def one_step(solver, noise=W):
    return solver.step(MIXTURE, X, S, T, None, noise)[0]


def close(first, second):
    torch.testing.assert_close(first, second, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.1, 0.2, 0.6, 1.0])
def test_ddim_as_the_paper_writes_it(eta):
    bar_s, bar_t = SD.alpha(S) ** 2, SD.alpha(T) ** 2
    sigma_eta = eta * ((1 - bar_t) / (1 - bar_s)).sqrt() * (1 - bar_s / bar_t).sqrt()
    x0 = MIXTURE(X, S, None)
    eps = (X - bar_s.sqrt() * x0) / (1 - bar_s).sqrt()
    close(
        one_step(make("ddim", SD, eta=eta)),
        bar_t.sqrt() * x0 + (1 - bar_t - sigma_eta**2).sqrt() * eps + sigma_eta * W,
    )


@pytest.mark.parametrize("phi", ["1", "2", "3", "4", "5"])
def test_er_sde_as_usually_written(phi):
    lam_s, lam_t = SD.lam(S), SD.lam(T)
    r = NOISE_SCALES[phi](lam_t) / NOISE_SCALES[phi](lam_s)
    x0, alpha_s, alpha_t = MIXTURE(X, S, None), SD.alpha(S), SD.alpha(T)
    usual = alpha_t / alpha_s * r * X + alpha_t * (1 - r) * x0 + alpha_t * (lam_t**2 - r**2 * lam_s**2).sqrt() * W
    close(one_step(make("er-sde", SD, phi=phi, order=1)), usual)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 2.0])
def test_dpmpp_is_er_sde_with_a_power(eta):
    er_sde = make("er-sde", SD, phi=lambda lam: lam ** (1 + eta), order=1)
    close(one_step(make("dpmpp-sde", SD, eta=eta, order=1)), one_step(er_sde))


def test_square_is_ancestral_ddim():
    close(one_step(make("er-sde", SD, phi=lambda lam: lam**2, order=1)), one_step(make("ddim", SD, eta=1)))


def test_er_sde_terms_as_usually_written():
    """Orders 2 and 3 for φ(λ) = λ²: I1 = 1/λ_t − 1/λ_s and I2 = log(λ_s/λ_t) + 1 − λ_s/λ_t."""
    times = torch.tensor([799, 699, 599, 499])
    lam, alpha = SD.lam(times), SD.alpha(times)
    outs, seen = {}, {}
    for order in (1, 2, 3):
        solver, x, history, seen = make("er-sde", SD, phi=lambda lam: lam**2, order=order), X, None, []

        def recorded(x, t, cond, seen=seen):
            seen.append(MIXTURE(x, t, cond))
            return seen[-1]

        for k in range(3):
            before = x
            x, history = solver.step(recorded, x, times[k].expand(4), times[k + 1].expand(4), None, W, history)
        first_order, _ = make("er-sde", SD, phi=lambda lam: lam**2, order=1).step(
            MIXTURE, before, times[2].expand(4), times[3].expand(4), None, W
        )
        outs[order] = (x - first_order, seen)
    lam_pp, lam_p, lam_s, lam_t = lam
    i1, i2 = 1 / lam_t - 1 / lam_s, (lam_s / lam_t).log() + 1 - lam_s / lam_t
    for order in (1, 2, 3):
        added, (x0_pp, x0_p, x0) = outs[order]
        d1, d1_p = (x0 - x0_p) / (lam_s - lam_p), (x0_p - x0_pp) / (lam_p - lam_pp)
        d2 = 2 * (d1 - d1_p) / (lam_s - lam_pp)
        term_2 = alpha[3] * (lam_t - lam_s + lam_t**2 * i1) * d1
        term_3 = alpha[3] * ((lam_t - lam_s) ** 2 / 2 + lam_t**2 * i2) * d2
        torch.testing.assert_close(
            added, [0, 1, 1][order - 1] * term_2 + [0, 0, 1][order - 1] * term_3, rtol=1e-8, atol=1e-12
        )


def test_no_noise_is_the_ode_to_the_bit():
    nan = torch.full_like(X, float("nan"))
    ode = one_step(make("ddim", SD, eta=0), noise=None)
    for name, options in (
        ("ddim", {"eta": 0}),
        ("dpmpp-sde", {"eta": 0, "order": 1}),
        ("er-sde", {"phi": "ode", "order": 1}),
    ):
        assert torch.equal(one_step(make(name, SD, **options), noise=nan), ode)


def test_pure_noise_is_the_limit_of_nearly_pure_noise():
    """At α_s = 0 a step equals the limit s → t_max, for every φ that has one."""
    flow = FlowSchedule()
    denoiser = mixture(flow, [-1.0, 0.3, 1.5], 0.4)
    t = torch.full((4,), 0.9, dtype=torch.float64)
    for name, options in (
        ("ddim", {"eta": 0.2}),
        ("ddim", {"eta": 1.0}),
        ("dpmpp-sde", {"eta": 1.0}),
        *(("er-sde", {"phi": phi}) for phi in ("ode", "1", "2", "3", "5")),
    ):
        solver = make(name, flow, **options)
        at, near = (
            solver.step(denoiser, X, torch.full((4,), s, dtype=torch.float64), t, None, W)[0] for s in (1.0, 1 - 1e-12)
        )
        torch.testing.assert_close(at, near, rtol=0, atol=1e-4)
