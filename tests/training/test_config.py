"""A run's config survives the disk, and refuses what cannot be run."""

import dataclasses
import json
from inspect import signature
from pathlib import Path

import pytest
import torch

from scott.diffusion import DiscreteSchedule
from scott.errors import UserError
from scott.recipes.configs import mini, sd15
from scott.solvers import NOISE_SCALES, SOLVERS, make
from scott.training.checks import check_given
from scott.training.config import LCM_SETTINGS, PAPER_SETTINGS, DistillConfig

SD = DiscreteSchedule.stable_diffusion()


def config(**changes):
    return DistillConfig(**({"teacher": "t", "data": "d", "out": Path("runs/a"), "train": "full"} | changes))


def test_the_defaults_are_the_papers():
    paper = config()
    assert (paper.learning_rate, paper.critic_learning_rate) == (8e-6, 2e-5)
    assert (paper.batch_size, paper.max_steps, paper.adversarial_weight) == (40, 40_000, 0.4)
    assert (paper.jump, paper.substeps, paper.loss, paper.critic_rank) == (24, 3, "l2", 64)
    assert (paper.critic, paper.critic_input, paper.has_critic) == ("lora", "paper", True)
    solver = paper.make_solver(SD)
    assert (type(solver).__name__, solver.order, solver.stochastic) == ("ERSDE", 2, True)


