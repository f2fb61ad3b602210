"""The game against the critic in its other forms: drawn fakes, an adaptive λ_adv, R1, the critic's rates, the ramp."""

import dataclasses
import shutil

import pytest
import torch
from tests.training.by_hand import B, Step, gradients, ladder, make_config
from tests.training.launch import here
from tests.training.runs import assert_same_run, final, metrics

from scott.diffusion import ConsistencyFunction, DiscreteSchedule, FlowSchedule, JumpGrid
from scott.errors import UserError
from scott.training.balance import Balance
from scott.training.checkpoint import checkpoint_step, checkpoints, load_checkpoint
from scott.training.checks import doubt_of_critic
from scott.training.draws import Draws, sampling_times
from scott.training.parallel import rows_of_pass
from scott.training.step import R1_DISTANCE

FAST = {"solver": "ddim", "eta": 0.0, "jump": 8, "substeps": 1}
DRAWN = {"critic_fakes": "drawn", "critic_input": "clean"}


def student_gradients(step, loss):
    return torch.autograd.grad(loss, tuple(step.backbone.student_parameters().values()), retain_graph=True)


def assert_close(got, expected):
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def fakes_by_hand(step):
    """Rows 1 and 3: the first is drawn in one step, the other's first step is noised to t = 503 and drawn again."""
    backbone, (noise, again) = step.backbone, step.draws.drawn_noise
    step.draws = dataclasses.replace(step.draws, drawn_t=torch.tensor([255, 999, 751, 503]))
    f = ConsistencyFunction(backbone.student, backbone.schedule)
    first = f(noise, torch.full((B,), 999), step.cond)
    second = f(step.noised(first.detach(), again, torch.full((B,), 503)), torch.full((B,), 503), step.cond)
    return torch.stack([first[1], second[3]])


def losses_by_hand(step, drawn):
    """L_CD, L_adv and L_D with data and fakes both at t = 0."""
    fakes = fakes_by_hand(step) if drawn else step.student()
    rows = torch.tensor([1, 3]) if drawn else torch.arange(B)
    clean, cond = torch.full((len(rows),), -1), {name: value[rows] for name, value in step.cond.items()}

    def logits(x0):
        return step.backbone.critic(x0, clean, cond)

    real = logits(step.x0[rows])
    critic = (1 - real).clamp(min=0).mean() + (1 + logits(fakes.detach())).clamp(min=0).mean()
    if step.config.critic_r1:
        change = logits(step.x0[rows] + R1_DISTANCE * step.draws.r1_noise[0][rows]) - real
        critic = critic + step.config.critic_r1 * ((change.mean(1) / R1_DISTANCE) ** 2).mean() / 2
    w = torch.ones(len(rows))
    if step.config.adversarial_weighting == "snr+1":  # α²/σ² + 1 = 1/σ², mean 1 over the times that are drawn at
        per_time = 1 / ladder(step.backbone)[1] ** 2
        stops = torch.tensor(sampling_times(step.distillation.grid, step.config))
        w = (per_time[step.draws.drawn_t[rows] + 1] / per_time[stops + 1].mean()).float()
    adversarial = -(w * logits(fakes).flatten(1).mean(1)).mean()
    return (step.student() - step.target()).square().mean(), adversarial, critic


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"critic": "heads"},
        {"critic_r1": 0.3, "critic": "heads", "train": "lora"},
        {"critic": "heads", "adversarial_weighting": "snr+1"},
        {"critic": "heads", "adversarial_weighting": "snr+1", "drawn_timesteps": (503.0,)},
    ],
    ids=str,
)
def test_drawn_fakes_are_what_sampling_makes(make_backbone, perturb, changes):
    step = Step(make_backbone, perturb, make_config(**FAST, **DRAWN, **changes))
    consistency, adversarial, critic = losses_by_hand(step, drawn=True)
    made = step.run()
    assert_close(made.student, student_gradients(step, consistency + 0.4 * adversarial))
    assert_close(made.critic, torch.autograd.grad(critic, tuple(step.backbone.critic_parameters().values())))
    torch.testing.assert_close(made.terms["adversarial"], adversarial.detach(), rtol=1e-4, atol=1e-5)
    assert "adversarial_ratio" not in made.terms
    assert student_gradients(step, adversarial)[0].norm() > 1e-4


