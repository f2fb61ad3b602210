"""Which recipes suit a teacher, by the class of its pipeline."""

from collections.abc import Mapping
from typing import Any

from scott.recipes.configs import RECIPES

FAMILIES = {
    "StableDiffusionPipeline": ("sd15", "realistic-vision", "mini"),
    "StableDiffusionXLPipeline": ("sdxl",),
    "PixArtAlphaPipeline": ("pixart",),
    "PixArtSigmaPipeline": ("pixart",),
    "StableDiffusion3Pipeline": ("sd3", "sd35-medium", "sd35-large"),
    "FluxPipeline": ("flux",),
    "ChromaPipeline": ("chroma",),
    "Flux2KleinPipeline": ("flux2-klein",),
    "QwenImagePipeline": ("qwen-image",),
    "ZImagePipeline": ("z-image",),
    "SanaPipeline": ("sana",),
}
"""Class of a teacher's pipeline → the recipes that suit it, first the one to take where none is named."""


def recipes_of(teacher: str, pipeline: str, network: Mapping[str, Any]) -> tuple[str, ...]:
    """The recipes that suit a teacher of a pipeline's class and a network's config, first the one to take: that which
    was written for this very teacher, if there is one."""
    suiting = FAMILIES[pipeline]
    if pipeline == "StableDiffusion3Pipeline":  # 3.5 norms queries and keys, its medium has second attentions
        edition = "sd35-medium" if network.get("dual_attention_layers") else "sd35-large"
        return (edition,) if network.get("qk_norm") else ("sd3",)
    return tuple(sorted(suiting, key=lambda name: RECIPES[name](data="").teacher != teacher))
