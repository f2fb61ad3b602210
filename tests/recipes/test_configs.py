"""Recipes are complete configs, and LCM is SCott with other settings."""

import dataclasses
from pathlib import Path

import pytest

from scott.diffusion import DiscreteSchedule
from scott.errors import UserError
from scott.recipes import RECIPES
from scott.training.config import LCM_SETTINGS, DistillConfig


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("method", ["scott", "lcm"])
def test_a_recipe_is_a_complete_config(name, method, tmp_path):
    config = RECIPES[name](method, data="mini")
    file = tmp_path / "config.json"
    file.write_text(config.to_json())
    assert DistillConfig.load(file) == config
    schedule = DiscreteSchedule.stable_diffusion()
    assert config.make_grid(schedule).inference_times(2)[0] == 999
    assert config.make_solver(schedule).stochastic == (method == "scott")


@pytest.mark.parametrize("name", RECIPES)
def test_lcm_differs_from_scott_in_its_settings_only(name):
    scott, lcm = (dataclasses.asdict(RECIPES[name](method, data="mini")) for method in ("scott", "lcm"))
    assert {key for key in scott if scott[key] != lcm[key]} == set(LCM_SETTINGS)


def test_a_change_wins_over_recipe_and_method():
    config = RECIPES["mini"]("lcm", jump=24, out=Path("elsewhere"))
    assert (config.jump, config.substeps, config.out) == (24, 1, Path("elsewhere"))


def test_sd15_is_the_paper():
    """PAPER's experiments: ER-SDE 5 of order 2, jump 24, h = 3, λ_adv = 0.4, rates, batch and iterations."""
    config = RECIPES["sd15"](data="laion")
    assert (config.solver, config.phi, config.order, config.jump, config.substeps) == ("er-sde", "5", 2, 24, 3)
    assert (config.adversarial_weight, config.learning_rate, config.critic_learning_rate) == (0.4, 8e-6, 2e-5)
    assert (config.batch_size, config.max_steps, config.critic_rank) == (40, 40_000, 64)


def test_the_solver_is_given_only_what_it_has():
    schedule = DiscreteSchedule.stable_diffusion()
    assert RECIPES["mini"](solver="ddim", eta=0.3).make_solver(schedule).eta == 0.3
    assert RECIPES["mini"](solver="dpmpp-sde", eta=0.3, order=1).make_solver(schedule).order == 1
    assert RECIPES["mini"](solver="er-sde", order=1).make_solver(schedule).order == 1
    for solver, option in (("ddim", {"order": 1}), ("er-sde", {"eta": 0.5}), ("dpmpp-sde", {"phi": "3"})):
        with pytest.raises(UserError, match="does not have"):
            RECIPES["mini"](solver=solver, **option)
