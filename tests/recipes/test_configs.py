"""Recipes are complete configs, and LCM is SCott with other settings."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.teachers.published import published, write_configs

from scott.commands.distill import add_models, check_config, config_of
from scott.diffusion import DiscreteSchedule
from scott.errors import UserError
from scott.recipes.configs import RECIPES, mini, sd3, sd15
from scott.recipes.families import FAMILIES, recipes_of
from scott.teachers.layout import FAMILIES as PIPELINES
from scott.training.config import LCM_SETTINGS, DistillConfig


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("method", ["scott", "paper", "lcm"])
def test_a_recipe_is_a_complete_config(name, method, tmp_path):
    config = RECIPES[name](method=method, data="mini")
    file = tmp_path / "config.json"
    file.write_text(config.to_json())
    assert DistillConfig.load(file) == config
    schedule = DiscreteSchedule.stable_diffusion()
    assert config.make_grid(schedule).inference_times(2)[0] == 999
    assert config.make_solver(schedule).stochastic == (method != "lcm" and (name, method) != ("mini", "scott"))


@pytest.mark.parametrize("name", RECIPES)
def test_lcm_differs_from_scott_in_its_settings_only(name):
    scott, lcm = (dataclasses.asdict(RECIPES[name](method=method, data="mini")) for method in ("scott", "lcm"))
    differ = {key for key in scott if scott[key] != lcm[key]}
    # on the embedded teacher both walk alike, and each has the rates that suit it
    own = {"method", "adversarial_weight", "adversarial_share", "critic_start", "decay"}
    assert differ == (own if name == "mini" else set(LCM_SETTINGS))


def test_lcm_is_reached_by_flags_alone():
    flags = {"solver": "ddim", "eta": 0.0, "substeps": 1, "adversarial_weight": 0.0}
    scott = mini(**flags, decay=0.0, adversarial_share=0.0, critic_start=0.0)  # the recipe's rates fall
    assert dataclasses.replace(scott, method="lcm") == mini(method="lcm")
    assert dataclasses.replace(sd15(**flags, jump=20, data="d"), method="lcm") == sd15(method="lcm", data="d")


def test_a_change_wins_over_recipe_and_method():
    config = mini(method="lcm", jump=24, out=Path("elsewhere"))
    assert (config.jump, config.substeps, config.out) == (24, 1, Path("elsewhere"))


def test_sd15_is_the_paper():
    """PAPER's experiments: ER-SDE 5 of order 2, jump 24, h = 3, λ_adv = 0.4, rates, batch and iterations."""
    config = sd15(data="laion", train="full")
    assert (config.solver, config.phi, config.order, config.jump, config.substeps) == ("er-sde", "5", 2, 24, 3)
    assert (config.adversarial_weight, config.learning_rate, config.critic_learning_rate) == (0.4, 8e-6, 2e-5)
    assert (config.batch_size, config.max_steps, config.critic_rank) == (40, 40_000, 64)
    assert (config.critic, config.critic_input) == ("lora", "clean"), "what the critic is told is not the paper's"
    assert sd15(method="paper", data="laion").critic_input == "paper"


def test_recipes_of_real_teachers_have_one_pair_of_rates():
    """That at which `test_real_scale` finds LoRA to learn as fast as a full student."""
    for train, rate in (("full", 8e-6), ("lora", 1e-4)):
        rates = {name: RECIPES[name](data="d", train=train).learning_rate for name in RECIPES if name != "mini"}
        assert set(rates.values()) == {rate}


@pytest.mark.parametrize("name", ["sd15", "realistic-vision", "sdxl"])
def test_a_full_student_of_a_unet_is_told_its_guidance_and_a_lora_is_not(name):
    lora, full = (RECIPES[name](data="d", train=train) for train in ("lora", "full"))
    assert RECIPES[name](data="d") == lora
    assert lora.guidance_min == lora.guidance_max
    assert (full.guidance_min, full.guidance_max) == (3.0, 15.0)
    assert RECIPES[name](data="d", train="full", guidance_max=9.0).guidance_max == 9.0


@pytest.mark.parametrize("method", ["scott", "lcm"])
def test_a_full_student_is_drawn_at_its_recipes_guidance_and_not_in_the_middle_of_its_range(method):
    """CFG 3, at which the paper evaluates."""
    assert RECIPES["sd15"](method=method, data="d", train="full").drawn_guidance == 3.0
    assert RECIPES["sdxl"](method=method, data="d", train="full").drawn_guidance == 8.0
    assert sd15(data="d", train="full", guidance_min=5.0).drawn_guidance == 5.0
    assert sd15(data="d", train="full", guidance=7.5).drawn_guidance == 7.5
    with pytest.raises(UserError, match=r"got guidance 20.0; expected one the student is trained for, 3 to 15"):
        sd15(data="d", train="full", guidance=20.0)


@pytest.mark.parametrize("name", ["pixart", "sd3"])
def test_a_transformer_is_trained_for_one_guidance_scale(name):
    for train in ("lora", "full"):
        config = RECIPES[name](data="d", train=train)
        assert config.guidance_min == config.guidance_max


@pytest.mark.parametrize("name", RECIPES)
def test_a_lora_student_with_a_range_of_guidance_is_refused(name):
    with pytest.raises(UserError, match=r"for a LoRA student, .* set guidance_min = guidance_max") as error:
        RECIPES[name](data="d", train="lora", guidance_min=2.0, guidance_max=9.0)
    assert "\n" not in str(error.value)


