"""Few-step sampling beside diffusers' LCMScheduler, on the same draws."""

import diffusers
import pytest
import torch

from scott.diffusion import ConsistencyFunction, DiscreteSchedule, FlowSchedule, JumpGrid, expand_like, to_x0
from scott.errors import UserError
from scott.sampling import sample

SD = DiscreteSchedule.stable_diffusion()


def network(x, t):
    return expand_like(SD.sigma(t), x) * x + 0.1 * torch.sin(3 * x + expand_like(t / 100, x))


STUDENT = ConsistencyFunction(lambda x, t, cond: to_x0("epsilon", network(x, t), x, SD.alpha(t), SD.sigma(t)), SD)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_matches_lcm_scheduler(steps):
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.LCMScheduler(clip_sample=False)
    scheduler.set_timesteps(steps, original_inference_steps=125)
    x_t, generator = noise, torch.Generator().manual_seed(1)
    for t in scheduler.timesteps:
        x_t = scheduler.step(network(x_t, t.expand(2)), t, x_t, generator=generator).prev_sample
    ours = sample(STUDENT, SD, noise, None, steps, torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, x_t, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", [SD, FlowSchedule(3.0)], ids=["discrete", "flow"])
def test_a_perfect_student_of_one_point_answers_it(schedule):
    seen = []

    def student(x, t, cond):
        seen.append((t[0].item(), t.dtype, cond))
        return torch.full_like(x, 1.7)

    out = sample(student, schedule, torch.randn(3, 2), "cond", 4, torch.Generator().manual_seed(0))
    assert torch.equal(out, torch.full((3, 2), 1.7))
    assert seen == [(t, schedule.time_dtype, "cond") for t in JumpGrid(schedule).inference_times(4)]


def test_own_times():
    times = JumpGrid(SD, jump=24, substeps=1).inference_times(2)
    seen = []

    def student(x, t, cond):
        assert not torch.is_grad_enabled()
        seen.append(t[0].item())
        return x

    sample(student, SD, torch.randn(1, 2), None, times=times)
    assert seen == times == [983, 503]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither steps nor times"),
        ({"steps": 2, "times": [999]}, "got 2 steps and 1 times"),
        ({"times": []}, "0 times"),
        ({"times": [503, 999]}, "descend"),
        ({"steps": 126}, "from 1 to 125"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        sample(STUDENT, SD, torch.randn(1, 2), None, **arguments)
