"""Losses against the formulas, worked out by hand."""

import math

import pytest
import torch

from scott.diffusion import ConsistencyFunction, DiscreteSchedule, FlowSchedule
from scott.errors import UserError
from scott.objective import (
    consistency_loss,
    consistency_target,
    hinge_discriminator,
    hinge_generator,
    loss_weight,
    r1_penalty,
)

PREDICTION, TARGET = torch.tensor([[[1.0, 2.0]], [[0.0, -3.0]]]), torch.tensor([[[0.0, 2.0]], [[2.0, 1.0]]])


@pytest.mark.parametrize(
    ("kind", "per_sample"),
    [
        ("l2", [1 / 2, (4 + 16) / 2]),
        ("l1", [1 / 2, (2 + 4) / 2]),
        ("huber", [(math.sqrt(1.25) - 0.5) / 2, (math.sqrt(4.25) - 0.5 + math.sqrt(16.25) - 0.5) / 2]),
    ],
)
def test_consistency_loss(kind, per_sample):
    result = consistency_loss(PREDICTION, TARGET, kind, huber_c=0.5)
    assert result.item() == pytest.approx(sum(per_sample) / 2)
    weighted = consistency_loss(PREDICTION, TARGET, kind, huber_c=0.5, weight=torch.tensor([2.0, 0.0]))
    assert weighted.item() == pytest.approx(per_sample[0])
    weighted = consistency_loss(PREDICTION, TARGET, kind, huber_c=0.5, weight=torch.tensor([0.0, 2.0]))
    assert weighted.item() == pytest.approx(per_sample[1])


@pytest.mark.parametrize("schedule", [DiscreteSchedule.stable_diffusion(), FlowSchedule()], ids=["vp", "flow"])
def test_weights_have_mean_1_and_follow_the_signal(schedule):
    times = schedule.t_data + schedule.unit * torch.arange(40, 1001, 40)
    assert torch.equal(loss_weight("uniform", schedule, times, times), torch.ones(25, dtype=torch.float64))
    weights = loss_weight("snr+1", schedule, times, times)
    assert weights.mean().item() == pytest.approx(1)
    snr = (schedule.alpha(times) / schedule.sigma(times)) ** 2
    torch.testing.assert_close(weights / weights[-1], (snr + 1) / (snr[-1] + 1))
    some = torch.tensor([3, 11])
    assert torch.equal(loss_weight("snr+1", schedule, times[some], times), weights[some])
    with pytest.raises(UserError, match=r"snr\+1"):
        loss_weight("snr", schedule, times, times)
    clean = torch.full((1,), schedule.t_data)
    for of, over in ((torch.cat([clean, times]), times), (times, torch.cat([clean, times]))):
        with pytest.raises(UserError, match="got a time of clean data"):
            loss_weight("snr+1", schedule, of, over)


@pytest.mark.parametrize("shape", [(), (1,), (2, 1)])
def test_a_weight_that_is_not_one_a_sample_is_refused(shape):
    """It would broadcast; (2, 1) would weight each sample by the other's too."""
    weight = torch.ones(shape)
    with pytest.raises(UserError, match="got a weight of shape"):
        consistency_loss(PREDICTION, TARGET, weight=weight)
    with pytest.raises(UserError, match="got a weight of shape"):
        hinge_generator(torch.zeros(2, 3), weight)


def test_weighted_x0_loss_is_the_loss_of_v():
    """v = α ε − σ x0, with ε from x_t and x0, at two predictions of x0."""
    schedule = DiscreteSchedule.stable_diffusion()
    times = torch.tensor([39, 519, 999])
    x_t, one, two = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma = (values(times)[:, None] for values in (schedule.alpha, schedule.sigma))
    v_one, v_two = (alpha * (x_t - alpha * x0) / sigma - sigma * x0 for x0 in (one, two))
    weight = loss_weight("snr+1", schedule, times, times)
    each = [slice(index, index + 1) for index in range(3)]
    weighted = torch.stack([consistency_loss(one[i], two[i], weight=weight[i]) for i in each])
    plain = torch.stack([consistency_loss(v_one[i], v_two[i]) for i in each])
    torch.testing.assert_close(weighted / weighted[-1], plain / plain[-1])


def test_gradient_reaches_the_prediction_only():
    prediction, target = PREDICTION.clone().requires_grad_(), TARGET.clone().requires_grad_()
    consistency_loss(prediction, target).backward()
    torch.testing.assert_close(prediction.grad, 2 * (PREDICTION - TARGET) / 4)
    assert target.grad is None


def test_low_precision_is_summed_in_float32():
    assert consistency_loss(PREDICTION.bfloat16(), TARGET.bfloat16()).dtype == torch.float32


def test_non_finite_is_returned_as_it_is():
    assert consistency_loss(PREDICTION * float("nan"), TARGET).isnan()
    assert hinge_generator(torch.tensor([float("inf")])).isinf()


def test_target_has_no_gradient_and_is_the_data_at_clean_data():
    weight = torch.tensor(2.0, requires_grad=True)
    student = ConsistencyFunction(lambda x, t, cond: weight * x * cond, DiscreteSchedule.stable_diffusion())
    x_m = torch.randn(2, 3)
    target = consistency_target(student, x_m, torch.tensor([-1, 999]), 3.0)
    assert not target.requires_grad
    assert torch.equal(target[0], x_m[0])
    torch.testing.assert_close(target[1], 6 * x_m[1])


def test_hinge():
    result = hinge_discriminator(torch.tensor([[2.0, 0.5], [-1.0, 3.0]]), torch.tensor([-2.0, 0.0]))
    assert result.loss.item() == (0 + 0.5 + 2 + 0) / 4 + (0 + 1) / 2
    assert result.real_accuracy.item() == 0.75
    assert result.fake_accuracy.item() == 0.5
    assert hinge_generator(torch.tensor([-2.0, 1.0, 4.0])).item() == -1
    logits = torch.tensor([[[2.0, 4.0]], [[1.0, -7.0]]])
    assert hinge_generator(logits, torch.tensor([2.0, 0.5])).item() == -(2 * 3 - 0.5 * 3) / 2


def test_r1_is_half_the_squared_gradient():
    """Of D(x) = mean over positions of exp(a · x), whose gradient is a · D."""
    generator = torch.Generator().manual_seed(0)
    a, x = (torch.randn(size, dtype=torch.float64, generator=generator) for size in ((4,), (1, 4)))
    w = torch.randn(100_000, 4, dtype=torch.float64, generator=generator)

    def logits(x):
        return ((x @ a).exp()[:, None] * torch.tensor([0.5, 1.5])).expand(len(w), 2)

    penalty = r1_penalty(logits(x), logits(x + 1e-3 * w), 1e-3)
    assert penalty.item() == pytest.approx((a * (x @ a).exp()).square().sum().item() / 2, rel=0.02)


def test_errors():
    with pytest.raises(UserError, match="got consistency loss 'l3'; expected one of 'l2', 'l1', 'huber'"):
        consistency_loss(PREDICTION, TARGET, "l3")
    with pytest.raises(UserError, match="expected one shape"):
        consistency_loss(PREDICTION, TARGET[:, :, :1])
