"""The jump grid, against LCMScheduler's times and its own definition t_i = t_data + i d."""

import diffusers
import pytest
import torch

from scott.diffusion import DiscreteSchedule, FlowSchedule, JumpGrid, equal_substeps
from scott.errors import UserError

SD = DiscreteSchedule.stable_diffusion()


@pytest.mark.parametrize(("jump", "substeps"), [(24, 3), (24, 2), (24, 1), (20, 1), (100, 4)])
def test_inference_times_match_lcm_scheduler(jump, substeps):
    grid = JumpGrid(SD, jump, substeps)
    scheduler = diffusers.LCMScheduler()
    for steps in range(1, grid.original_inference_steps + 1):
        scheduler.set_timesteps(steps, original_inference_steps=grid.original_inference_steps)
        times = grid.inference_times(steps)
        assert times == scheduler.timesteps.tolist()
        assert set(times) <= set(grid.times.tolist())


def test_the_papers_grid():
    grid = JumpGrid(SD)
    assert grid.times.tolist() == [8 * i - 1 for i in range(126)]
    assert grid.original_inference_steps == 125
    assert grid.inference_times(2) == [999, 503]
    assert grid.inference_times(4) == [999, 751, 503, 255]


@pytest.mark.parametrize("schedule", [SD, FlowSchedule(3.0)], ids=["discrete", "flow"])
def test_draws_targets_and_substeps(schedule):
    grid = JumpGrid(schedule)
    t_n = grid.sample(4000, torch.Generator().manual_seed(0))
    assert t_n.dtype == schedule.time_dtype
    assert torch.equal(t_n.unique(), grid.times[1:])
    assert torch.equal(t_n, grid.sample(4000, torch.Generator().manual_seed(0)))
    t_m = grid.target(t_n)
    whole = t_n >= grid.times[3]
    torch.testing.assert_close((t_n - t_m)[whole], torch.full_like(t_n, 24 * schedule.unit)[whole])
    assert (t_m[~whole] == schedule.t_data).all()
    walk = grid.substep_times(t_n)
    assert len(walk) == 4
    assert torch.equal(walk[0], t_n)
    assert torch.equal(walk[-1], t_m)
    for mine, equal in zip(walk, equal_substeps(t_n[whole], t_m[whole], 3), strict=True):
        torch.testing.assert_close(mine[whole], equal)


@pytest.mark.parametrize(("jump", "substeps"), [(24, 3), (24, 1), (20, 1), (100, 4)])
def test_every_chain_of_targets_is_anchored(jump, substeps):
    """A target is clean data, where the boundary fixes it, or a time that is itself trained."""
    grid = JumpGrid(SD, jump, substeps)
    drawn = grid.sample(20_000, torch.Generator().manual_seed(0)).unique()
    assert set(grid.target(drawn).tolist()) <= {SD.t_data, *drawn.tolist()}


@pytest.mark.parametrize(("jump", "substeps"), [(120, 3), (24, 3), (60, 3), (20, 1)])
def test_needed_times_are_the_stops_and_their_targets(jump, substeps):
    grid, every = JumpGrid(SD, jump, substeps, few_steps=(1, 2, 4, 8)), JumpGrid(SD, jump, substeps)
    needed = set(grid.trained_times.tolist())
    stops = {time for n in (1, 2, 4, 8) for time in grid.inference_times(n)}
    assert stops <= needed <= set(every.trained_times.tolist())
    assert set(grid.target(grid.trained_times).tolist()) <= {SD.t_data, *needed}
    passed = {time for stop in stops for time in range(int(stop), -1, -jump)}
    assert needed == passed
    assert torch.equal(grid.sample(5000, torch.Generator().manual_seed(0)).unique(), grid.trained_times)
    assert torch.equal(grid.times, every.times)
    assert grid.inference_times(4) == every.inference_times(4)


def test_one_chain_in_three_is_needed_where_sampling_stops_on_one():
    assert JumpGrid(SD, 120, 3, few_steps=(1, 2, 4, 8)).trained_times.tolist() == list(range(39, 1000, 120))
    assert len(JumpGrid(SD, 120, 3).trained_times) == 25


def test_a_flow_has_no_needed_times():
    with pytest.raises(UserError, match="use times all"):
        JumpGrid(FlowSchedule(3.0), few_steps=(2,))


@pytest.mark.parametrize(("jump", "substeps", "reached", "instead"), [(24, 1, 984, 25), (24, 2, 996, 20)])
def test_a_flows_grid_reaches_the_time_that_its_sampling_begins_at(jump, substeps, reached, instead):
    """A student is asked at t = 1 first: one that was never trained there is asked for what it has not learnt."""
    with pytest.raises(UserError, match=rf"end at {reached} of 1000 .* Use jump={instead}\."):
        JumpGrid(FlowSchedule(3.0), jump, substeps)
    assert JumpGrid(FlowSchedule(3.0), instead, substeps).times[-1] == 1
    assert JumpGrid(SD, jump, substeps).times[-1] == reached - 1, "where sampling of the grid begins"


def test_flow_grid_ends_exactly():
    times = JumpGrid(FlowSchedule()).times
    assert times[0].item() == 0
    assert times[-1].item() == 1
    torch.testing.assert_close(times, torch.arange(126) * 0.008)


@pytest.mark.parametrize(
    ("jump", "substeps", "message"),
    [
        (24, 5, "got jump 24 and 5 sub-steps; jump must be a multiple of substeps. Use jump=20"),
        (0, 1, "Use jump=1"),
        (24, 0, "multiple"),
        (1008, 3, "below clean data"),
        (900, 3, "Use jump=750"),
    ],
)
def test_grid_errors(jump, substeps, message):
    with pytest.raises(UserError, match=message):
        JumpGrid(SD, jump, substeps)


@pytest.mark.parametrize("t_n", [-1, 24, 1007])
def test_times_off_the_grid_or_too_low(t_n):
    with pytest.raises(UserError, match="expected a grid time from 7 to 999"):
        JumpGrid(SD).target(torch.tensor([999, t_n]))


@pytest.mark.parametrize("schedule", [SD, FlowSchedule(3.0)], ids=["discrete", "flow"])
@pytest.mark.parametrize("steps", [0, 126])
def test_inference_steps_out_of_range(schedule, steps):
    with pytest.raises(UserError, match="from 1 to 125"):
        JumpGrid(schedule).inference_times(steps)


@pytest.mark.parametrize(("jump", "substeps"), [(24, 3), (100, 4)])
def test_a_flows_inference_times_are_its_own_whatever_the_grid(jump, substeps):
    schedule = FlowSchedule(3.0)
    assert JumpGrid(schedule, jump, substeps).inference_times(4) == schedule.inference_times(4)


def test_equal_substeps_errors():
    with pytest.raises(UserError, match="Use a jump of 20"):
        equal_substeps(torch.tensor([999]), torch.tensor([975]), 5)
    with pytest.raises(UserError, match="1 or more"):
        equal_substeps(torch.tensor([0.5]), torch.tensor([0.4]), 0)
