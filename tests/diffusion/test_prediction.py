"""Predictions: each kind's definition, written out, and that to_x0 undoes it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scott.diffusion import (
    DiscreteSchedule,
    FlowSchedule,
    expand_like,
    normal_like,
    prediction_name,
    time_like,
    to_x0,
)
from scott.errors import UserError

DEFINITIONS = {
    "epsilon": lambda x0, eps, alpha, sigma: eps,
    "v": lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    "x0": lambda x0, eps, alpha, sigma: x0,
    "flow": lambda x0, eps, alpha, sigma: eps - x0,
}
DEFINITIONS |= {"v_prediction": DEFINITIONS["v"], "sample": DEFINITIONS["x0"], "flow_prediction": DEFINITIONS["flow"]}


@given(
    kind=st.sampled_from(sorted(DEFINITIONS)),
    alpha=st.floats(0.01, 1),
    sigma=st.floats(0.01, 1),
    x0=st.floats(-5, 5),
    eps=st.floats(-5, 5),
)
def test_x0_of_every_kind_of_output(kind, alpha, sigma, x0, eps):
    alpha_t, sigma_t = torch.tensor([[alpha], [sigma]], dtype=torch.float64)
    x0, eps = torch.full((1, 2, 2), x0).double(), torch.full((1, 2, 2), eps).double()
    output = DEFINITIONS[kind](x0, eps, alpha, sigma)
    got = to_x0(kind, output, alpha * x0 + sigma * eps, alpha_t, sigma_t)
    torch.testing.assert_close(got, x0, rtol=1e-9, atol=1e-9)


def test_pure_noise_and_clean_data():
    x, t_max, t_data = torch.randn(1, 3), torch.tensor([1.0]), torch.tensor([-1])
    flow, discrete = FlowSchedule(), DiscreteSchedule.stable_diffusion()
    x0 = to_x0("v", -torch.ones(1, 3), x, flow.alpha(t_max), flow.sigma(t_max))
    assert torch.equal(x0, torch.ones(1, 3))
    with pytest.raises(UserError, match="zero terminal SNR"):
        to_x0("epsilon", x, x, flow.alpha(t_max), flow.sigma(t_max))
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
