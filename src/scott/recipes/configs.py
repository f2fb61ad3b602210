"""The recipes: what a teacher is distilled with, one function a teacher (docs/recipes.md: each value with its source).

A recipe returns the whole config of a run; its keywords replace values of it, and `method="lcm"` is LCM on the same
teacher: `sd15(method="lcm")`. What a recipe does not set is the paper's (SCott, AAAI 2025), which are the defaults of
`DistillConfig`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from scott.training.config import LCM_SETTINGS, PAPER_SETTINGS, DistillConfig

Recipe = Callable[..., DistillConfig]
METHODS = {"paper": PAPER_SETTINGS, "lcm": LCM_SETTINGS}


class _Row(NamedTuple):
    teacher: str
    omega: float
    """ω of a LoRA student, and of any student of a network that takes no ω."""
    omega_full: tuple[float, float]
    """Range of ω of a full student."""
    batch_size: int
    precision: str = "fp16"
    rows: int = 16
    """Of the batch, how many a card of 80 GB takes in a pass, with a LoRA student (--dry-run)."""


# fmt: off
_TABLE = {
    # recipe                 teacher                                             ω    of a full one  batch
    "sd15":             _Row("stable-diffusion-v1-5/stable-diffusion-v1-5",      3.0, (3.0, 15.0),   40, rows=40),
    "realistic-vision": _Row("SG161222/Realistic_Vision_V5.1_noVAE",             3.0, (3.0, 15.0),   40, rows=40),
    "sdxl":             _Row("stabilityai/stable-diffusion-xl-base-1.0",         8.0, (3.0, 15.0),   16),
    "pixart":           _Row("PixArt-alpha/PixArt-XL-2-512x512",                 4.5, (4.5, 4.5),    16),
    "sd3":              _Row("stabilityai/stable-diffusion-3-medium-diffusers",  7.0, (7.0, 7.0),    16),
    "sd35-medium":      _Row("stabilityai/stable-diffusion-3.5-medium",          4.5, (4.5, 4.5),    16, "fp16"),
    "sd35-large":       _Row("stabilityai/stable-diffusion-3.5-large",           3.5, (3.5, 3.5),    16, "fp16"),
    "flux":             _Row("black-forest-labs/FLUX.1-dev",                     3.5, (1.5, 5.0),    16, "bf16", 8),
    "chroma":           _Row("lodestones/Chroma1-HD",                            3.0, (3.0, 3.0),    16, "bf16", 8),
    "flux2-klein":      _Row("black-forest-labs/FLUX.2-klein-base-4B",           4.0, (4.0, 4.0),    16, "bf16"),
    "qwen-image":       _Row("Qwen/Qwen-Image",                                  4.0, (4.0, 4.0),    16, "bf16", 4),
    "z-image":          _Row("Tongyi-MAI/Z-Image",                               5.0, (5.0, 5.0),    16, "bf16", 8),
    "sana":             _Row("Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", 4.5, (4.5, 4.5), 16, "bf16"),
}
"""40 is the paper's batch, for four cards; 16 is for one. None was run at its real size."""
_RATE = {"full": 8e-6, "lora": 1e-4}
"""The paper's is of a full fine-tune. B of a LoRA starts at zero, so that at 8e-6 its first updates would move W by a
fraction of what a full fine-tune's do; 1e-4 is the rate of diffusers' LCM-LoRA scripts."""
_MINI: dict[str, Any] = {
    "max_steps":               2750,
    "batch_size":                32,
    "solver":                "ddim",
    "eta":                      0.0,
    "jump":                     100,
    "substeps":                   1,
    "weighting":            "snr+1",
    "decay":                    0.1,
    "learning_rate":           1e-4,
    "critic_learning_rate":    1e-3,
    "critic_betas":      (0.0, 0.99),
    "critic_start":             0.6,
    "critic_warmup":             30,
    "warmup_steps":              50,
    "ema_decay":               0.98,
    "jump_reuse":                 3,
    "jump_store":              4096,
    "critic":               "heads",
    "critic_fakes":         "drawn",
    "critic_input":         "clean",
    "drawn_fraction":          0.25,
    "adversarial_share":        0.6,
    "adversarial_weighting": "uniform",
    "adversarial_ramp":          20,
    "sample_every":             500,
    "checkpoint_every":         250,
    "loader_workers":             0,
}
"""Chosen by trials on the validation split (experiments/trial); what it gives is in experiments/comparison."""
# fmt: on


