"""Whole trajectories beside diffusers' schedulers, on the same noise and a nonlinear network."""

import diffusers
import pytest
import torch

from scott.diffusion import DiscreteSchedule, expand_like, to_x0
from scott.solvers import make

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD = DiscreteSchedule.stable_diffusion()


def network(x, t):
    """A smooth stand-in for an ε-network: close to the true ε of unit Gaussian data, and not linear."""
    sigma_t = expand_like(SD.sigma(t), x)
    return sigma_t * x + 0.1 * torch.sin(3 * x + expand_like(t / 100, x))


def denoiser(x, t, cond):
    return to_x0("epsilon", network(x, t), x, SD.alpha(t), SD.sigma(t))


def walk(solver, x, noises):
    history = None
    for k, noise in enumerate(noises):
        s = torch.full((len(x),), 999 - 8 * k)
        x, history = solver.step(denoiser, x, s, s - 8, None, noise, history)
        yield x


def draws():
    generator = torch.Generator().manual_seed(0)
    x, *noises = torch.randn(126, 4, 3, 5, generator=generator, dtype=torch.float64)
    return x, noises


@pytest.mark.parametrize("eta", [0.0, 0.2, 1.0])
def test_ddim(eta):
    scheduler = diffusers.DDIMScheduler(**LATENT, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(125)
    x, noises = draws()
    theirs = x
    for t, noise, ours in zip(scheduler.timesteps, noises, walk(make("ddim", SD, eta=eta), x, noises), strict=True):
        output = network(theirs, t.expand(len(x)))
        theirs = scheduler.step(output, int(t), theirs, eta=eta, variance_noise=noise if eta else None).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("eta", [0, 1])
def test_dpmpp(eta, order):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **LATENT,
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        solver_order=order,
        solver_type="midpoint",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(125)
    x, noises = draws()
    theirs = x
    solver = make("dpmpp-sde", SD, eta=eta, order=order)
    for t, noise, ours in zip(scheduler.timesteps, noises, walk(solver, x, noises), strict=True):
        output = network(theirs, t.expand(len(x)))
        theirs = scheduler.step(output, t, theirs, variance_noise=noise).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
