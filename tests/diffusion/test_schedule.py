"""Schedules against diffusers' own tables, and their ends, errors and JSON."""

import diffusers
import pytest
import torch

from scott.diffusion import DiscreteSchedule, FlowSchedule, schedule_from_config
from scott.diffusion.flow import FEW_STEP_SHIFT
from scott.errors import UserError

LATENT = {"beta_start": 0.00085, "beta_end": 0.012}
ALL_TIMES = torch.arange(1000)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(),
        diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", **LATENT),
        diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", prediction_type="v_prediction"),
        diffusers.LCMScheduler(),
        diffusers.DDIMScheduler(trained_betas=[0.01, 0.02, 0.3]),
        diffusers.DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True, **LATENT),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_discrete_matches_diffusers(scheduler):
    schedule = DiscreteSchedule.from_config(scheduler.config)
    times = torch.arange(len(scheduler.alphas_cumprod))
    assert schedule.alpha(times).dtype == torch.float64
    torch.testing.assert_close(schedule.alpha(times) ** 2, scheduler.alphas_cumprod.double(), rtol=5e-5, atol=1e-7)
    assert schedule.prediction_type == scheduler.config.prediction_type


def test_variance_preserving_and_clean_data():
    schedule = DiscreteSchedule.stable_diffusion()
    t = torch.arange(-1, 1000)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones(1001).double())
    assert schedule.alpha(t[:1]).item() == 1
    assert schedule.sigma(t[:1]).item() == schedule.lam(t[:1]).item() == 0
    assert bool((schedule.lam(t).diff() > 0).all())


@pytest.mark.parametrize(
    "schedule",
    [
        DiscreteSchedule("scaled_linear", **LATENT, rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        FlowSchedule(),
        FlowSchedule(1.15),
    ],
    ids=str,
)
def test_zero_terminal_snr_is_exact(schedule):
    t_max = torch.tensor([schedule.t_max])
    assert schedule.alpha(t_max).item() == 0
    assert schedule.sigma(t_max).item() == pytest.approx(1)
    assert schedule.lam(t_max).item() == float("inf")


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matches_diffusers(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = schedule_from_config(scheduler.config)
    assert schedule == FlowSchedule(shift)
    t = 1 - ALL_TIMES.double() / 1000
    torch.testing.assert_close(schedule.sigma(t), scheduler.sigmas[:1000].double(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(schedule.timestep(t), scheduler.timesteps, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(schedule.alpha(t), 1 - schedule.sigma(t))


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flows_few_step_times_are_those_of_the_stock_scheduler(shift, steps):
    """In σ and in what the network is fed, whatever the shift that the teacher was trained with."""
    scheduler = diffusers.FlowMatchLCMScheduler(shift=FEW_STEP_SHIFT, use_exponential_sigmas=True)
    scheduler.set_timesteps(steps)
    schedule = FlowSchedule(shift)
    times = torch.tensor(schedule.inference_times(steps), dtype=schedule.time_dtype)
    assert times[0] == 1
    assert (times.diff() < 0).all()
    torch.testing.assert_close(schedule.sigma(times).float(), scheduler.sigmas[:-1], rtol=0, atol=1e-6)
    torch.testing.assert_close(schedule.timestep(times), scheduler.timesteps, rtol=0, atol=1e-3)


def test_the_last_of_a_flows_few_steps_stands_where_work_is_left():
    """σ = .6 by the choice of the shift; with SD3's own of 3 it would be σ = .009."""
    for steps in (2, 4, 8):
        last = torch.tensor(FlowSchedule(3.0).inference_times(steps)[-1:])
        assert FlowSchedule(3.0).sigma(last).item() == pytest.approx(0.6, abs=1e-3)
    four = torch.tensor(FlowSchedule(3.0).inference_times(4))
    assert FlowSchedule(3.0).sigma(four).tolist() == pytest.approx([1, 0.843, 0.711, 0.6], abs=1e-3)
    own = diffusers.FlowMatchLCMScheduler(shift=3.0)
    own.set_timesteps(2)
    assert own.sigmas[1].item() == pytest.approx(0.009, abs=1e-3)


def test_add_noise_matches_diffusers():
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", **LATENT)
    x0, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    x_t = DiscreteSchedule.stable_diffusion().add_noise(x0, noise, t)
    assert x_t.dtype == x0.dtype
    torch.testing.assert_close(x_t, scheduler.add_noise(x0, noise, t), rtol=1e-5, atol=1e-5)


def test_network_times():
    assert DiscreteSchedule.stable_diffusion().timestep(torch.tensor([-1, 0, 999])).tolist() == [0, 0, 999]
    assert FlowSchedule(3.0).timestep(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 750, 1000]


def test_betas_of_another_number_than_the_steps_are_refused():
    betas = (0.1, 0.2)
    with pytest.raises(UserError, match="got 2 trained_betas for num_train_timesteps 1000; expected as many"):
        DiscreteSchedule("trained", 0.0, 0.0, trained_betas=betas)
    schedule = DiscreteSchedule("trained", 0.0, 0.0, 2, betas)
    assert schedule.lam(schedule.last_time).item() == pytest.approx((0.28 / 0.72) ** 0.5), "ᾱ = .9 · .8"


@pytest.mark.parametrize("t", [[0.5], [1000], [-2], [float("nan")]])
def test_discrete_refuses_other_times(t):
    with pytest.raises(UserError, match=r"expected an integer from -1 \(clean data\) to 999"):
        DiscreteSchedule.stable_diffusion().alpha(torch.tensor(t))


@pytest.mark.parametrize("t", [-0.01, 1.01, float("nan")])
def test_flow_refuses_other_times(t):
    with pytest.raises(UserError, match=r"expected one from 0 \(clean data\) to 1"):
        FlowSchedule().sigma(torch.tensor([t]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "linear", "beta_start": 1e-4}, "without beta_end"),
        ({"beta_schedule": "scaled_liner", **LATENT}, "Did you mean 'scaled_linear'"),
        ({"beta_schedule": "linear", "beta_start": -1, "beta_end": 1}, r"each in \(0, 1\]"),
        ({"trained_betas": []}, "expected one or more"),
        ({"trained_betas": [0.1], "snr_shift_scale": 3.0}, "snr_shift_scale"),
        ({"trained_betas": [0.1], "prediction_type": "eps"}, "epsilon"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "one fixed shift"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}, "positive"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 10}, "expected 1000"),
    ],
)
def test_config_errors(config, message):
    with pytest.raises(UserError, match=message):
        schedule_from_config(config)
