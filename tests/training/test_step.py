"""One step beside naive ones: two critic passes, losses written out, autograd."""

import dataclasses

import pytest
import torch
from tests.training.by_hand import B, Step, gradients, ladder, make_config

from scott.diffusion import ConsistencyFunction, DiscreteSchedule
from scott.training.config import LCM_SETTINGS
from scott.training.draws import Draws


def assert_close(got, expected):
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def norm_at(output, loss):
    return torch.autograd.grad(loss, output, retain_graph=True)[0].norm()


@pytest.mark.parametrize(
    "changes",
    [{"train": "lora", "adversarial_weight": 0.0}, {"adversarial_weight": 0.0}, {"critic": "none"}],
    ids=str,
)
def test_without_adversary_the_gradient_is_that_of_the_consistency_loss(make_backbone, perturb, changes):
    step = Step(make_backbone, perturb, make_config(**changes))
    loss = (step.student() - step.target()).square().mean()
    made = step.run()
    assert made.critic == ()
    assert made.terms.keys() == {"consistency", "moments"}
    torch.testing.assert_close(made.terms["consistency"], loss.detach())
    assert_close(made.student, torch.autograd.grad(loss, tuple(step.backbone.student_parameters().values())))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train": "lora"},
        {"critic_input": "matched"},
        {"critic_input": "renoised"},
        {"loss": "l1", "adversarial_weight": 2.0},
        {"weighting": "snr+1"},
        {"weighting": "snr+1", "adversarial_weighting": "uniform", "critic_input": "clean"},
        {"critic": "unconditional"},
    ],
    ids=str,
)
def test_with_the_adversary_both_gradients_are_those_of_two_passes(make_backbone, perturb, changes):
    step = Step(make_backbone, perturb, make_config(**changes))
    backbone, config = step.backbone, step.config
    fake = step.student()
    delta = fake - step.target()
    consistency = ((delta.abs() if config.loss == "l1" else delta.square()) * step.weight()).mean()
    x_fake, t_fake, _, _ = step.critic_inputs(fake)
    weight = step.weight()[:, 0] if config.adversarial_weighting == "same" else 1.0
    adversarial = -(weight * step.logits(x_fake, t_fake)).mean()
    expected_student = torch.autograd.grad(
        consistency + config.adversarial_weight * adversarial,
        tuple(backbone.student_parameters().values()),
        retain_graph=True,
    )
    x_fake, t_fake, x_real, t_real = step.critic_inputs(fake.detach())
    fake_logits, real_logits = step.logits(x_fake, t_fake), step.logits(x_real, t_real)
    critic = (1 - real_logits).clamp(min=0).mean() + (1 + fake_logits).clamp(min=0).mean()
    expected_critic = torch.autograd.grad(critic, tuple(backbone.critic_parameters().values()))

    made = step.run()
    assert_close(made.student, expected_student)
    assert_close(made.critic, expected_critic)
    assert any(g.abs().max() > 1e-4 for g in made.critic)
    expected = {
        "consistency": consistency,
        "adversarial": adversarial,
        "critic": critic,
        "critic_real_accuracy": (real_logits > 0).float().mean(),
        "critic_fake_accuracy": (fake_logits < 0).float().mean(),
        "adversarial_ratio": norm_at(fake, config.adversarial_weight * adversarial) / norm_at(fake, consistency),
    }
    assert made.terms.keys() == expected.keys() | {"moments"}
    for name, value in expected.items():
        torch.testing.assert_close(made.terms[name], value.detach(), rtol=1e-4, atol=1e-5)
        assert not made.terms[name].requires_grad


def test_a_full_critic_trains_its_encoder_too(make_backbone, perturb):
    """Its gradient is that of the critic's loss on detached fakes, and the student's does not move it."""
    step = Step(make_backbone, perturb, make_config(critic="full", critic_input="matched"))
    backbone = step.backbone
    fake, t_n, cond = step.student(), step.draws.t_n, step.cond

    def logits(x0):
        return backbone.critic(x0, t_n, cond)

    critic = (1 - logits(step.x0)).clamp(min=0).mean() + (1 + logits(fake.detach())).clamp(min=0).mean()
    parameters = backbone.critic_parameters()
    expected = torch.autograd.grad(critic, tuple(parameters.values()))
    made = step.run()
    assert_close(made.critic, expected)
    by_name = dict(zip(parameters, made.critic, strict=True))
    assert by_name["conv_in.weight"].abs().max() > 0
    assert by_name["down_blocks.0.resnets.0.conv1.weight"].abs().max() > 0