def test_a_transformer_student_with_a_range_of_guidance_is_refused(make_backbone, family):
    ranged = sd15(data="d", train="full", guidance_min=2.0, guidance_max=9.0)
    single = dataclasses.replace(ranged, guidance_max=2.0, guidance=2.0)
    backbone = make_backbone(family=family)
    check_config(backbone, single)
    if backbone.takes_guidance:
        check_config(backbone, ranged)
        return
    with pytest.raises(UserError, match=r"from 2\.0 to 9\.0 .* takes no ω; set guidance_min = guidance_max") as error:
        check_config(backbone, ranged)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("critic", ["lora", "full", "unconditional", "none"])
def test_the_models_are_those_of_the_config_and_alike_each_time(make_backbone, critic):
    config = sd15(data="d", critic=critic, lora_rank=2, lora_alpha=3.0, critic_rank=3, seed=5)
    one, other = make_backbone(), make_backbone()
    for backbone in (one, other):
        add_models(backbone, config)
    assert one.adapters.scaling("student") == one.adapters.scaling("target") == 1.5
    assert (one.critic_model and one.critic_model.kind) == (None if critic == "none" else critic)
    assert bool(one.critic_parameters()) == (critic != "none")
    for mine, theirs in (
        (one.student_parameters(), other.student_parameters()),
        (one.critic_parameters(), other.critic_parameters()),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_every_family_that_loads_has_a_recipe_and_every_recipe_a_family():
    assert FAMILIES.keys() == PIPELINES.keys()
    assert {name for names in FAMILIES.values() for name in names} == RECIPES.keys()


def test_a_teacher_without_a_recipe_gets_its_own_or_its_familys():
    for pipeline, names in FAMILIES.items():
        for name in names:
            if name == "mini" or pipeline == "PixArtSigmaPipeline":
                continue
            network = published(name if name != "realistic-vision" else "sd15").get("transformer/config.json", {})
            assert recipes_of(RECIPES[name](data="d").teacher, pipeline, network)[0] == name
    assert recipes_of("owner/fine-tune", "StableDiffusionPipeline", {})[0] == "sd15"


@pytest.mark.parametrize("name", ["sd3", "sd35-medium", "sd35-large"])
def test_an_edition_of_sd3_has_one_recipe_by_its_config_whatever_its_name(name, tmp_path):
    given = {"teacher": str(write_configs(name, tmp_path)), "data": "d"}
    assert config_of(None, given)[0] == name
    other = "sd3" if name != "sd3" else "sd35-large"
    with pytest.raises(UserError, match=f"which the recipe {other} is not for; use {name}"):
        config_of(other, given)


FEW_STEP = [
    "owner/Z-Image-Turbo",
    "/here/sdxl_lightning",
    "FLUX.1-schnell",
    "lcm.safetensors",
    "owner/LCM_Dreamshaper_v7",
]
FEW_STEP += [
    "ByteDance/Hyper-SD",
    "RealVisXL_V4.0_Lightning",
    "sdxl_lightning_4step.safetensors",
    "mix-turbo-v2.fp16.ckpt",
]


@pytest.mark.parametrize("name", FEW_STEP)
def test_a_few_step_student_by_its_name_is_refused(make_backbone, name):
    with pytest.raises(UserError, match="is a few-step student already by its name"):
        check_config(make_backbone(), sd15(data="d", teacher=name))


@pytest.mark.parametrize(
    "name", ["owner/hyper-realistic-xl", "Lightning-Photography", "my.turbo.folder", "lcmix", "sdxlturbo"]
)
def test_a_teacher_with_such_a_word_in_its_name_is_none(make_backbone, name):
    check_config(make_backbone(), sd15(data="d", teacher=name))


def test_a_first_jump_that_would_forget_its_start_is_refused(make_backbone):
    """Where the schedule ends in pure noise."""
    with pytest.raises(UserError, match="got eta 1 with ddim, whose first jump would forget"):
        check_config(make_backbone(family="sd3"), sd3(data="d", solver="ddim", eta=1.0))
    check_config(make_backbone(family="sd3"), sd3(data="d", solver="ddim", eta=0.9))
    check_config(make_backbone(), sd15(data="d", solver="ddim", eta=1.0))


def test_the_papers_method_with_ddim_has_the_papers_noise():
    """And what a solver does not have makes no other run."""
    paper = mini(method="paper")
    assert (paper.solver, mini(method="paper", solver="ddim").eta) == ("er-sde", 0.2)
    assert paper.differences(dataclasses.replace(paper, eta=0.0)) == []
    ddim = dataclasses.replace(paper, solver="ddim")
    assert ddim.differences(dataclasses.replace(ddim, eta=0.0)) == ["eta: 0.2 → 0.0"]
    assert paper.differences(dataclasses.replace(paper, phi="1")) == ["phi: 5 → 1"]


def test_the_solver_is_given_only_what_it_has():
    schedule = DiscreteSchedule.stable_diffusion()
    assert mini(solver="ddim", eta=0.3).make_solver(schedule).eta == 0.3
    assert mini(solver="dpmpp-sde", eta=0.3, order=1).make_solver(schedule).order == 1
    assert mini(solver="er-sde", order=1).make_solver(schedule).order == 1
    for solver, option in (("ddim", {"order": 1}), ("er-sde", {"eta": 0.5}), ("dpmpp-sde", {"phi": "3"})):
        with pytest.raises(UserError, match="does not have"):
            mini(solver=solver, **option)
