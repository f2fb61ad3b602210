"""The exact fixed points of `experiments.mixture`, against their closed form on Gaussian data and each other."""

import pytest
import torch
from experiments.mixture.closed_form import shrinkage
from experiments.mixture.data import GAUSSIAN, THREE_MODES, clusters, one_dimension
from experiments.mixture.fixed_point import FixedPoint

from scott.diffusion import DiscreteSchedule, FlowSchedule, JumpGrid
from scott.solvers import make

SD, PIXART, FLOW = DiscreteSchedule.stable_diffusion(), DiscreteSchedule("linear", 0.0001, 0.02), FlowSchedule(3.0)
COARSE = JumpGrid(SD, 120, 3)
COUNT = 50_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def one_step(schedule, name, data=THREE_MODES, **options):
    point = FixedPoint(data, make(name, schedule, **options), JumpGrid(schedule))
    return point.sample(1, COUNT, seeded())


@pytest.mark.parametrize(
    ("name", "options", "spreads"),
    [
        ("ddim", {"eta": 0.0}, (0.989, 0.978, 0.933)),
        ("ddim", {"eta": 0.2}, (0.891, 0.859, 0.793)),
        ("ddim", {"eta": 0.6}, (0.385, 0.300, 0.213)),
        ("er-sde", {"phi": "5", "order": 1}, (0.660, 0.626, 0.575)),
    ],
    ids=str,
)
def test_gaussian_data_shrink_as_the_closed_form_says(name, options, spreads):
    """The known table's grid ends 7 → 0 → data; the programmed fixed point is linear with our own grid's factor."""
    solver, times = make(name, SD, **options), JumpGrid(SD).times
    with_zero = torch.cat([times[:1], torch.zeros_like(times[:1]), times[1:]])
    assert [shrinkage(solver, with_zero, s) for s in (1.0, 0.5, 0.2)] == pytest.approx(spreads, abs=0.003)
    point = FixedPoint(GAUSSIAN, solver, JumpGrid(SD))
    expected = shrinkage(solver, times, 1.0) * point.states[-1]
    torch.testing.assert_close(point.values[-1][:, 0], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", [SD, FLOW], ids=["sd", "flow"])
def test_the_denoiser_is_tweedies_of_the_mixtures_density(schedule):
    """x̂0 = (x + σ² ∇ log p_t(x)) / α, the gradient by autograd of the density, at times of its own for each row."""
    data, x = clusters(3, 4, 0.3), torch.randn(64, 3, dtype=torch.float64, generator=seeded(), requires_grad=True)
    times = JumpGrid(schedule).times[1:-1]
    t = times[torch.randint(len(times), (64,), generator=seeded())]
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    spread = (alpha[:, None, None] ** 2 * data.spreads**2 + sigma[:, None, None] ** 2).sqrt()
    density = torch.distributions.Normal(alpha[:, None, None] * data.means, spread).log_prob(x[:, None]).sum(2)
    (score,) = torch.autograd.grad((data.weights.log() + density).logsumexp(1).sum(), x)
    expected = (x + sigma[:, None] ** 2 * score) / alpha[:, None]
    torch.testing.assert_close(data.denoiser(schedule)(x, t, None), expected.detach(), rtol=1e-8, atol=1e-8)


def test_the_consistency_function_carries_the_marginal_onto_the_data():
    """On N(0, s²) it is x s / sqrt(v_t); on a mixture it makes samples of p_t into samples of p_0."""
    alpha, sigma = 0.6, 0.8
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)
    data = one_dimension((1.0,), (0.0,), (1.0,))
    torch.testing.assert_close(data.consistency_function(x, alpha, sigma), x, rtol=1e-9, atol=1e-9)
    clean, noise = THREE_MODES.sample(10_000, seeded())[:, 0], torch.randn(10_000, generator=seeded(1)).double()
    carried = THREE_MODES.consistency_function(alpha * clean + sigma * noise, alpha, sigma)
    assert THREE_MODES.wasserstein(carried) < 0.02