def test_rates_rise_stay_and_fall():
    ours = config(max_steps=12, warmup_steps=4, decay=0.5)
    factors = [ours.rate_factor(step) for step in range(12)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert [config(warmup_steps=0).rate_factor(step) for step in (0, 39_999)] == [1, 1]
    # where both would be at work, the lower one is
    assert config(max_steps=4, warmup_steps=8, decay=1.0).rate_factor(2) == pytest.approx(3 / 8)


EVERYTHING = {
    "critic": "unconditional",
    "lora_alpha": 0.5,
    "precision": "fp16",
    "gradient_checkpointing": True,
    "low_memory": True,
    "compile": True,
    "optimizer": "adamw8bit",
    "train": "lora",
    "critic_betas": (0.0, 0.99),
    "critic_head_rate": 1e-2,
}


@pytest.mark.parametrize(
    "changes",
    [{}, {"out": Path("x y/ω"), "seed": 3}, LCM_SETTINGS, EVERYTHING],
    ids=["plain", "path", "lcm", "everything"],
)
def test_json_round_trip(tmp_path, changes):
    file = tmp_path / "config.json"
    file.write_text(config(**changes).to_json())
    assert DistillConfig.load(file) == config(**changes)
    assert set(json.loads(file.read_text())) == {field.name for field in dataclasses.fields(DistillConfig)}


NONE = ["", "{", "[]", "{}", "3", '{"out": "a"}', '{"out": 3, "teacher": "t", "data": "d"}', "[" * 100_000]


@pytest.mark.parametrize("text", NONE, ids=range(len(NONE)))
def test_another_file_is_not_a_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="is not the config of a scott run") as caught:
        DistillConfig.load(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


def test_a_misspelt_name_or_a_bad_value_on_disk_is_an_error(tmp_path):
    file = tmp_path / "config.json"
    for change in ({"learning_rat": 1.0}, {"batch_size": 0}):
        file.write_text(json.dumps(json.loads(config().to_json()) | change))
        with pytest.raises(UserError, match=next(iter(change))):
            DistillConfig.load(file)


POSITIVE = (
    "max_steps batch_size learning_rate critic_learning_rate clip_norm jump substeps critic_rank lora_rank log_every "
    "sample_every checkpoint_every keep_checkpoints jump_reuse jump_store adversarial_share_every"
)
OUT_OF_RANGE = [
    *((name, value) for name in POSITIVE.split() for value in (0, -1)),
    *((name, -1) for name in ("seed", "warmup_steps", "weight_decay", "adversarial_weight", "adversarial_share")),
    *((name, -1) for name in ("critic_warmup", "adversarial_ramp", "critic_r1")),
    *(("drawn_fraction", value) for value in (0.0, 1.5)),
    ("critic_head_rate", 0.0),
    *(("critic_betas", value) for value in ((0.9, 1.0), (0.9,))),
    *(("ema_decay", value) for value in (-0.1, 1.0, 1.5)),
    ("guidance_min", 0.5),
    ("guidance_max", 2.9),
    *(("lora_alpha", value) for value in (0.0, -1.0)),
    *((name, "other") for name in ("method", "solver", "loss", "critic", "critic_fakes", "critic_input", "train")),
    *(
        (name, "other")
        for name in ("precision", "optimizer", "weighting", "adversarial_weighting", "times", "shard", "tracker")
    ),
    ("best_metric", "other"),
]
NUMBERS = [field.name for field in dataclasses.fields(DistillConfig) if field.type in (float, float | None)]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_an_error_that_names_it(name, value):
    with pytest.raises(UserError, match=f"got {name} .*; expected"):
        config(**{name: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_finite(name, value):
    with pytest.raises(UserError, match=name):
        config(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_steps", 1e3, "a whole number"),
        ("seed", True, "a whole number"),
        ("lora_rank", None, "a whole number"),
        ("validate_every", "100", "a whole number"),
        ("learning_rate", "1e-4", "a number"),
        ("lora_alpha", "8", "a number"),
        ("compile", 1, "True or False"),
        ("critic_betas", [0.0, 0.99], "a tuple"),
        ("teacher_lora", "style.safetensors", "a tuple"),
    ],
)
def test_a_value_of_another_type_is_an_error_that_names_it(name, value, expected):
    with pytest.raises(UserError, match=f"got {name} .*; expected {expected}$"):
        config(**{name: value})


def test_a_whole_number_is_a_number_and_text_a_place(tmp_path):
    assert config(learning_rate=1, lora_alpha=None).lora_alpha is None
    assert config(out=str(tmp_path)).out == tmp_path


def test_a_lora_student_has_one_omega():
    with pytest.raises(UserError, match=r"from 3\.0 to 15\.0 for a LoRA .* guidance_min = guidance_max") as caught:
        config(train="lora", guidance_max=15.0)
    assert "\n" not in str(caught.value)
    assert config(train="lora", guidance_min=7.5, guidance_max=7.5).train == "lora"
    assert config(train="full", guidance_max=15.0).guidance_max == 15


def test_a_run_trains_lora_for_one_omega_by_default():
    default = DistillConfig(teacher="t", data="d", out=Path("a"))
    assert (default.train, default.guidance_min, default.guidance_max) == ("lora", 3.0, 3.0)
    assert (default.precision, default.dtype, default.optimizer) == ("fp32", torch.float32, "adamw")
    assert [default.gradient_checkpointing, default.low_memory, default.compile] == [False] * 3


def test_alpha_is_the_rank_unless_it_is_given():
    assert config(lora_rank=16).alpha == 16.0
    assert config(lora_rank=16, lora_alpha=8.0).alpha == 8.0


def test_there_is_a_critic_where_it_has_a_weight():
    assert not config(critic="none").has_critic
    assert not config(adversarial_weight=0.0).has_critic
    assert config(critic="full").has_critic


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_precision_is_that_of_the_frozen_network(precision, dtype):
    assert config(precision=precision).dtype == dtype


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"solver": "ddim", "eta": -0.1}, "got eta -0.1; expected 0 or more"),
        ({"solver": "ddim", "eta": 1.1}, "got eta 1.1 with the solver ddim; expected 0 to 1"),
        ({"phi": "6"}, "got phi '6'; expected one of 'ode', '1'"),
        ({"order": 4}, "got order 4; expected one of 1, 2, 3"),
        ({"order": 0}, "got order 0; expected one of 1, 2, 3"),
        ({"solver": "dpmpp-sde", "order": 3}, "got order 3 with the solver dpmpp-sde; expected 1 or 2"),
    ],
    ids=str,
)
def test_a_solvers_options_are_checked(changes, said):
    """By the config alone: a teacher may take minutes to load."""
    with pytest.raises(UserError, match=said):
        config(**changes)


