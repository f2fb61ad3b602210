"""One function a recipe, which returns the complete config of a run that suits a teacher."""

from scott.recipes.configs import RECIPES, mini, pixart, realistic_vision, sd3, sd15, sdxl
from scott.recipes.families import FAMILIES, recipes_of

__all__ = ["FAMILIES", "RECIPES", "mini", "pixart", "realistic_vision", "recipes_of", "sd3", "sd15", "sdxl"]