def mini(**changes: Any) -> DistillConfig:
    """The embedded teacher, a full fine-tune on two CPU cores.

    A 5 M-parameter network takes larger steps than SD1.5 does: 1e-4 instead of 8e-6, a LoRA 1e-3. So few updates do not
    carry the data through 42 jumps of 24, and each jump adds the student's own error to its target; hence jumps of 100,
    by LCM too, and by the paper's method 300. Noise costs more here than it gives (experiments/trial), so a jump is one
    step of the ODE, and what is left of SCott's is its critic: heads on the frozen network, which come for the last two
    fifths of the steps, are shown samples as they are drawn, and whose gradient is held to .6 of the consistency
    loss's. The loss is weighted as one of v (see docs/architecture.md). The guidance range is centred on 2, the
    teacher's. Each walked jump is learnt from three times, by LCM too.
    """
    train = changes.get("train", "full")
    low, high = (1.0, 3.0) if train == "full" else (2.0, 2.0)
    settings: dict[str, Any] = {"teacher": "mini", "data": "mini", "out": Path("runs/mini"), "train": train}
    settings |= _MINI | {"guidance_min": low, "guidance_max": high}
    settings |= {"learning_rate": 1e-3} if train == "lora" else {}
    methods = {
        "paper": PAPER_SETTINGS | {"jump": 300},
        "lcm": LCM_SETTINGS | {"jump": 100, "decay": 0.0, "adversarial_share": 0.0, "critic_start": 0.0},
    }
    return _made(settings, changes, methods)


def sd15(**changes: Any) -> DistillConfig:
    """Stable Diffusion 1.5: the paper's batch of 40, 40,000 steps, 2e-5 for the critic, 8e-6 for a full student.

    `--train full` is the paper's run: a student that takes ω. The range of ω is not in its main text; [3, 15] holds
    "CFG 3", at which it evaluates, and is LCM's ([2, 14] in the other form). A LoRA student is made for ω = 3.
    """
    return _from_table("sd15", changes)


def realistic_vision(**changes: Any) -> DistillConfig:
    """Realistic Vision 5.1, the paper's second teacher, trained as SD1.5 is."""
    return _from_table("realistic-vision", changes)


def sdxl(**changes: Any) -> DistillConfig:
    """SDXL base 1.0, of which the paper says nothing: its values for SD1.5, with SDXL's usual guidance.

    ω = 8 lies in LCM-SDXL's training range (diffusers' script: 3 to 15 in the form cond + ω (cond − uncond), 4 to 16
    here).
    """
    return _from_table("sdxl", changes)


def pixart(**changes: Any) -> DistillConfig:
    """PixArt-α at 512 px with its pipeline's default guidance of 4.5; a transformer is trained for one ω."""
    return _from_table("pixart", changes)


def sd3(**changes: Any) -> DistillConfig:
    """Stable Diffusion 3 medium, a rectified flow, with its model card's guidance of 7 (the pipeline's default)."""
    return _from_table("sd3", changes)


def sd35_medium(**changes: Any) -> DistillConfig:
    """Stable Diffusion 3.5 medium (2.2 B), a rectified flow of shift 3, with its model card's guidance of 4.5."""
    return _from_table("sd35-medium", changes)


def sd35_large(**changes: Any) -> DistillConfig:
    """Stable Diffusion 3.5 large (8.1 B), a rectified flow of shift 3, with its model card's guidance of 3.5."""
    return _from_table("sd35-large", changes)


def flux(**changes: Any) -> DistillConfig:
    """FLUX.1-dev (11.9 B), a rectified flow distilled to take ω as an input, with its model card's ω of 3.5.

    A guided teacher costs one call. Its pipeline shifts times by e^μ, μ from .5 at 256 tokens to 1.15 at 4,096, those
    of 1024 px. A full student is trained for ω from 1.5 to 5, a LoRA student for 3.5 alone.
    """
    return _from_table("flux", changes)


def chroma(**changes: Any) -> DistillConfig:
    """Chroma1-HD (8.9 B), a rectified flow on FLUX's latents, with its model card's guidance of 3."""
    return _from_table("chroma", changes)