@pytest.mark.parametrize("drawn", [False, True])
def test_an_adaptive_weight_is_a_share_of_the_gradients_norms(make_backbone, perturb, drawn):
    """Two passes with a loss scale of 2, and then half of the ramp."""
    config = make_config(**FAST, **(DRAWN if drawn else {"critic_input": "clean"}), critic="heads")
    step = Step(make_backbone, perturb, config)
    losses = losses_by_hand(step, drawn)
    consistency, adversarial = (student_gradients(step, loss) for loss in losses[:2])
    norms = [torch.cat([g.flatten() for g in grads]).norm() for grads in (consistency, adversarial)]
    parameters = step.backbone.student_parameters()
    balance = Balance(parameters.values(), ratio=0.3)
    for _ in range(2):
        step.add(scale=lambda loss: 2 * loss, apart=balance.apart, adversarial_weight=1.0)
    values = balance.combine(scale=4.0, factor=0.5)
    weight = 0.5 * 0.3 * norms[0] / norms[1]
    assert values["consistency_norm"] == pytest.approx(norms[0].item(), rel=1e-4)
    assert values["adversarial_norm"] == pytest.approx(norms[1].item(), rel=1e-4)
    assert values["adversarial_weight"] == pytest.approx(weight.item(), rel=1e-4)
    assert values["adversarial_ratio"] == pytest.approx(0.5 * 0.3, rel=1e-4)
    made = gradients(parameters)
    assert_close([g / 4 for g in made], [g + weight * a for g, a in zip(consistency, adversarial, strict=True)])


def test_running_means_of_norms_forget_at_a_tenth_and_leave_out_what_is_not_finite():
    parameter = torch.nn.Parameter(torch.zeros(2))
    balance = Balance([parameter], ratio=1.0)

    def update(consistency, adversarial):
        parameter.grad = torch.tensor([consistency, 0.0])
        with balance.apart():
            assert parameter.grad is None
            parameter.grad = torch.tensor([0.0, adversarial])
        return balance.combine(1.0, 1.0)["adversarial_weight"].item()

    assert update(2.0, 1.0) == pytest.approx(2.0)
    assert parameter.grad.tolist() == [2.0, 2.0]
    assert update(4.0, 2.0) == pytest.approx((0.9 * 2 + 0.1 * 4) / (0.9 * 1 + 0.1 * 2))
    update(1.0, float("inf"))
    assert not parameter.grad.isfinite().all()
    assert balance.means == pytest.approx([2.2, 1.1])
    other = Balance([parameter], ratio=1.0)
    other.load(balance.state())
    assert other.means == balance.means


@pytest.mark.parametrize("in_buckets", [False, True])
def test_gradients_are_copied_only_where_the_next_pass_writes_them(in_buckets):
    parameter, bucket = torch.nn.Parameter(torch.zeros(2)), torch.tensor([3.0, 4.0])
    balance = Balance([parameter], ratio=1.0, in_buckets=in_buckets)
    parameter.grad = bucket
    with balance.apart():
        if in_buckets:  # as DDP does
            bucket[:] = torch.tensor([0.0, 1.0])
        parameter.grad = bucket if in_buckets else torch.tensor([0.0, 1.0])
    assert parameter.grad.tolist() == [3.0, 4.0]
    assert (parameter.grad.data_ptr() == bucket.data_ptr()) is not in_buckets
    assert balance.combine(1.0, 1.0)["adversarial_norm"].item() == 1.0


def test_gradients_that_stand_for_several_steps_count_as_many_times():
    """The mean is the one that as many steps of these norms would have left."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    once, thrice = (Balance([parameter], ratio=0.3) for _ in range(2))
    for balance, steps in ((once, (1, 3)), (thrice, (1, 1, 1, 1))):
        for index, number in enumerate(steps):
            parameter.grad = torch.tensor([1.0 if index == 0 else 3.0])
            with balance.apart():
                parameter.grad = torch.tensor([2.0 if index == 0 else 5.0])
            balance.combine(1.0, 1.0, number)
    assert once.means == pytest.approx(thrice.means)
    assert once.weight == pytest.approx(0.3 * once.means[0] / once.means[1])


@pytest.mark.parametrize("critic_start", [0.0, 0.3])
def test_norms_are_measured_now_and_then_once_the_critic_has_settled(critic_start):
    config = make_config(adversarial_share=0.6, adversarial_share_every=10, critic_start=critic_start, max_steps=200)
    settled = config.first_with_critic + 100
    measured = [step for step in range(200) if config.measures_share(step)]
    assert measured == [*range(settled), *range(settled + 9, 200, 10)]
    assert config.measures_seldom
    for changes in ({"max_steps": 100}, DRAWN | {"critic_input": "clean"}, {"adversarial_share_every": 1}):
        each = dataclasses.replace(config, **changes)
        assert not each.measures_seldom
        assert all(map(each.measures_share, range(each.max_steps))), changes


def test_between_two_measurements_the_weight_stands_and_a_step_makes_one_pass(start, tmp_path, monkeypatch):
    """And a run that is stopped there goes on bit for bit."""
    monkeypatch.setattr("scott.training.step_schedule.SETTLING", 2)
    settings = NOISED | {"adversarial_share": 0.6, "adversarial_share_every": 3, "keep_checkpoints": 8}
    start(tmp_path / "whole", max_steps=8, checkpoint_every=1, **settings)
    for stop in (4, 8):
        start(tmp_path / "twice", max_steps=stop, checkpoint_every=1, **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "twice")
    records = metrics(tmp_path / "whole")
    weights = [record["adversarial_weight"] for record in records]
    assert weights[0] == 0, "a head that stands at zero"
    assert 0 < weights[1] != weights[2] == weights[3] == weights[4] != weights[5] == weights[6] == weights[7]
    for name in ("consistency_norm", "adversarial_norm", "adversarial_ratio"):
        assert [step for step, record in enumerate(records) if name in record] == [0, 1, 2, 5]


def test_a_head_that_starts_at_zero_does_not_count_in_the_mean():
    """Its first norm is 0, and of the second one a tenth would be left."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    balance, weights = Balance([parameter], ratio=0.3), []
    for adversarial in (0.0, 2.0, 4.0):
        parameter.grad = torch.tensor([1.0])
        with balance.apart():
            parameter.grad = torch.tensor([adversarial])
        weights.append(balance.combine(1.0, 1.0)["adversarial_weight"].item())
    assert weights == pytest.approx([0, 0.3 / 2, 0.3 / (0.9 * 2 + 0.1 * 4)])


