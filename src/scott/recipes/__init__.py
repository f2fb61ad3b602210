"""One function a recipe, which returns the complete config of a run that suits a teacher."""

from scott.recipes.configs import FAMILIES, RECIPES, mini, pixart, realistic_vision, recipes_of, sd3, sd15, sdxl

__all__ = ["FAMILIES", "RECIPES", "mini", "pixart", "realistic_vision", "recipes_of", "sd3", "sd15", "sdxl"]