def flux2_klein(**changes: Any) -> DistillConfig:
    """FLUX.2 [klein] base 4B, a rectified flow, with its model card's guidance of 4.

    Its pipeline shifts times by e^μ, μ a function of the size and of the number of steps; here it is that of the model
    card's 50, 2.02 at 1024 px.
    """
    return _from_table("flux2-klein", changes)


def qwen_image(**changes: Any) -> DistillConfig:
    """Qwen-Image (20.4 B), a rectified flow, with its model card's `true_cfg_scale` of 4.

    Guidance keeps the length of the conditional output at each token, as its pipeline does, which shifts times by e^μ,
    μ from .5 at 256 tokens to .9 at 8,192: .69 at 1024 px.
    """
    return _from_table("qwen-image", changes)


def z_image(**changes: Any) -> DistillConfig:
    """Z-Image (6.2 B; not its few-step edition, Turbo), a rectified flow, with ω = 5: its model card's `guidance_scale`
    of 4 in the form cond + s (cond − uncond)."""
    return _from_table("z-image", changes)


def sana(**changes: Any) -> DistillConfig:
    """Sana 1.6 B at 1024 px, a rectified flow of shift 3, with its model card's guidance of 4.5."""
    return _from_table("sana", changes)


def _from_table(recipe: str, changes: dict[str, Any]) -> DistillConfig:
    """fp16 and checkpointed activations: SD1.5 at batch 40 holds 25 GB a step instead of 100 (`--dry-run`).

    fp16, not bf16, whose 8 bits spoil the highest times: x̂0 = (x − σ ε̂) / α multiplies what ε̂ is rounded by with λ,
    14.6 there on Stable Diffusion's schedule (tests/recipes/test_real_scale.py: on the embedded teacher the paper's
    L_CD at t = 999 comes out more than 10 % too large in bf16, and within 1 % in fp16).

    The critic is told time 0 of all it is shown: by the paper's times it tells samples from data without a look at
    either, and on the embedded teacher learns nothing (experiments/trial). Then λ_adv is held to the share of L_CD's
    gradient that `mini` has: at the paper's fixed 0.4 such a critic takes the student over (experiments/comparison).
    """
    row, train = _TABLE[recipe], changes.get("train", "lora")
    batch = changes.get("batch_size", row.batch_size)
    low, high = row.omega_full if train == "full" else (row.omega, row.omega)
    settings: dict[str, Any] = {
        "teacher": row.teacher,
        "out": Path("runs") / recipe,
        "batch_size": batch,
        "guidance_min": low,
        "guidance_max": high,
        "guidance": min(max(row.omega, changes.get("guidance_min", low)), changes.get("guidance_max", high)),
        "learning_rate": _RATE.get(train, _RATE["lora"]),
        "precision": row.precision,
        "critic_input": "clean",
        "adversarial_share": 0.6,
        "adversarial_share_every": 10,
        "gradient_accumulation": passes_of(recipe, batch),
        "gradient_checkpointing": True,
        "validation_features": "openai/clip-vit-base-patch32",
    }
    return _made(settings, changes)


def passes_of(recipe: str, batch: int, processes: int = 1) -> int:
    """The fewest passes in which each of so many processes takes no more rows of a batch than a card of 80 GB holds.

    1 where none divides the batch, and of a recipe whose batch fits.
    """
    rows = _TABLE[recipe].rows if recipe in _TABLE else batch
    whole = (n for n in range(1, batch + 1) if batch % (n * processes) == 0)
    return next((n for n in whole if batch // (n * processes) <= rows), 1)


def _made(settings: dict[str, Any], changes: dict[str, Any], methods: dict[str, Any] = METHODS) -> DistillConfig:
    """What is given wins over the method's settings, and those over the recipe's."""
    return DistillConfig(**(settings | methods.get(changes.get("method", "scott"), {}) | changes))


_ALL: list[Recipe] = [mini, sd15, realistic_vision, sdxl, pixart, sd3, sd35_medium, sd35_large]
_ALL += [flux, chroma, flux2_klein, qwen_image, z_image, sana]
RECIPES: dict[str, Recipe] = {recipe.__name__.replace("_", "-"): recipe for recipe in _ALL}