@pytest.mark.parametrize("train", ["lora", "full"])
def test_nothing_is_random_and_no_weight_is_changed(make_backbone, perturb, train):
    step = Step(make_backbone, perturb, make_config(train=train))
    models = (step.backbone.student_parameters(), step.backbone.target_parameters(), step.backbone.critic_parameters())
    before = [p.clone() for model in models for p in model.values()]
    first = step.run()
    torch.manual_seed(99)
    second = step.run()
    assert all(map(torch.equal, first.student + first.critic, second.student + second.critic))
    assert all(map(torch.equal, before, [p for model in models for p in model.values()]))
    assert all(p.grad is None for p in [*step.backbone.network.parameters(), *models[1].values()])


def test_every_draw_but_the_unused_ones_matters(make_backbone, perturb):
    step = Step(make_backbone, perturb, make_config(train="lora"))
    expected = step.run()
    other = Draws.make(step.batch.mean.shape, step.grid, step.config, torch.Generator().manual_seed(2))
    for field in dataclasses.fields(Draws):
        draws = dataclasses.replace(step.draws, **{field.name: getattr(other, field.name)})
        step.draws, kept = draws, step.draws
        same = all(map(torch.equal, step.run().student, expected.student))
        step.draws = kept
        # a LoRA student has one ω, and the critic's input is not renoised
        unused = {"omega", "critic_t", "critic_noise", "drawn", "drawn_t", "drawn_noise", "r1_noise"}
        assert same == (field.name in unused), field.name


def test_draws_are_those_of_their_generator_and_in_range():
    config = make_config()
    grid = config.make_grid(DiscreteSchedule.stable_diffusion())
    shape = torch.Size((500, 1, 2, 2))
    one, two, three = (Draws.make(shape, grid, config, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one.t_n, two.t_n)
    assert torch.equal(one.walk[2], two.walk[2])
    assert not torch.equal(one.noise, three.noise)
    assert len(one.walk) == 3
    moved = one.to(torch.device("cpu"))
    torch.testing.assert_close(vars(moved), vars(one), rtol=0, atol=0)
    assert set(one.t_n.tolist()) <= set(range(7, 1000, 8))
    assert 2.0 <= one.omega.min() < 2.2
    assert 7.8 < one.omega.max() <= 8.0
    independent = [one.latent, one.noise, *one.walk, *one.critic_noise]
    correlation = torch.corrcoef(torch.stack([noise.flatten() for noise in independent]))
    assert (correlation - torch.eye(len(independent))).abs().max() < 0.1


@pytest.mark.parametrize(("family", "prediction"), [("sd1", "epsilon"), ("sd2", "v_prediction")])
def test_the_lcm_settings_are_latent_consistency_distillation(make_backbone, perturb, family, prediction):
    step = Step(make_backbone, perturb, make_config(**LCM_SETTINGS), family)
    backbone, draws, cond = step.backbone, step.draws, step.cond
    alpha, sigma = ladder(backbone)

    def network(unet, x, t, text, omega=None):
        embedding = None if omega is None else backbone.pipeline.get_guidance_scale_embedding(omega - 1, 256)
        output = unet(x, t.clamp(min=0), text, timestep_cond=embedding).sample
        a, s = step.at(alpha, t), step.at(sigma, t)
        if prediction == "epsilon":
            return (x - s * output) / a, output
        return a * x - s * output, a * output + s * x

    def f(unet, x, t):
        tau = 10.0 * t.clamp(min=0).view(-1, 1, 1, 1)
        x0, _ = network(unet, x, t, cond["text"], draws.omega)
        return 0.25 / (tau**2 + 0.25) * x + tau / (tau**2 + 0.25).sqrt() * x0

    t_n, t_m = draws.t_n, draws.t_n - 20
    x_n = step.noised(step.x0, draws.noise, t_n)
    with torch.no_grad():
        x0_c, eps_c = network(backbone.network, x_n, t_n, cond["text"])
        x0_u, eps_u = network(backbone.network, x_n, t_n, step.uncond["text"].expand(B, -1, -1))
        w = draws.omega.view(-1, 1, 1, 1)
        x_m = step.at(alpha, t_m) * (x0_u + w * (x0_c - x0_u)) + step.at(sigma, t_m) * (eps_u + w * (eps_c - eps_u))
        target = f(backbone.copies["target"], x_m, t_m)
    loss = (f(backbone.copies["student"], x_n, t_n) - target).square().mean()
    expected = torch.autograd.grad(loss, tuple(backbone.student_parameters().values()))
    made = step.run()
    assert made.critic == ()
    for mine, theirs in zip(made.student, expected, strict=True):
        assert (mine - theirs).norm() <= 1e-3 * theirs.norm() + 1e-6


def test_clean_data_anchors_the_target(make_backbone, perturb):
    """Where a jump lands on clean data the target is the teacher's answer, whatever the target network says."""
    step = Step(make_backbone, perturb, make_config(adversarial_weight=0.0))
    step.draws = dataclasses.replace(step.draws, t_n=torch.full((B,), 23))
    before = step.run().terms["consistency"]
    perturb(step.backbone.target_parameters(), 9)
    assert torch.equal(step.run().terms["consistency"], before)


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        ({}, {"teacher": 3, "student": 1, "target": 1, "critic": 2}),
        ({"adversarial_weight": 0.0}, {"teacher": 3, "student": 1, "target": 1}),
        (LCM_SETTINGS, {"teacher": 1, "student": 1, "target": 1}),
    ],
    ids=["scott", "no critic", "lcm"],
)
def test_network_calls(make_backbone, perturb, monkeypatch, changes, calls):
    step = Step(make_backbone, perturb, make_config(**changes))
    counted = {}

    def counting(name, call):
        def wrapped(*args):
            counted[name] = counted.get(name, 0) + 1
            return call(*args)

        return wrapped

    for name in ("teacher", "student", "target", "critic"):
        monkeypatch.setattr(step.backbone, name, counting(name, getattr(step.backbone, name)))
    rows = []
    step.backbone.network.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    step.run()
    assert counted == calls
    # the frozen network runs for the teacher, both halves of guidance at once, and under the critic's adapter
    assert rows == [2 * B] * calls["teacher"] + [B] * calls.get("critic", 0)


