"""`experiments.matching`: its gradients beside those written out, and where they vanish."""

import dataclasses

import pytest
import torch
from experiments.matching import MatchingDistillation
from tests.training.by_hand import Step, gradients, make_config

from scott.diffusion import ConsistencyFunction
from scott.errors import UserError
from scott.training.step import Engine, Shown

GAME = {"critic": "full", "critic_fakes": "drawn", "drawn_fraction": 0.5, "adversarial_weight": 0.7}


@pytest.fixture
def made(make_backbone, perturb):
    """A step of a batch of 4, of which samples of 2 are drawn."""
    step = Step(make_backbone, perturb, make_config(**GAME))
    step.distillation = MatchingDistillation.of(step.backbone, step.config)
    return step


def shown(step):
    f = ConsistencyFunction(step.backbone.student, step.backbone.schedule)
    given = Shown(torch.empty(0), step.x0, step.draws.t_n, step.cond, step.draws)
    return step.distillation.drawn(f, given)


def test_both_gradients_are_those_written_out(made):
    backbone, drawn = made.backbone, shown(made)
    x, t, noise = drawn.fakes.detach(), drawn.draws.critic_t, drawn.draws.critic_noise[0]
    x_t = made.noised(x, noise, t)
    text = {"text": drawn.cond["text"]}
    with torch.no_grad():
        nothing = backbone.teacher(x_t, t, {"text": made.uncond["text"].expand(2, -1, -1)})
        omega = drawn.draws.omega.view(-1, 1, 1, 1)
        truth = nothing + omega * (backbone.teacher(x_t, t, text) - nothing)
    eps = backbone.copies["critic"](x_t, t, text["text"]).sample
    expected_critic = torch.autograd.grad((eps - noise).square().mean(), [*backbone.parameters("critic").values()][:-2])
    with torch.no_grad():
        mu = backbone._x0("critic", x_t, t, text)
    direction = (mu - truth) / (x - truth).abs().mean((1, 2, 3), keepdim=True)
    towards = torch.autograd.grad(
        0.7 * (drawn.fakes * direction).mean(), tuple(backbone.student_parameters().values()), retain_graph=True
    )
    consistency = (made.student() - made.target()).square().mean()
    own = torch.autograd.grad(consistency, tuple(backbone.student_parameters().values()))

    terms = made.distillation.step(made.batch, made.draws, Engine())
    for got, one, other in zip(gradients(backbone.student_parameters()), own, towards, strict=True):
        torch.testing.assert_close(got, one + other, rtol=1e-3, atol=1e-5)
    got = {name: p.grad for name, p in backbone.parameters("critic").items() if p.grad is not None}
    assert got.keys() == {name for name in backbone.parameters("critic") if not name.startswith("conv_out")}
    for mine, theirs in zip(got.values(), expected_critic, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(terms["denoiser"], (eps - noise).square().mean().detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["apart"], direction.abs().mean(), rtol=1e-4, atol=1e-5)


def test_where_both_denoisers_are_the_teacher_nothing_is_asked_for(make_backbone):
    """μ begins as the teacher, and at ω = 1 that is what it is held against."""
    config = make_config(**GAME | {"guidance_min": 1.0, "guidance_max": 1.0})
    step = Step(make_backbone, lambda parameters, seed: None, config)
    step.distillation = MatchingDistillation.of(step.backbone, config)
    towards, terms = step.distillation.play(Engine(), shown(step))
    assert towards.abs().max() < 1e-6
    assert terms["denoiser"] > 0.1, "which has yet to learn what is drawn"


@pytest.mark.parametrize(
    "changes", [{"critic": "heads", "critic_input": "clean"}, {"critic_fakes": "noised"}, {"adversarial_weight": 0.0}]
)
def test_a_game_that_is_no_matching_is_refused(made, changes):
    config = dataclasses.replace(made.config, **changes)
    with pytest.raises(UserError, match="--set critic=full"):
        dataclasses.replace(made.distillation, config=config)