def test_the_students_of_an_ode_are_the_data_and_of_a_noisy_walk_are_not():
    assert THREE_MODES.wasserstein(one_step(SD, "ddim", eta=0.0)) < 0.02
    assert THREE_MODES.wasserstein(one_step(SD, "ddim", eta=0.2)) > 0.1


@pytest.mark.parametrize("schedule", [PIXART, FLOW], ids=["pixart", "flow"])
def test_the_papers_noise_shrinks_as_much_on_every_schedule(schedule):
    """Where the schedule begins in (nearly) pure noise too, whose first jump keeps what it began with."""
    here, there = (one_step(s, "er-sde", phi="5", order=1).std().item() for s in (schedule, SD))
    assert here == pytest.approx(there, rel=0.02)


def test_more_steps_are_nearer_to_the_data():
    point = FixedPoint(THREE_MODES, make("er-sde", SD, phi="5", order=1), JumpGrid(SD))
    errors = [THREE_MODES.wasserstein(point.sample(steps, COUNT, seeded(2))) for steps in (1, 2, 4)]
    assert errors[0] > 2 * errors[1] > 3 * errors[2]


def test_kept_noise_widens_the_samples_of_a_student_that_is_exact():
    """Of N(0, 1) it says x at any time: x_t = α_t x + σ_t (x − α_T x) / σ_T where all noise is kept."""
    point = FixedPoint(GAUSSIAN, make("ddim", SD, eta=0.0), JumpGrid(SD))
    first, later = (point.levels((point.grid.times == time).nonzero().item()) for time in point.grid.inference_times(2))
    widened = later[0] + later[1] * (1 - first[0]) / first[1]
    assert widened > 1.1
    fresh, kept = (point.sample(2, COUNT, seeded(), gamma).std().item() for gamma in (1.0, 0.0))
    assert kept / fresh == pytest.approx(widened, rel=0.02)


def test_a_history_counts_within_a_jump_alone():
    """With one sub-step a jump, a solver of second order has none; with three, it is nearer to the exact function."""

    def error(order, grid):
        point = FixedPoint(THREE_MODES, make("dpmpp-sde", SD, eta=0.0, order=order), grid, anchor=5)
        return (point.values[-1][:, 0] - point.exact(len(point.states) - 1))[point.states[-1].abs() < 3].abs().max()

    assert error(2, JumpGrid(SD, 40, 1)) == error(1, JumpGrid(SD, 40, 1))
    assert error(2, COARSE) < 0.5 * error(1, COARSE)


def test_a_walk_ends_where_the_exact_function_is_given():
    """The jump just above has one sub-step to it, in which no order has a history."""
    points = [FixedPoint(THREE_MODES, make("dpmpp-sde", SD, eta=0.0, order=k), COARSE, anchor=5) for k in (1, 2)]
    first, second = (point._interpolate(6, torch.linspace(-2, 2, 9, dtype=torch.float64)) for point in points)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4)


def test_an_energy_score_keeps_what_l2_loses_of_the_spread():
    """Its law has L2's f as its mean (the tower property), and its samples the data's spread."""
    solver, thresholds = make("er-sde", SD, phi="5", order=1), torch.linspace(-4, 4, 161, dtype=torch.float64)
    mean, law = FixedPoint(THREE_MODES, solver, COARSE), FixedPoint(THREE_MODES, solver, COARSE, thresholds)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    drawn = law.at(-1, x.repeat_interleave(20_000), seeded()).view(5, -1)
    torch.testing.assert_close(drawn.mean(1), mean.at(-1, x, seeded()), rtol=0, atol=0.03)
    assert mean.sample(1, COUNT, seeded()).std() < 0.7
    assert law.sample(1, COUNT, seeded()).std() == pytest.approx(1, abs=0.06)