# --- every family --------------------------------------------------------------------------------------------


def assert_equal_up_to_rounding(ours, expected, tolerance=1e-5):
    for mine, theirs in ((ours.student, expected.student), (ours.critic, expected.critic)):
        scale = max(g.norm() for g in theirs)
        for g, e in zip(mine, theirs, strict=True):
            assert (g - e).norm() <= tolerance * scale


def test_a_step_scales_with_the_loss_and_is_the_same_in_less_memory(make_backbone, perturb, family):
    changes = {"train": "lora", "solver": "ddim", "eta": 0.2, "substeps": 2, "jump": 16}
    step = Step(make_backbone, perturb, make_config(**changes), family)
    expected = step.run()
    assert max(g.abs().max() for g in expected.student) > 0
    assert max(g.abs().max() for g in expected.critic) > 0
    scaled = step.run(loss_scale=1024.0)  # a power of two: exact
    for name, value in expected.terms.items():
        assert torch.equal(scaled.terms[name], value)
    pairs = zip(scaled.student + scaled.critic, expected.student + expected.critic, strict=True)
    assert all(torch.equal(g / 1024, e) for g, e in pairs)
    assert_equal_up_to_rounding(step.run(low_memory=True), expected)
    step.backbone.checkpoint_activations()
    assert_equal_up_to_rounding(step.run(), expected, 1e-6)


KEPT = {
    "er-sde": lambda s, t: (10 + (t**0.3).exp()) / (10 + (s**0.3).exp()),
    "dpmpp-sde": lambda s, t: (t / s) ** 0.2,
    "ddim": lambda s, t: (1 - 0.2**2 * (1 - (t / s) ** 2)).sqrt(),
}
"""Solver → the part q of the noise that a step from λ = s to t keeps."""


