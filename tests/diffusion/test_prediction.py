"""Predictions: each kind's definition, and that to_x0_eps undoes it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scott.diffusion import (
    DiscreteSchedule,
    FlowSchedule,
    expand_like,
    from_x0_eps,
    normal_like,
    prediction_name,
    time_like,
    to_x0,
    to_x0_eps,
)
from scott.errors import UserError

KINDS = ["epsilon", "v", "x0", "flow", "v_prediction", "sample", "flow_prediction"]


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    alpha=st.floats(0.01, 1),
    sigma=st.floats(0.01, 1),
    x0=st.floats(-5, 5),
    eps=st.floats(-5, 5),
)
def test_round_trip(kind, alpha, sigma, x0, eps):
    alpha_t, sigma_t = torch.tensor([[alpha], [sigma]], dtype=torch.float64)
    x0, eps = torch.full((1, 2, 2), x0).double(), torch.full((1, 2, 2), eps).double()
    output = from_x0_eps(kind, x0, eps, alpha_t, sigma_t)
    x_t = alpha * x0 + sigma * eps
    for got, wanted in zip(to_x0_eps(kind, output, x_t, alpha_t, sigma_t), (x0, eps), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(to_x0(kind, output, x_t, alpha_t, sigma_t), x0, rtol=1e-9, atol=1e-9)


def test_definitions():
    alpha_t, sigma_t = torch.tensor([0.8]).double(), torch.tensor([0.6]).double()
    x0, eps = torch.tensor([[2.0]]).double(), torch.tensor([[5.0]]).double()
    values = {kind: from_x0_eps(kind, x0, eps, alpha_t, sigma_t).item() for kind in KINDS[:4]}
    assert values == {"epsilon": 5, "v": pytest.approx(0.8 * 5 - 0.6 * 2), "x0": 2, "flow": 3}


def test_pure_noise_and_clean_data():
    x, t_max, t_data = torch.randn(1, 3), torch.tensor([1.0]), torch.tensor([-1])
    flow, discrete = FlowSchedule(), DiscreteSchedule.stable_diffusion()
    x0, eps = to_x0_eps("v", -torch.ones(1, 3), x, flow.alpha(t_max), flow.sigma(t_max))
    assert torch.equal(x0, torch.ones(1, 3))
    assert torch.equal(eps, x)
    with pytest.raises(UserError, match="zero terminal SNR"):
        to_x0("epsilon", x, x, flow.alpha(t_max), flow.sigma(t_max))
    with pytest.raises(UserError, match="use to_x0"):
        to_x0_eps("x0", x, x, discrete.alpha(t_data), discrete.sigma(t_data))
    assert torch.equal(to_x0("x0", x, x, discrete.alpha(t_data), discrete.sigma(t_data)), x)
    assert torch.equal(to_x0("epsilon", 9 * x, x, discrete.alpha(t_data), discrete.sigma(t_data)), x)


def test_unknown_prediction_lists_the_choices():
    assert prediction_name("v_prediction") == "v"
    with pytest.raises(UserError, match=r"got prediction 'epsilom'.*Did you mean 'epsilon'"):
        prediction_name("epsilom")


def test_tensor_helpers():
    x = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    coef = expand_like(torch.tensor([1.0, 2.0], dtype=torch.float64), x)
    assert coef.shape == (2, 1, 1)
    assert coef.dtype == x.dtype
    assert expand_like(torch.tensor(3.0), x).shape == ()
    assert time_like(torch.tensor([7]), x).dtype == torch.int64
    assert time_like(torch.tensor([0.5]).double(), x).dtype == torch.float32
    first, second = (normal_like(x, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second)
