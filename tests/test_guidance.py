"""Guidance: the formula, its off switch, and one call for both conditions."""

import pytest
import torch

from scott.diffusion import DiscreteSchedule, to_x0
from scott.guidance import GuidedDenoiser, expand_cond

X, T = torch.randn(3, 2, 4, dtype=torch.float64), torch.tensor([999, 503, 7])
COND = {"text": torch.randn(3, 4, dtype=torch.float64), "bias": torch.randn(3, 1, dtype=torch.float64)}
UNCOND = {"text": torch.zeros(1, 4, dtype=torch.float64), "bias": torch.ones(1, 1, dtype=torch.float64)}


class Recorder:
    def __init__(self):
        self.batches = []

    def __call__(self, x_t, t, cond):
        self.batches.append(len(x_t))
        return torch.tanh(x_t + cond["text"][:, None]) + cond["bias"][:, None] * t[:, None, None] / 1000


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("scale", [7.5, 0.0, torch.tensor([1.0, 3.0, 8.0])], ids=str)
def test_formula(scale, low_memory):
    predict = Recorder()
    x0_uncond, x0_cond = predict(X, T, expand_cond(UNCOND, 3)), predict(X, T, COND)
    predict.batches.clear()
    guided = GuidedDenoiser(predict, UNCOND, scale, low_memory)(X, T, COND)
    weight = torch.as_tensor(scale).double().reshape(-1, 1, 1)
    torch.testing.assert_close(guided, x0_uncond + weight * (x0_cond - x0_uncond))
    assert predict.batches == ([3, 3] if low_memory else [6])


@pytest.mark.parametrize("scale", [1, 1.0, torch.ones(3)], ids=str)
def test_scale_one_is_off(scale):
    predict = Recorder()
    assert torch.equal(GuidedDenoiser(predict, UNCOND, scale)(X, T, COND), predict(X, T, COND))
    assert predict.batches == [3, 3]


@pytest.mark.parametrize(
    ("kind", "p", "q"),
    [
        ("epsilon", lambda alpha, sigma: 0, lambda alpha, sigma: 1),
        ("v", lambda alpha, sigma: -sigma, lambda alpha, sigma: alpha),
        ("flow", lambda alpha, sigma: -1, lambda alpha, sigma: 1),
    ],
    ids=["epsilon", "v", "flow"],
)
def test_guiding_x0_is_guiding_the_networks_output(kind, p, q):
    """output = p x0 + q ε."""
    schedule, predict = DiscreteSchedule.stable_diffusion(), Recorder()
    alpha, sigma = (level.reshape(-1, 1, 1) for level in (schedule.alpha(T), schedule.sigma(T)))

    def output(x0):
        return p(alpha, sigma) * x0 + q(alpha, sigma) * (X - alpha * x0) / sigma

    uncond, cond = output(predict(X, T, expand_cond(UNCOND, 3))), output(predict(X, T, COND))
    from_output = to_x0(kind, uncond + 7.5 * (cond - uncond), X, alpha.flatten(), sigma.flatten())
    torch.testing.assert_close(GuidedDenoiser(predict, UNCOND, 7.5)(X, T, COND), from_output)
