"""InstaFlow and UFOGen on the embedded teacher: their formulas, their losses' gradients, and that a run goes on."""

import json
import math
import os
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from experiments.baselines import student
from experiments.baselines.instaflow import Flow, InstaFlow
from experiments.baselines.ufogen import UFOGen, critic_loss, generator_loss
from tests.tiny.parts import tiny_unet

from scott.data.locks import locked
from scott.diffusion import DiscreteSchedule, expand_like
from scott.errors import UserError
from scott.mini import embedded
from scott.students import load_student

HERE = Path(student.__file__).parent
SCHEDULE = DiscreteSchedule.stable_diffusion()
FLOW = Flow(SCHEDULE)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- the rectified flow --------------------------------------------------------------------------------------


def test_the_velocity_and_the_teachers_epsilon_are_one_another():
    backbone = embedded.load_teacher()
    tau, x_tau = torch.tensor([0, 100, 499, 998]), normal(4, *backbone.latent_shape, dtype=torch.float32)
    cond = backbone.encode_prompts(["a small red apple"] * 4)
    x = x_tau / expand_like(SCHEDULE.alpha(tau) + SCHEDULE.sigma(tau), x_tau)
    with torch.no_grad():
        velocity = FLOW.velocity(backbone.teacher, x, tau, cond)
        expected = backbone.output(None, x_tau, tau, cond)
    torch.testing.assert_close(x - expand_like(FLOW.t[tau], x) * velocity, expected, atol=2e-5, rtol=0)
    # from the schedule's last time, one Euler step to t = 1 is the network's own prediction
    last = torch.full((4,), 999)
    with torch.no_grad():
        one = x_tau + FLOW.velocity(backbone.teacher, x_tau, last, cond)
        torch.testing.assert_close(one, backbone.teacher(x_tau, last, cond), atol=1e-4, rtol=0)


