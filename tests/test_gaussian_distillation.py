"""A linear student, distilled by SCott on Gaussian data, lands where the closed form says.

Data is N(0, s²) and the teacher exact, so the L2 optimum is f(x, t) = a_t x, and a one-step sample's
standard deviation over the data's is a_999 sqrt(v_999) / s. Squared error shrinks it below 1 as the noise
grows: the fixed point of strong noise is the posterior mean. The student is trained jump by jump from clean
data upwards; its loss is a parabola in a_t, so one Newton step on the loss is training to convergence.
"""

import pytest
import torch

from scott.diffusion import DiscreteSchedule, expand_like
from scott.objective import consistency_loss, consistency_target
from scott.solvers import make

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
        loss = consistency_loss(a_n * x_n, target).loss
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
