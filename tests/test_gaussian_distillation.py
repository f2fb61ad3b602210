"""A linear student, distilled by SCott on Gaussian data, lands where the closed form says.

Data is N(0, s²) and the teacher exact, so the L2 optimum is f(x, t) = a_t x, and a one-step sample's
standard deviation over the data's is a_999 sqrt(v_999) / s. Squared error shrinks it below 1 as the noise
grows: the fixed point of strong noise is the posterior mean. The student is trained jump by jump from clean
data upwards; its loss is a parabola in a_t, so one Newton step on the loss is training to convergence.
"""

import dataclasses

import pytest
import torch

from scott.data.batch import Batch
from scott.diffusion import DiscreteSchedule, c_out, c_skip, expand_like
from scott.objective import consistency_loss, consistency_target
from scott.recipes.configs import mini
from scott.solvers import make
from scott.training.draws import Draws
from scott.training.step import Distillation

SD = DiscreteSchedule.stable_diffusion()
SAMPLES = 100_000
SOLVERS = {
    "ddim-0": ("ddim", {"eta": 0.0}),
    "ddim-.2": ("ddim", {"eta": 0.2}),
    "ddim-.6": ("ddim", {"eta": 0.6}),
    "er-sde-5": ("er-sde", {"phi": "5", "order": 1}),
}
TABLE = {
    1.0: {"ddim-0": 0.989, "ddim-.2": 0.891, "ddim-.6": 0.385, "er-sde-5": 0.660},
    0.5: {"ddim-0": 0.978, "ddim-.2": 0.859, "ddim-.6": 0.300, "er-sde-5": 0.626},
    0.2: {"ddim-0": 0.933, "ddim-.2": 0.793, "ddim-.6": 0.213, "er-sde-5": 0.575},
}


def variance(s, t):
    return SD.alpha(t) ** 2 * s**2 + SD.sigma(t) ** 2


def teacher(s):
    def denoiser(x, t, cond):
        return expand_like(SD.alpha(t) * s**2 / variance(s, t), x) * x

    return denoiser


def distil(solver, s, generator):
    """a_999, by jumps of 24 in 3 sub-steps down to t = 15, which walks 15, 7, 0 and on to clean data."""
    denoiser = teacher(s)
    a = {-1: torch.ones(1, dtype=torch.float64)}

    def target_student(x, t, cond):
        return a[int(t[0])] * x

    def train(t_n, t_m, walk):
        noise = torch.randn(2, SAMPLES, 1, generator=generator, dtype=torch.float64)
        t_n, t_m = torch.full((SAMPLES,), t_n), torch.full((SAMPLES,), t_m)
        x_n = SD.add_noise(s * noise[0], noise[1], t_n)
        target = consistency_target(target_student, walk(x_n, t_n, t_m), t_m, None)
        a_n = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        loss = consistency_loss(a_n * x_n, target)
        (slope,) = torch.autograd.grad(loss, a_n, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, a_n)
        a[int(t_n[0])] = (-slope / curvature).detach()

    def step(x, t_n, t_m):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return solver.step(denoiser, x, t_n, t_m, None, noise)[0]

    def jump(x, t_n, t_m):
        return solver.jump(denoiser, x, t_n, t_m, 3, None, generator)

    for t_n, t_m in ((0, -1), (7, 0), (15, 7)):
        train(t_n, t_m, step)
    for t_n in range(39, 1000, 24):
        train(t_n, t_n - 24, jump)
    return a[999].item()


@pytest.mark.parametrize("s", TABLE)
@pytest.mark.parametrize("name", SOLVERS)
def test_table(name, s):
    solver, options = SOLVERS[name]
    a = distil(make(solver, SD, **options), s, torch.Generator().manual_seed(0))
    spread = a * variance(s, torch.tensor(999)).sqrt().item() / s
    assert spread == pytest.approx(TABLE[s][name], rel=0.02)


class Linear:
    """A backbone whose student is one number a grid time, x̂0 = a_i x, and whose teacher is exact (N(0, s²) data)."""

    schedule, size_names = SD, ()

    def __init__(self, s, grid):
        self.s, self.grid = s, grid
        self.a = torch.zeros(len(grid.times), dtype=torch.float64, requires_grad=True)

    def teacher(self, x, t, cond):
        return (SD.alpha(t) * self.s**2 / variance(self.s, t))[:, None] * x

    def guided_teacher(self, uncond, omega, low_memory):
        return self.teacher

    def student(self, x, t, cond):
        return self.a[torch.searchsorted(self.grid.times, t)][:, None] * x

    target = student

    def student_parameters(self):
        return {"a": self.a}


def mean_factor(name, s, later, earlier):
    """E[z_t | z_s] / z_s of one first-order sub-step, with x̂0 = α s² z / v and ε̂ = σ z / v."""
    alpha, sigma, lam = (values(later) for values in (SD.alpha, SD.sigma, SD.lam))
    alpha_t, sigma_t, lam_t = (values(earlier) for values in (SD.alpha, SD.sigma, SD.lam))
    data = alpha * s**2 / variance(s, later)
    if name == "er-sde-5":

        def phi(x):
            return x * ((x**0.3).exp() + 10)

        r = phi(lam_t) / phi(lam)
        return alpha_t / alpha * r + alpha_t * (1 - r) * data
    eta = SOLVERS[name][1]["eta"]
    kept = (1 - eta**2 * (1 - (lam_t / lam) ** 2)).sqrt()
    return alpha_t * data + sigma_t * kept * sigma / variance(s, later)


@pytest.mark.parametrize("s", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_training_step_on_its_own_grid(name, s):
    """`Distillation.step` with `JumpGrid` and `Draws` finds the fixed point f(z_t) = A_t z_t with
    A_s = A_t E[z_t | z_s] / z_s a sub-step and A = 1 on clean data, grid time by grid time from below."""
    solver, options = SOLVERS[name]
    plain = {"jump": 24, "substeps": 3, "adversarial_weight": 0.0, "guidance_min": 1.0, "guidance_max": 1.0}
    config = mini(solver=solver, **options, **plain)
    grid, solver = config.make_grid(SD), config.make_solver(SD)
    linear = Linear(s, grid)
    distillation = Distillation(linear, config, solver, grid, {})
    generator = torch.Generator().manual_seed(0)
    for index, time in enumerate(grid.times.tolist()[1:], start=1):
        draws = Draws.make(torch.Size([20_000, 1]), grid, config, generator)
        draws = dataclasses.replace(draws, t_n=torch.full((20_000,), time))
        batch = Batch(torch.zeros(20_000, 1), torch.full((20_000, 1), s), {})
        x_m, slopes = distillation.walk(batch, draws), []
        for value in (0.0, 1.0):  # the loss is a parabola in a_i: two slopes give its minimum
            linear.a.data[index] = value
            linear.a.grad = None
            distillation.step(batch, draws, x_m=x_m)
            slopes.append(linear.a.grad[index].item())
        linear.a.data[index] = slopes[0] / (slopes[0] - slopes[1])

    t = grid.times
    exact = mean_factor(name, s, t[1:], t[:-1]).prod().item()
    found = (c_skip(t[-1:]) + c_out(t[-1:]) * linear.a[-1].item()).item()
    assert found == pytest.approx(exact, rel=0.02)