@pytest.mark.parametrize("s", [0.2, 1.0, 3.0])
def test_the_velocity_of_gaussian_data(s):
    """Of X1 ~ N(0, s² I): E[X1 − X0 | X_t] = (t s² − (1 − t)) X_t / (t² s² + (1 − t)²)."""
    tau, x = torch.tensor([0, 10, 400, 998]), normal(4, 3)

    def denoiser(x_t, t, cond):
        alpha, sigma = (expand_like(c, x_t) for c in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
        return alpha * s**2 * x_t / (alpha**2 * s**2 + sigma**2)

    t = (SCHEDULE.alpha(tau) / (SCHEDULE.alpha(tau) + SCHEDULE.sigma(tau)))[:, None]
    expected = (t * s**2 - (1 - t)) * x / (t**2 * s**2 + (1 - t) ** 2)
    torch.testing.assert_close(FLOW.velocity(denoiser, x, tau, None), expected, atol=1e-9, rtol=1e-9)


def denoiser_of(velocity):
    """The denoiser whose velocity is `velocity(t)` everywhere."""

    def denoiser(x_t, tau, cond):
        t = FLOW.t[tau][:, None]
        return x_t * (t**2 + (1 - t) ** 2).sqrt() + (1 - t) * velocity(t)

    return denoiser


def test_a_straight_flow_has_straightness_zero_and_a_bent_one_the_velocitys_variance():
    start, direction = normal(5, 3), normal(5, 3, seed=1)
    end, straightness = FLOW.integrate(denoiser_of(lambda t: direction), start, None, 7)
    torch.testing.assert_close(end, start + direction)
    assert straightness == pytest.approx(0, abs=1e-20)
    end, straightness = FLOW.integrate(denoiser_of(lambda t: 2 * t * direction), start, None, 200)
    torch.testing.assert_close(end, start + direction, atol=0.02, rtol=0)  # ∫ 2t dt = 1, ∫ (2t − 1)² dt = 1/3
    assert straightness == pytest.approx(direction.square().mean().item() / 3, rel=0.02)


def test_times_are_matched_by_noise_over_data():
    t = torch.tensor([0.0, 0.3, 0.7, 1.0])
    tau = FLOW.nearest(t)
    assert (tau[0], tau[-1]) == (999, 0)
    assert torch.allclose(SCHEDULE.lam(tau[1:3]), ((1 - t) / t)[1:3].double(), rtol=0.01)
    start, end = normal(4, 3), normal(4, 3, seed=1)
    assert torch.equal(FLOW.state(start, end, tau)[0], start[0])


def test_pairs_are_in_proportion_to_the_budget():
    assert [InstaFlow(cpu_minutes=minutes).pairs for minutes in (240, 60, 20)] == [10_000, 2500, 833]
    assert (InstaFlow(steps=8).pairs, InstaFlow(cpu_minutes=20, pairs=6).pairs) == (10_000, 6)


# --- runs ----------------------------------------------------------------------------------------------------

SMALL = {"batch_size": 4, "scenes": 8, "warmup": 0}


class Stopped(Exception):
    """Stands for the kill signal."""


MADE = {
    "ufogen": (UFOGen, {"steps": 6}, 3),
    "instaflow": (InstaFlow, {"steps": 8, "pairs": 6, "pair_steps": 2, "flow_steps": 2}, 6),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded teacher with a tiny network in the place of its own."""
    folder, pipeline = tmp_path_factory.mktemp("teacher"), embedded.load_teacher().pipeline
    same = ("sample_size", "in_channels", "out_channels", "cross_attention_dim")
    pipeline.unet = tiny_unet(**{name: pipeline.unet.config[name] for name in same})
    pipeline.save_pretrained(folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """`trained(method)`: a run to its end, and one that is stopped in between and goes on."""

    @cache
    def make(name):
        method, options, stop_at = MADE[name]
        options, runs = options | SMALL | {"teacher": folder, "learning_rate": 1e-3}, []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(student, "CHECKPOINT_EVERY", 2)
            patch.setattr(student, "CHUNK", 4)
            for out in ("whole", "stopped"):
                run = method(out=folder / name / out, **options)
                if out == "stopped":
                    draw, calls = run.draw, []

                    def stopping(indices, generator, draw=draw, calls=calls):
                        calls.append(indices)
                        if len(calls) > stop_at:
                            raise Stopped
                        return draw(indices, generator)

                    run.draw = stopping
                    with pytest.raises(Stopped):
                        run.train()
                    run = method(out=folder / name / out, **options)
                assert run.train() > 0
                runs.append(run)
        return runs

    return make


@pytest.mark.parametrize("name", MADE)
def test_a_run_that_was_stopped_ends_in_the_same_bits_and_draws_as_it_was_saved(trained, name):
    whole, resumed = trained(name)
    states = [run.backbone.copies["target"].state_dict() for run in (whole, resumed)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    teacher = whole.backbone.network.state_dict()
    assert not all(torch.equal(value, teacher[key]) for key, value in states[0].items())
    assert whole.updates == resumed.updates == whole.steps
    saved = load_student(str(whole.save()))
    for steps, sampler in whole.samplers().items():
        expected = sampler.latents(["a small red apple"], 1)
        torch.testing.assert_close(
            saved.sampler(steps, saved.guidance(None)).latents(["a small red apple"], 1), expected
        )
    with pytest.raises(UserError, match="other seed"):
        replace(whole, seed=1).train()


def test_a_run_is_known_by_what_it_is_made_of_and_not_by_its_paths(trained, folder, tmp_path):
    whole, _ = trained("ufogen")
    spelt = replace(whole, out=Path(os.path.relpath(whole.out)), teacher=Path(os.path.relpath(folder)))
    assert spelt.train() == whole.seconds
    file = whole.out / "options.json"
    older = json.loads(file.read_text()) | {"out": "/else/where", "teacher": str(spelt.teacher)}
    del older["data"]
    file.write_text(json.dumps(older | {"shard": "/else/where"}))
    with pytest.raises(UserError, match="other shard"):
        spelt.train()
    file.write_text(json.dumps(older | {"shard": str(whole.shard)}))
    assert spelt.train() == whole.seconds
    shard = tmp_path / "glyphs.tar"
    shard.write_bytes(whole.shard.read_bytes() + bytes(512))
    with pytest.raises(UserError, match="other data"):
        replace(whole, shard=shard).train()
    with locked(whole.out), pytest.raises(UserError, match="written by another command"):
        spelt.train()


def test_a_few_steps_lower_the_losses(trained, monkeypatch):
    instaflow, _ = trained("instaflow")
    drawn = instaflow.draw(range(4), torch.Generator().manual_seed(3))
    after = instaflow.l2(drawn)["l2"].item()
    monkeypatch.setitem(instaflow.backbone.copies, "student", instaflow.backbone.network)
    assert after < instaflow.l2(drawn)["l2"].item()
    ufogen, _ = trained("ufogen")
    with torch.no_grad():
        drawn = ufogen.draw(range(4), torch.Generator().manual_seed(3))
        assert ufogen.losses(drawn)["critic"] < 2 * math.log(2), "which a critic that tells nothing has"


def test_a_budget_is_filled_with_as_many_steps_as_fit(folder, monkeypatch):
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(student, "CALIBRATION", 2)
    monkeypatch.setattr(student, "cpu_seconds", lambda: next(clock))
    run = UFOGen(out=folder / "budget", teacher=folder, cpu_minutes=0.25, **SMALL)  # 15 s, of which two steps take 10
    run.train()
    assert run.updates == 3
    assert json.loads((run.out / "ufogen" / "steps.json").read_text()) == 3
    with pytest.raises(UserError, match="give one of them"):
        UFOGen(**SMALL).train()


def test_a_budget_is_of_the_core_that_it_is_told_of(folder, monkeypatch):
    """Two steps take 10 s: of a machine 4 times as slow, 15 s of the other core are 60 s here, and 12 steps."""
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(student, "CALIBRATION", 2)
    monkeypatch.setattr(student, "cpu_seconds", lambda: next(clock))
    run = UFOGen(out=folder / "slower", teacher=folder, cpu_minutes=0.25, slower=4.0, **SMALL)
    run.train()
    assert run.updates == 12


def test_what_pairs_leave_of_a_budget_is_counted_in_its_core(folder, monkeypatch):
    monkeypatch.setattr(InstaFlow, "kept", lambda run, *_: setattr(run, "seconds", 24.0) or {"ends": torch.zeros(2)})
    monkeypatch.setattr(InstaFlow, "_straightness", lambda run: 0.0)
    asked = []
    monkeypatch.setattr(InstaFlow, "stage", lambda run, *_, seconds, **__: asked.append(seconds) or run.state())
    monkeypatch.setattr(InstaFlow, "state", lambda run: run.backbone.copies["student"].state_dict(), raising=False)
    InstaFlow(out=folder / "left", teacher=folder, cpu_minutes=1.0, slower=2.4, pairs=2, **SMALL).train()
    assert asked == [pytest.approx(60 - 2 * 24 / 2.4)] * 3


def test_a_students_seconds_are_of_one_thread(folder, monkeypatch):
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(UFOGen, "fit", lambda run: seen.append(torch.get_num_threads()) or torch.nn.Linear(1, 1))
    torch.set_num_threads(3)
    try:
        UFOGen(out=folder / "threads", teacher=folder, steps=1, **SMALL).train()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        (UFOGen, {"steps": -3}, "got --steps -3; expected 1 or more"),
        (UFOGen, {"cpu_minutes": -5.0}, "got --cpu-minutes -5; expected a finite number above 0"),
        (InstaFlow, {"cpu_minutes": math.inf}, "got --cpu-minutes inf; expected a finite number above 0"),
        (InstaFlow, {"cpu_minutes": math.nan}, "got --cpu-minutes nan; expected a finite number above 0"),
        (InstaFlow, {"cpu_minutes": 0.0}, "got --cpu-minutes 0; expected a finite number above 0"),
        (InstaFlow, {"steps": 1, "pairs": -4}, "got --pairs -4; expected 0 or more"),
        (InstaFlow, {"steps": 1, "pair_steps": 0}, "got --pair-steps 0; expected 1 or more"),
        (UFOGen, {"steps": 1, "batch_size": 0}, "got --batch-size 0; expected 1 or more"),
        (UFOGen, {"steps": 1, "scenes": 0}, "got --scenes 0; expected 1 or more"),
        (UFOGen, {"steps": 1, "validation": -1}, "got --validation -1; expected 0 or more"),
        (UFOGen, {"steps": 1, "seed": -1}, "got --seed -1; expected 0 or more"),
        (UFOGen, {"steps": 1, "snr_floor": -1.0}, "got --snr-floor -1; expected 0 or more"),
        (UFOGen, {"steps": 1, "ema_decay": 2.0}, "got --ema-decay 2; expected at least 0 and less than 1"),
        (UFOGen, {"cpu_minutes": 1.0, "slower": 0.0}, "got --slower 0; expected a finite number above 0"),
    ],
)
def test_what_is_out_of_range_is_refused_before_anything_is_made(tmp_path, method, options, said):
    with pytest.raises(UserError, match=f"^{said}$"):
        method(out=tmp_path / "new", **options).train()
    assert not (tmp_path / "new").exists()


def test_a_run_that_is_older_than_an_option_goes_on_at_its_default(trained):
    whole, _ = trained("ufogen")
    file = whole.out / "options.json"
    options = json.loads(file.read_text())
    assert options.pop("slower") == "1.0"
    file.write_text(json.dumps(options))
    assert replace(whole).train() == whole.seconds
    file.write_text(json.dumps(options))
    with pytest.raises(UserError, match="with other slower"):
        replace(whole, slower=2.0).train()


@pytest.mark.parametrize(("made", "other"), [("ufogen", InstaFlow), ("instaflow", UFOGen)])
def test_a_run_of_one_method_is_none_of_the_other(trained, made, other):
    whole, _ = trained(made)
    common = {field.name: getattr(whole, field.name) for field in fields(student.Baseline)}
    before = (whole.out / "options.json").read_bytes()
    with pytest.raises(UserError, match="is of a run with other"):
        other(**common).train()
    assert (whole.out / "options.json").read_bytes() == before


# --- UFOGen's game -------------------------------------------------------------------------------------------


def test_the_clamped_game_has_its_values_and_no_gradient_beyond_the_clamps():
    real, fake = (torch.tensor(values, requires_grad=True) for values in ([-1.0, 2.0], [1.0, -2.0]))

    def bce(logit, label):
        p = 1 / (1 + math.exp(-logit))
        return -math.log(p if label else 1 - p)

    loss = critic_loss(real, fake)
    loss.backward()
    expected = (bce(-1, True) + bce(0.5, True) + bce(1, False) + bce(-0.5, False)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert (real.grad[1], fake.grad[1]) == (0, 0)
    assert real.grad[0] < 0 < fake.grad[0]
    judged = torch.tensor([-1.0, 2.0], requires_grad=True)
    loss = generator_loss(judged)
    loss.backward()
    assert loss.item() == pytest.approx((bce(-1, True) + bce(0.5, True)) / 2, rel=1e-6)
    assert judged.grad[1] == 0 > judged.grad[0]


def gradients(network):
    return [None if p.grad is None else p.grad.clone() for p in network.parameters()]


def test_each_loss_moves_its_own_network_and_the_critic_learns_every_second_step(trained):
    ufogen, _ = trained("ufogen")
    generator, critic = (ufogen.backbone.copies[name].requires_grad_(True) for name in ("student", "critic"))

    def after(loss):
        for network in (generator, critic):
            network.zero_grad()
        loss.backward()
        return gradients(generator), gradients(critic)

    drawn = ufogen.draw(range(4), torch.Generator().manual_seed(1))
    terms = ufogen.losses(drawn)
    assert terms.keys() == {"generator", "reconstruction", "critic"}
    of_generator, untouched = after(terms["generator"] + terms["reconstruction"])
    nothing, of_critic = after(terms["critic"])
    assert all(grad is None for grad in (*untouched, *nothing))
    assert all(grad is not None for grad in (*of_generator, *of_critic))
    assert ufogen.losses(ufogen.draw(range(4, 8), torch.Generator().manual_seed(1))).keys() < terms.keys()


def test_a_reconstruction_with_a_floor_is_one_of_x0_where_noise_prevails(trained, monkeypatch):
    ufogen, _ = trained("ufogen")
    monkeypatch.setattr(ufogen, "snr_floor", 1.0)
    drawn = ufogen.draw(range(4, 8), torch.Generator().manual_seed(2)) | {"t": torch.tensor([20, 100, 700, 999])}
    x_t = SCHEDULE.add_noise(drawn["x0"], drawn["noise"], drawn["t"])
    predicted = ufogen.backbone.student(x_t, drawn["t"], {"text": drawn["text"]})
    snr = (SCHEDULE.alpha(drawn["t"]) / SCHEDULE.sigma(drawn["t"])).square()
    assert (snr > 1).tolist() == [True, True, False, False]
    errors = (drawn["x0"] - predicted).square().mean(dim=(1, 2, 3))
    expected = (torch.tensor([snr[0], snr[1], 1.0, 1.0]) * errors).mean().item()
    assert ufogen.losses(drawn)["reconstruction"].item() == pytest.approx(expected, rel=1e-4)


def test_the_table_of_trials_is_of_their_lines():
    page = (HERE / "README.md").read_text()
    lines = [json.loads(line) for line in (HERE / "trials.jsonl").read_text().splitlines()]
    assert len(lines) == page.count("experiments.baselines.ufogen --scenes 65536 --steps 500")
    for line in lines:
        cells = [f"{by['fid']:.1f}, {by['coverage']:.3f}" for by in line["steps"].values()]
        rate, floor = (line["settings"].get(name, usual) for name, usual in (("learning_rate", 1e-4), ("snr_floor", 0)))
        assert f"| {f'{rate:.0e}'.replace('e-0', 'e-')} | {floor:g} | {' | '.join(cells)} |" in page


def test_the_reconstruction_is_the_error_of_epsilon(trained):
    ufogen, _ = trained("ufogen")
    backbone = ufogen.backbone
    drawn = ufogen.draw(range(4, 8), torch.Generator().manual_seed(2))
    x_t = SCHEDULE.add_noise(drawn["x0"], drawn["noise"], drawn["t"])
    epsilon = backbone.output("student", x_t, drawn["t"], {"text": drawn["text"]})
    expected = (epsilon - drawn["noise"]).square().mean().item()
    assert ufogen.losses(drawn)["reconstruction"].item() == pytest.approx(expected, rel=1e-4)