def test_rows_and_times_that_are_drawn_for():
    grid = JumpGrid(DiscreteSchedule.stable_diffusion())
    assert sampling_times(grid, make_config()) == [999, 503, 999, 751, 503, 255]
    config = make_config(**DRAWN, drawn_fraction=1 / 3)
    draws = Draws.make(torch.Size((600, 1, 2, 2)), grid, config, torch.Generator().manual_seed(0))
    for rows in (3, 60, 300):
        assert set(draws.drawn.view(-1, rows).sum(1).tolist()) == {rows // 3}
    counts = {time: (draws.drawn_t == time).sum().item() for time in (999, 751, 503, 255)}
    assert counts == pytest.approx({999: 200, 751: 100, 503: 200, 255: 100}, abs=40)
    own = make_config(**DRAWN, drawn_fraction=1 / 3, drawn_timesteps=(999, 599, 599, 599))
    seldom = Draws.make(torch.Size((600, 1, 2, 2)), grid, own, torch.Generator().manual_seed(0)).drawn_t
    assert {time: (seldom == time).sum().item() for time in (999, 599)} == pytest.approx({999: 150, 599: 450}, abs=40)
    with pytest.raises(
        UserError, match=r"got drawn_timesteps 600; expected times that are trained, such as 991 and 999"
    ):
        dataclasses.replace(own, drawn_timesteps=(999, 600)).make_grid(DiscreteSchedule.stable_diffusion())
    with pytest.raises(UserError, match="got drawn_timesteps 999; expected none of a flow"):
        own.make_grid(FlowSchedule(3.0))
    # what a run of noised fakes draws is left as it was
    noised = Draws.make(torch.Size((600, 1, 2, 2)), grid, make_config(), torch.Generator().manual_seed(0))
    assert torch.equal(draws.critic_noise[1], noised.critic_noise[1])
    assert noised.drawn_noise == noised.r1_noise == ()


def test_each_pass_draws_as_many_samples():
    config = make_config(**DRAWN, batch_size=4, gradient_accumulation=2, drawn_fraction=0.25)
    with pytest.raises(UserError, match=r"got drawn_fraction 0\.25, 1 rows of 4; expected a multiple of 2 rows"):
        rows_of_pass(config, 0, 1)
    assert len(rows_of_pass(dataclasses.replace(config, drawn_fraction=0.5), 0, 1)) == 2


def test_l_adv_is_let_in_after_the_critics_warm_up():
    config = make_config(critic_warmup=2, adversarial_ramp=4)
    assert [config.adversarial_factor(step) for step in range(8)] == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert make_config().adversarial_factor(0) == 1
    later = make_config(critic_warmup=2, adversarial_ramp=4, critic_start=0.21, max_steps=10)
    assert later.first_with_critic == 3
    assert [later.adversarial_factor(step) for step in range(8)] == [0, 0, 0, 0, 0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("steps", [100, 300, 2750, 40_000])
def test_a_critics_start_is_a_whole_number_of_steps_where_it_says_one(steps):
    found = [make_config(critic_start=n / 100, max_steps=steps).first_with_critic for n in range(100)]
    assert found == [-(-n * steps // 100) for n in range(100)]


@pytest.mark.parametrize("start", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_a_critic_that_counts_in_no_step_is_told(start, warmup):
    for steps in range(1, 8):
        config = make_config(critic_start=start, critic_warmup=warmup, max_steps=steps)
        counts = any(config.adversarial_factor(step) for step in range(steps))
        assert (doubt_of_critic(config) is None) == counts, steps
        assert doubt_of_critic(dataclasses.replace(config, critic="none")) is None


def test_a_run_too_short_for_its_critic_says_so(words, tmp_path):
    here(*words(tmp_path / "run", "--max-steps", 2, "--critic-start", 0.6))
    said = "the critic counts in none of the 2 steps: it begins after 2, and learns alone for 0; lower --critic-start"
    assert said in (tmp_path / "run" / "warnings.txt").read_text()


EVERYTHING = FAST | DRAWN | {"critic": "heads", "adversarial_share": 0.3, "critic_warmup": 1, "adversarial_ramp": 2}
EVERYTHING |= {"critic_betas": (0.0, 0.99), "critic_head_rate": 2e-3, "critic_r1": 0.1, "jump_reuse": 2}


def test_a_resumed_run_is_bit_equal_with_every_option_on(start, tmp_path):
    """Stopped with jumps in the store and running means under way, in two passes."""
    settings = EVERYTHING | {"batch_size": 4, "gradient_accumulation": 2, "jump_store": 8, "checkpoint_every": 4}
    start(tmp_path / "whole", max_steps=6, **settings)
    for stop in (4, 6):
        start(tmp_path / "twice", max_steps=stop, **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "twice")
    weights = [record["adversarial_weight"] for record in metrics(tmp_path / "whole")]
    assert weights[0] == 0
    assert min(weights[1:]) > 0
    parts, state = final(tmp_path / "whole")
    assert all((tensor != 1).all() for name, tensor in parts["critic_statistics"].items() if name.endswith("std"))
    assert len(state["balance"]) == 2


NOISED = FAST | {"critic_input": "matched"}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("settings", [EVERYTHING, NOISED], ids=["drawn", "noised"])
def test_up_to_the_critics_start_a_run_is_bit_for_bit_one_without_a_critic(start, tmp_path, settings, precision):
    """And it goes on over it: stopped in the step before and in the one after, it is the run that was not."""
    settings = settings | {"precision": precision, "max_steps": 6, "keep_checkpoints": 6, "checkpoint_every": 1}
    if precision == "fp16":
        settings["critic_r1"] = 0.0  # which fp16 has not
    whole, stopped, without = (tmp_path / name for name in ("whole", "stopped", "without"))
    start(whole, critic_start=0.5, **settings)
    start(without, **settings | {"adversarial_weight": 0.0})

    def saved(out, step):
        (found,) = (path for path in checkpoints(out / "checkpoints") if checkpoint_step(path) == step)
        return found

    def student(out, step):
        return load_checkpoint(saved(out, step))[0]["student"]

    assert all(torch.equal(value, student(without, 3)[name]) for name, value in student(whole, 3).items())
    assert any(not torch.equal(value, student(without, 6)[name]) for name, value in student(whole, 6).items())
    assert ["critic" in record for record in metrics(whole)] == [False] * 3 + [True] * 3
    for last in (3, 4, 6):
        shutil.copytree(whole, stopped)
        for step in range(last + 1, 7):
            shutil.rmtree(saved(stopped, step))
        start(stopped, critic_start=0.5, **settings)
        assert_same_run(whole, stopped)
        shutil.rmtree(stopped)


def test_a_run_with_a_critics_start_is_not_made_longer(start, tmp_path):
    """It is a fraction of the steps, as the rates' fall is."""
    start(tmp_path, critic_start=0.5, max_steps=2, **FAST)
    with pytest.raises(UserError, match="max_steps"):
        start(tmp_path, critic_start=0.5, max_steps=4, **FAST)


def test_heads_have_a_rate_and_betas_of_their_own(start, make_backbone, tmp_path):
    """Adam's first step moves a parameter by its rate, and its second moment is then (1 − β2) g²."""
    rates = {"critic_learning_rate": 1e-3, "critic_head_rate": 4e-3, "critic_betas": (0.0, 0.5)}
    start(tmp_path, max_steps=1, warmup_steps=0, clip_norm=1e6, **FAST, **rates)
    parts, _ = final(tmp_path)
    before = make_backbone("lora", critic_rank=2).critic_parameters()
    moved = {name: (parts["critic"][name] - value.detach()).abs().max() for name, value in before.items()}
    assert moved["heads.0.weight"] == pytest.approx(4e-3, rel=0.01)
    moments = parts["critic_optimizer"]
    torch.testing.assert_close(moments["heads.0.weight.exp_avg"] ** 2, 2 * moments["heads.0.weight.exp_avg_sq"])