@pytest.mark.parametrize("solver", ["ddim", "er-sde", "dpmpp-sde"])
def test_a_config_takes_what_the_solver_takes(solver):
    """And nothing else, of what it names."""
    choices = {"phi": (*NOISE_SCALES, "6"), "order": range(5), "eta": (-0.5, 0.0, 1.0, 1.5)}
    for name, values in choices.items():
        takes = name in signature(SOLVERS[solver]).parameters
        for value in values if takes else ():
            options = {"solver": solver, name: value}
            assert is_refused(config, **options) == is_refused(make, solver, SD, **{name: value}), options


def is_refused(made, *given, **options):
    try:
        made(*given, **options)
    except UserError:
        return True
    return False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"jump": 25}, "got jump 25 and 3 sub-steps; jump must be a multiple"),
        ({"jump": 1002}, "got jump 1002 on a schedule of 1000 training steps"),
        ({"substeps": 5}, "got jump 24 and 5 sub-steps; jump must be a multiple"),
    ],
    ids=str,
)
def test_the_grid_is_checked(changes, said):
    with pytest.raises(UserError, match=said):
        config(**changes).make_grid(SD)


def test_a_start_is_the_same_however_its_place_is_spelt(tmp_path):
    mine = config(init="runs/a")
    assert (
        mine.differences(config(init="./runs/b/../a"))
        == mine.differences(config(init=str(Path("runs/a").absolute())))
        == []
    )
    (tmp_path / "link").symlink_to(Path("runs").absolute())
    assert mine.differences(config(init=str(tmp_path / "link" / "a"))) == []
    assert mine.differences(config(init="runs/b")) == ["init: runs/a → runs/b"]
    assert mine.differences(config()) == ["init: runs/a → None"]


def test_differences_are_what_decides_the_weights():
    mine = config()
    assert mine.differences(config()) == []
    free = dict.fromkeys(("max_steps", "log_every", "sample_every", "checkpoint_every", "keep_checkpoints"), 1)
    assert mine.differences(config(out=Path("b"), **free)) == []
    # what saves memory changes the numbers by rounding only
    assert mine.differences(config(gradient_checkpointing=True, low_memory=True, compile=True)) == []
    assert mine.differences(config(seed=1, loss="l1")) == ["seed: 0 → 1", "loss: l2 → l1"]
    # what is left out is what it stands for
    for critic in ("lora", "heads"):
        mine = config(critic=critic, critic_input="clean", critic_learning_rate=1e-3)
        assert mine.differences(dataclasses.replace(mine, lora_alpha=64.0, critic_head_rate=1e-3)) == []
    mine = config()
    # fractions of the steps, of which there are none without a critic
    assert (
        config(critic="none", critic_start=0.5).differences(config(critic="none", critic_start=0.5, max_steps=9)) == []
    )
    assert config(critic_start=0.5).differences(config(critic_start=0.5, max_steps=9)) == ["max_steps: 40000 → 9"]
    decisive = {"critic": "full", "critic_head_rate": 1.0, "lora_alpha": 1.0, "train": "lora"}
    decisive |= {"precision": "bf16", "optimizer": "adamw8bit"}
    found = {line.split(":")[0] for line in mine.differences(config(**decisive))}
    assert found == decisive.keys()


def test_heads_on_a_frozen_encoder_are_not_told_what_is_data_by_the_time():
    with pytest.raises(UserError, match="add --critic-input clean"):
        config(critic="heads")
    assert config(critic="heads", critic_input="clean").has_critic
    assert not config(critic="heads", adversarial_weight=0.0).has_critic


