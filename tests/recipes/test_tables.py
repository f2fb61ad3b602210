"""docs/recipes.md says what the recipes set: each value there is the code's, and what a recipe changes is there."""

import dataclasses
import re
from pathlib import Path

import pytest

from scott.recipes.configs import RECIPES
from scott.training.config import LCM_SETTINGS, DistillConfig

COMMON, LCM = "Every recipe of a real teacher", "By LCM"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", Path("docs/recipes.md").read_text(), re.M | re.S))


def rows(section, train):
    """Setting → value of a section's table, those of the other kind of student left out."""
    found = re.findall(r"^\| `(\w+)`(?:, (lora|full))? \| (.+?) \| \S.* \| \S.* \|$", SECTIONS[section], re.MULTILINE)
    assert len(found) == SECTIONS[section].count("\n| `"), "a row is not read, or lacks its source or why"
    assert len({row[:2] for row in found}) == len(found), "a setting stands twice"
    return {name: value for name, kind, value in found if kind in ("", train)}


def same(written, value):
    return float(written) == value if type(value) in (int, float) else written == str(value)


def test_every_recipe_has_a_section_and_the_other_way_round():
    assert SECTIONS.keys() == {COMMON, *RECIPES, LCM}


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_table_of_a_recipe_is_its_config(recipe, train):
    config = RECIPES[recipe](data="d", train=train)
    table = rows(recipe, train) if recipe == "mini" else rows(COMMON, train) | rows(recipe, train)
    wrong = {name: getattr(config, name) for name in table if not same(table[name], getattr(config, name))}
    assert wrong.keys() <= {"train"}, "the table has the default"
    assert same(table["train"], RECIPES[recipe](data="d").train)
    defaults = {field.name: field.default for field in dataclasses.fields(DistillConfig)}
    changed = {name for name, default in defaults.items() if getattr(config, name) != default}
    assert changed - {"data", "out"} <= table.keys()


def test_the_table_of_lcm_is_its_settings():
    table = rows(LCM, None)
    assert table.keys() == LCM_SETTINGS.keys() - {"method"}
    assert all(same(table[name], LCM_SETTINGS[name]) for name in table)
    assert f"of `mini` {RECIPES['mini'](method='lcm').jump}," in SECTIONS[LCM]
