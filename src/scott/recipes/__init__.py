"""One function a recipe: a teacher's name to the complete config of a run that suits it."""

from scott.recipes.configs import RECIPES, mini, pixart, realistic_vision, sd3, sd15, sdxl

__all__ = ["RECIPES", "mini", "pixart", "realistic_vision", "sd3", "sd15", "sdxl"]