@pytest.mark.parametrize("solver", KEPT)
def test_every_solver_walks_a_flow_teacher(make_backbone, perturb, solver):
    """In three sub-steps, beside those of first order by hand: of a flow whose shift is 3, and under ω = 4."""
    changes = {"solver": solver, "adversarial_weight": 0.0} | ({} if solver == "ddim" else {"order": 1})
    step = Step(make_backbone, perturb, make_config(train="lora", **changes), "sd3")
    backbone, batch = step.backbone, step.batch
    nothing = {name: value.expand(B, *value.shape[1:]) for name, value in step.uncond.items()}
    times = [(torch.tensor([24, 32, 400, 800]) - 8 * k) / 1000 for k in range(4)]  # a higher λ keeps all noise
    sigmas = [(3 * t / (1 + 2 * t)).view(-1, 1, 1, 1) for t in times]
    step.draws = dataclasses.replace(step.draws, t_n=times[0])
    x = x_n = (1 - sigmas[0]) * step.x0 + sigmas[0] * step.draws.noise
    for k, w in enumerate(step.draws.walk):
        with torch.no_grad():
            empty, full = (backbone.teacher(x, times[k], cond) for cond in (nothing, batch.cond))
        x0, s, t = empty + 4 * (full - empty), sigmas[k], sigmas[k + 1]
        q = KEPT[solver](s / (1 - s), t / (1 - t))
        x = (1 - t) * x0 + t * (q * (x - (1 - s) * x0) / s + (1 - q**2).sqrt() * w)
    torch.testing.assert_close(step.distillation.walk(batch, step.draws), x, rtol=1e-4, atol=1e-5)
    f, target = (ConsistencyFunction(model, backbone.schedule) for model in (backbone.student, backbone.target))
    loss = (f(x_n, times[0], step.cond) - target(x, times[3], step.cond)).square().mean()
    made = step.run()
    torch.testing.assert_close(made.terms["consistency"], loss.detach())
    assert_close(made.student, torch.autograd.grad(loss, tuple(backbone.student_parameters().values())))


def test_the_draws_of_some_samples_are_theirs_alone():
    config = make_config(train="full")
    grid = config.make_grid(DiscreteSchedule.stable_diffusion())
    whole = Draws.make(torch.Size((6, 1, 2, 2)), grid, config, torch.Generator().manual_seed(0))
    parts = [whole[rows] for rows in (slice(0, 2), slice(2, 6))]
    for field in dataclasses.fields(Draws):
        value, pieces = getattr(whole, field.name), [getattr(part, field.name) for part in parts]
        for tensor, *split in (
            [(value, *pieces)] if isinstance(value, torch.Tensor) else zip(value, *pieces, strict=True)
        ):
            assert torch.equal(tensor, torch.cat(split)), field.name


def test_of_draws_on_a_device_their_times_stay_where_schedules_read_them():
    config = make_config(critic="heads", critic_fakes="drawn", critic_input="clean", critic_r1=1.0)
    grid = config.make_grid(DiscreteSchedule.stable_diffusion())
    draws = Draws.make(torch.Size((6, 1, 2, 2)), grid, config, torch.Generator().manual_seed(0)).to("meta")
    here = {name for name, value in vars(draws).items() if torch.is_tensor(value) and not value.is_meta}
    assert here == {"t_n", "omega", "critic_t", "drawn", "drawn_t"}
    noises = [draws.latent, draws.noise, *draws.walk, *draws.critic_noise, *draws.drawn_noise, *draws.r1_noise]
    assert all(noise.is_meta for noise in noises)


def test_each_part_of_a_step_is_marked_as_it_ends(make_backbone, perturb):
    marks = []
    Step(make_backbone, perturb, make_config()).run(mark=marks.append)
    assert marks == ["teacher", "student", "critic", "student"]
    marks.clear()
    Step(make_backbone, perturb, make_config(critic="none")).run(mark=marks.append)
    assert marks == ["teacher", "student"]


def test_gradients_of_passes_add_up(make_backbone, perturb):
    step = Step(make_backbone, perturb, make_config(train="lora"))
    once = step.run()
    for _ in range(2):
        step.add()
    twice = gradients(step.backbone.student_parameters()) + gradients(step.backbone.critic_parameters())
    for mine, theirs in zip(twice, once.student + once.critic, strict=True):
        torch.testing.assert_close(mine, 2 * theirs)
