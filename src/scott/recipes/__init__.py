"""One function a recipe, which returns the complete config of a run that suits a teacher."""

from scott.recipes.configs import RECIPES
from scott.recipes.families import FAMILIES, recipes_of

__all__ = ["FAMILIES", "RECIPES", "recipes_of"]