def test_a_weight_that_a_share_would_replace_is_refused():
    said = "which sets the weight by itself; leave the weight out, or add --adversarial-share 0 for a fixed weight"
    with pytest.raises(UserError, match=f"adversarial_weight 0.1 with adversarial_share 0.3, {said}"):
        config(adversarial_share=0.3, adversarial_weight=0.1)
    assert config(adversarial_share=0.0, adversarial_weight=0.1).has_critic
    assert not config(adversarial_share=0.3, adversarial_weight=0.0).has_critic


@pytest.mark.parametrize(
    ("given", "said", "added"),
    [
        ({"adversarial_weight": 1.0}, "add --adversarial-share 0", {"adversarial_share": 0.0}),
        ({"adversarial_weight": 0.4}, "add --adversarial-share 0", {"adversarial_share": 0.0}),
        ({"method": "paper", "critic": "heads"}, "add --critic-input clean", {"critic_input": "clean"}),
        ({"method": "lcm", "adversarial_share": 0.5}, "take a --method that has a critic", {"method": "scott"}),
        ({"adversarial_share_every": 5}, "name another critic_fakes", {"critic_fakes": "noised"}),
    ],
    ids=str,
)
def test_what_a_message_says_to_add_is_taken(given, said, added):
    with pytest.raises(UserError, match=said):
        check_given(mini(**given), given)
    check_given(mini(**given | added), given | added)


def test_a_share_that_is_measured_seldom_is_one_of_a_share():
    given = {"method": "paper", "adversarial_share_every": 5}
    said = r"got adversarial_share_every 5, which adversarial_share 0\.0 does not have; leave it out, or name another"
    with pytest.raises(UserError, match=said):
        check_given(mini(**given), given)


@pytest.mark.parametrize("other", [{"adversarial_share": 0.5}, {"critic_r1": 0.1}], ids=str)
def test_what_a_message_says_to_leave_out_is_left_out(other):
    given = {"adversarial_weight": 0.0} | other
    with pytest.raises(UserError, match="leave it out, or leave adversarial_weight out"):
        check_given(mini(**given), given)
    check_given(mini(**other), other)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_differences_of_a_hundredth_are_not_taken_in_half_precision(precision):
    """On the embedded teacher the gradient of R1 came out 28 to 152 % off."""
    with pytest.raises(UserError, match=f"critic_r1 0.1 with precision {precision}.*train in fp32"):
        config(critic_r1=0.1, precision=precision)
    assert config(critic_r1=0.1).has_critic


def test_the_papers_method_undoes_what_a_recipe_chooses():
    chosen = {"solver": "dpmpp-sde", "jump": 300, "critic": "heads", "critic_fakes": "drawn", "critic_input": "clean"}
    chosen |= {"adversarial_share": 0.3, "weighting": "snr+1", "jump_reuse": 3, "critic_betas": (0.0, 0.99)}
    assert config(**(chosen | PAPER_SETTINGS)) == config(method="paper")


def test_what_is_without_effect_makes_no_other_run():
    heads = config(critic="heads", critic_input="clean", critic_head_rate=1e-3)
    assert heads.differences(dataclasses.replace(heads, critic_rank=8, drawn_fraction=0.1, eta=0.0)) == []
    assert heads.differences(dataclasses.replace(heads, critic_learning_rate=1e-2)) == []
    assert config().differences(config(critic_rank=8)) == ["critic_rank: 64 → 8"]
    assert config(eta=0.0).differences(config(solver="ddim", order=2, eta=0.0)) == ["solver: er-sde → ddim"]


@pytest.mark.parametrize("given", [{"adversarial_share": 0.0}, {"method": "lcm"}, {"critic_fakes": "drawn"}], ids=str)
def test_how_often_a_share_is_measured_makes_no_other_run_where_none_is(given):
    run = sd15(data="d", **given)
    assert run.differences(dataclasses.replace(run, adversarial_share_every=1)) == []
    assert sd15(data="d").differences(sd15(data="d", adversarial_share_every=1)) == ["adversarial_share_every: 10 → 1"]


def test_quantised_weights_are_not_split():
    with pytest.raises(UserError, match="got quantize nf4 with shard full, which splits whole weights; use one"):
        config(quantize="nf4", shard="full")
