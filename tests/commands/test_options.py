"""What `scott distill` makes of its options: a config with the defaults of recipe, method and `--train`."""

import dataclasses
import re

import pytest

from scott.cli import parse
from scott.commands.distill import config_of
from scott.recipes.configs import RECIPES, mini, sd15, sdxl
from scott.training.config import DistillConfig


def parsed(*arguments):
    """The config of a `scott distill` command line."""
    recipe = parse(["distill", *arguments]).recipe
    given = {k: v for group in recipe.groups for k, v in getattr(recipe, group).items()}
    return config_of(recipe.recipe, given)[1]


LINES = {
    "sd15 --data d": sd15(data="d"),
    "sd15 --data d --method lcm": sd15(method="lcm", data="d"),
    "sd15 --data d --train full": sd15(data="d", train="full"),
    "sd15 --data d --train full --method lcm --jump 24": sd15(method="lcm", data="d", train="full", jump=24),
    "sd15 --data d --train full --guidance-max 3": sd15(data="d", train="full", guidance_max=3.0),
    "sdxl --data d --no-gradient-checkpointing --compile": sdxl(data="d", gradient_checkpointing=False, compile=True),
    "mini --method lcm --train lora --lora-alpha 3": mini(method="lcm", train="lora", lora_alpha=3.0),
}


@pytest.mark.parametrize("line", LINES)
def test_what_is_given_wins_over_recipe_method_and_train(line):
    """Also where it is the default of the other method or of the other kind of student, as 24 and 3 here."""
    assert parsed(*line.split()) == LINES[line]


@pytest.mark.parametrize("recipe", [*RECIPES, "auto"])
def test_help_has_every_setting_once_with_the_recipes_default(recipe, command_line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    code, said, _ = command_line("distill", recipe, "--help")
    assert code == 0
    text = "\n".join(line.strip("│ ") for line in said.splitlines() if line.startswith("│"))
    config = None if recipe == "auto" else RECIPES[recipe](data="mini")
    for field in dataclasses.fields(DistillConfig):
        flag = f"--{field.name.replace('_', '-')}"
        (default,) = re.findall(
            rf"^{flag}(?:,| [A-Z{{[]).*?\((?:default:\s+(.*?)[;)]|required\))", text, re.MULTILINE | re.DOTALL
        )
        value = getattr(config, field.name, "the recipe's")
        has_none = field.name == "data" and recipe not in ("mini", "auto")
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert " ".join(default.split()) == ("" if has_none else "none" if value in (None, ()) else shown)
        assert "_" not in field.name or f"`{field.name}`" not in text, "a flag is named as it is given"
    assert "_SETTINGS" not in text


def test_help_says_what_the_other_method_and_student_change(command_line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")

    def text(recipe):
        return " ".join(command_line("distill", recipe, "--help")[1].replace("│", "").split())

    assert "(default: 24; with --method lcm 20)" in text("sd15")
    assert "(default: 3.0; with --train full 15.0)" in text("sd15")
    assert "(default: 3.0; with --train lora 2.0)" in text("mini")
    assert "(default: 0.6; with --method paper 0.0; with --method lcm 0.0)" in text("mini")
