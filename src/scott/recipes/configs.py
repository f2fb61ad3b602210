"""The recipes. Where one departs from the paper's values (the defaults of `DistillConfig`), it says why."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scott.training.config import LCM_SETTINGS, DistillConfig

Recipe = Callable[..., DistillConfig]


def mini(method: str = "scott", **changes: Any) -> DistillConfig:
    """The embedded teacher, a full fine-tune on two CPU cores.

    A 5 M-parameter network takes larger steps than SD1.5 does: 1e-4 instead of 8e-6. So few updates do not carry the
    data through 42 jumps of 24, and each jump adds the student's own error to its target; hence jumps of 300, which
    SDE-DPM-Solver++(2M) walks well in 3 sub-steps: sampled in such jumps the teacher stands at FID 2.44 where DDIM's 25
    steps stand at 2.31. The loss is weighted as one of v (see docs/architecture.md). LCM's own jump of 20 is too short
    as well: 100. The guidance range is centred on 3, where students are best. The critic is told t_n of data too, since
    it otherwise reads the answer off the time; in so few updates it learns little, and a weight of 0.3 is worse than
    0.1. An EMA of 0.95 is worse than 0.98. experiments/recorded_run/README.md has the figures, of the validation split.
    """
    return _complete(
        method,
        {
            "teacher": "mini",
            "data": "mini",
            "out": Path("runs/mini"),
            "max_steps": 1500,
            "batch_size": 32,
            "solver": "dpmpp-sde",
            "eta": 0.2,
            "jump": 300,
            "weighting": "snr+1",
            "decay": 0.2,
            "learning_rate": 1e-4,
            "critic_learning_rate": 3e-4,
            "warmup_steps": 50,
            "ema_decay": 0.98,
            "guidance_min": 3.0,
            "guidance_max": 3.0,
            "adversarial_weight": 0.1,
            "critic_input": "matched",
            "critic_rank": 16,
            "train": "full",
            "sample_every": 500,
            "checkpoint_every": 250,
            "loader_workers": 0,
        },
        {"guidance_min": 2.0, "guidance_max": 4.0},
        changes,
        {"jump": 100, "decay": 0.0},
    )


def sd15(method: str = "scott", **changes: Any) -> DistillConfig:
    """Stable Diffusion 1.5: the paper's batch of 40, 40,000 steps, 8e-6 and 2e-5.

    `--train full` is the paper's run: a student that takes ω. The range of ω is not in its main text; [3, 15] holds
    "CFG 3", at which it evaluates, and is LCM's ([2, 14] in the other form). A LoRA student is made for ω = 3.
    """
    teacher = {"teacher": "stable-diffusion-v1-5/stable-diffusion-v1-5", "out": Path("runs/sd15")}
    return _complete(method, teacher | _MEMORY, _UNET, changes)


def realistic_vision(method: str = "scott", **changes: Any) -> DistillConfig:
    """Realistic Vision 5.1, the paper's second teacher, trained as SD1.5 is."""
    teacher = {"teacher": "SG161222/Realistic_Vision_V5.1_noVAE", "out": Path("runs/realistic-vision")}
    return _complete(method, teacher | _MEMORY, _UNET, changes)


def sdxl(method: str = "scott", **changes: Any) -> DistillConfig:
    """SDXL base 1.0, of which the paper says nothing: its values for SD1.5, with SDXL's usual guidance.

    ω = 8 lies in LCM-SDXL's training range ([3, 15], diffusers' consistency distillation scripts).
    """
    teacher = {"teacher": "stabilityai/stable-diffusion-xl-base-1.0", "out": Path("runs/sdxl")}
    return _complete(method, teacher | {"guidance_min": 8.0, "guidance_max": 8.0} | _LARGE, _UNET, changes)


def pixart(method: str = "scott", **changes: Any) -> DistillConfig:
    """PixArt-α at 512 px with its model card's guidance of 4.5; a transformer is trained for one ω."""
    teacher = {"teacher": "PixArt-alpha/PixArt-XL-2-512x512", "out": Path("runs/pixart")}
    return _complete(method, teacher | {"guidance_min": 4.5, "guidance_max": 4.5} | _LARGE, {}, changes)


def sd3(method: str = "scott", **changes: Any) -> DistillConfig:
    """Stable Diffusion 3 medium, a rectified flow, with its model card's guidance of 7 (the pipeline's default)."""
    teacher = {"teacher": "stabilityai/stable-diffusion-3-medium-diffusers", "out": Path("runs/sd3")}
    return _complete(method, teacher | {"guidance_min": 7.0, "guidance_max": 7.0} | _LARGE, {}, changes)


RECIPES: dict[str, Recipe] = {
    "mini": mini,
    "sd15": sd15,
    "realistic-vision": realistic_vision,
    "sdxl": sdxl,
    "pixart": pixart,
    "sd3": sd3,
}
RECIPE_OF = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart",
    "StableDiffusion3Pipeline": "sd3",
}
"""Class of a teacher's pipeline → the recipe where none is named."""
_UNET = {"guidance_min": 3.0, "guidance_max": 15.0}
"""What a full student of a U-Net is trained for: it is told ω."""
_MEMORY = {"precision": "bf16", "gradient_checkpointing": True}
"""SD1.5 at the paper's batch of 40: 25 GB a step instead of 190 (`--dry-run`)."""
_LARGE = _MEMORY | {"batch_size": 16}
"""The paper's batch is for four cards; this is for one."""


def _complete(
    method: str,
    recipe: dict[str, Any],
    full: dict[str, Any],
    changes: dict[str, Any],
    lcm_changes: dict[str, Any] | None = None,
) -> DistillConfig:
    """`recipe`, with `full` where the student is a full one, the method's settings, and last what was asked for."""
    lcm = LCM_SETTINGS | (lcm_changes or {}) if method == "lcm" else {}
    told = full if (recipe | changes).get("train") == "full" else {}
    return DistillConfig(**(recipe | told | lcm | changes))
