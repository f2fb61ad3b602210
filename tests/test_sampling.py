"""Few-step sampling beside diffusers' LCMScheduler, on the same draws."""

import diffusers
import pytest
import torch

from scott.diffusion import ConsistencyFunction, DiscreteSchedule, FlowSchedule, JumpGrid, expand_like, to_x0
from scott.errors import UserError
from scott.samplers import StudentSampler, TeacherSampler
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


@pytest.mark.parametrize("times", [[999, 499], [999, 299], [999, 749, 499, 249]])
def test_kept_noise_is_diffusers_euler(times):
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = diffusers.EulerDiscreteScheduler(**betas, timestep_spacing="leading")  # the first state is N(0, I)
    scheduler.set_timesteps(timesteps=times)
    x_t = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        fed = scheduler.scale_model_input(x_t, t)
        x_t = scheduler.step(network(fed, t.expand(2)), t, x_t).prev_sample
    generator = torch.Generator().manual_seed(1)
    ours = sample(STUDENT, SD, noise, None, None, generator, times, gamma=0)
    torch.testing.assert_close(ours, x_t, rtol=0, atol=1e-5)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(1).get_state()), "nothing is drawn"


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("schedule", [SD, FlowSchedule(3.0)], ids=["discrete", "flow"])
def test_a_step_keeps_the_noise_it_does_not_renew(schedule, gamma):
    """Of a student that knows the data's point: its states are at the times' noise levels, and √(1 − γ²) correlated."""
    fed = []

    def student(x, t, cond):
        fed.append(x)
        return torch.full_like(x, 1.7)

    first, later = times = JumpGrid(schedule).inference_times(2)
    start = schedule.add_noise(torch.tensor([[1.7]]), torch.randn(1, 100_000), torch.tensor([first]))
    sample(student, schedule, start, None, times=times, generator=torch.Generator().manual_seed(1), gamma=gamma)
    alpha, sigma = (level(torch.tensor([later])).float() for level in (schedule.alpha, schedule.sigma))
    noise = (fed[1] - alpha * 1.7) / sigma
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    correlation = torch.corrcoef(torch.cat([start, noise]))[0, 1].item()
    assert correlation == pytest.approx((1 - gamma**2) ** 0.5, abs=0.01)


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
        ({"times": [0.999, 0.5]}, "got time 0.999; expected an integer"),
        ({"times": [1000, 500]}, "got time 1000"),
        ({"steps": 126}, "from 1 to 125"),
        ({"steps": 2, "gamma": 1.1}, "got gamma 1.1; expected 0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        sample(STUDENT, SD, torch.randn(1, 2), None, **arguments)


def test_samplers_refuse_what_they_cannot_draw(make_backbone):
    backbone = make_backbone()
    with pytest.raises(UserError, match="got 1 stops for 2 steps"):
        StudentSampler(backbone, backbone.teacher, JumpGrid(backbone.schedule), 2, 3.0, stops=(999,))
    with pytest.raises(UserError, match="teacher solver"):
        TeacherSampler(backbone, 2, 3.0, solver="heun").latents(["a cat"], 0)
