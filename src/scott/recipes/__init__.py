"""One function a recipe: a teacher's name to the complete config of a run that suits it."""

from scott.recipes.configs import RECIPES, mini, sd15

__all__ = ["RECIPES", "mini", "sd15"]
