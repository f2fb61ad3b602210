"""The boundary condition, against LCMScheduler and at clean data."""

import diffusers
import torch

from scott.diffusion import ConsistencyFunction, DiscreteSchedule, FlowSchedule, apply_boundary, c_out, c_skip


def test_matches_lcm_scheduler():
    scheduler = diffusers.LCMScheduler()
    t = torch.arange(1000)
    skip, out = scheduler.get_scalings_for_boundary_condition_discrete(t.double())
    torch.testing.assert_close(c_skip(t), skip, rtol=1e-14, atol=0)
    torch.testing.assert_close(c_out(t), out, rtol=1e-14, atol=0)


def test_clean_data_is_returned_as_it_is():
    for dtype in (torch.float32, torch.bfloat16):
        x, x0_hat = torch.randn(2, 3, dtype=dtype), torch.randn(2, 3, dtype=dtype)
        assert torch.equal(apply_boundary(x, x0_hat, torch.tensor([-1, 0])), x)


def test_consistency_function_mixes_by_sample():
    x = torch.randn(2, 3, dtype=torch.float64)
    for schedule, t in (
        (DiscreteSchedule.stable_diffusion(), torch.tensor([-1, 999])),
        (FlowSchedule(3.0), torch.tensor([0.0, 1.0])),
    ):
        f = ConsistencyFunction(lambda x_t, t, cond: 2 * x_t + cond, schedule)(x, t, 1.0)
        tau = schedule.timestep(t[1:]).item()
        assert torch.equal(f[0], x[0])
        expected = 0.25 / ((10 * tau) ** 2 + 0.25) * x[1] + 10 * tau / ((10 * tau) ** 2 + 0.25) ** 0.5 * (2 * x[1] + 1)
        torch.testing.assert_close(f[1], expected)
