"""The exact fixed points of `experiments.mixture`, against their closed form on Gaussian data and each other."""

import numpy as np
import pytest
from experiments.mixture.fixed_point import THREE_MODES, FixedPoint, Mixture, wasserstein

from scott.diffusion import DiscreteSchedule, FlowSchedule, JumpGrid
from scott.solvers import make

SD, PIXART, FLOW = DiscreteSchedule.stable_diffusion(), DiscreteSchedule("linear", 0.0001, 0.02), FlowSchedule(3.0)
COUNT = 100_000


def one_step(schedule, name, data=THREE_MODES, **options):
    point = FixedPoint(data, make(name, schedule, **options), JumpGrid(schedule))
    return point.sample(1, COUNT, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "options", "spread"),
    [
        ("ddim", {"eta": 0.0}, 0.989),
        ("ddim", {"eta": 0.2}, 0.891),
        ("ddim", {"eta": 0.6}, 0.385),
        ("er-sde", {"phi": "5", "order": 1}, 0.660),
    ],
    ids=str,
)
def test_gaussian_data_shrink_as_the_closed_form_says(name, options, spread):
    """The fixed point is linear there; its factors of an SD schedule, jump 24, h = 3 (lowest sub-step 7 → data)."""
    samples = one_step(SD, name, Mixture((0.0,), (1.0,), (1.0,)), **options)
    assert samples.std() == pytest.approx(spread, rel=0.02)


def test_the_students_of_an_ode_are_the_data_and_of_a_noisy_walk_are_not():
    data = THREE_MODES.sample(COUNT, np.random.default_rng(1))
    assert wasserstein(one_step(SD, "ddim", eta=0.0), data) < 0.02
    assert wasserstein(one_step(SD, "ddim", eta=0.2), data) > 0.1


@pytest.mark.parametrize("schedule", [PIXART, FLOW], ids=["pixart", "flow"])
def test_the_papers_noise_shrinks_as_much_on_every_schedule(schedule):
    """Where the schedule begins in (nearly) pure noise too, whose first jump keeps what it began with."""
    here, there = (one_step(s, "er-sde", phi="5", order=1).std() for s in (schedule, SD))
    assert here == pytest.approx(there, rel=0.02)


def test_more_steps_are_nearer_to_the_data():
    point = FixedPoint(THREE_MODES, make("er-sde", SD, phi="5", order=1), JumpGrid(SD))
    data = THREE_MODES.sample(COUNT, np.random.default_rng(1))
    errors = [wasserstein(point.sample(steps, COUNT, np.random.default_rng(2)), data) for steps in (1, 2, 4)]
    assert errors[0] > 2 * errors[1] > 3 * errors[2]
