"""The student as a stock diffusers pipeline folder, reloaded and compared before it is called done."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor

from scott.diffusion import JumpGrid
from scott.errors import UserError
from scott.export.trained import PROMPT, SEED, Trained, difference, draw_latents, few_step_scheduler, student_grid
from scott.teachers import LatentBackbone, load_backbone

TOLERANCE = 1e-4
"""Largest difference between a latent of the student in memory and of the one read back, over the latent's standard
deviation; both drawn on the CPU in fp32, where the two differ only by rounding."""


def write_student(trained: Trained, folder: Path) -> None:
    """Write the EMA student to `folder` as a pipeline of the teacher's class, with its few-step scheduler.

    Raises `UserError` when the 2-step latent of what is read back, drawn by the stock pipeline or by scott, is off by
    more than `TOLERANCE` of its spread.
    """
    expected = trained.latents()
    save_student(trained.backbone, folder, trained.grid)
    there, info = load_backbone(folder), trained.info
    check("the stock pipeline", folder, expected, stock_latents(there.pipeline, info.guidance_scale))
    grid = student_grid(there.schedule, info.original_inference_steps)
    check("scott", folder, expected, draw_latents(there, grid, info.guidance))


def save_student(backbone: LatentBackbone, folder: Path, grid: JumpGrid) -> None:
    """Write the EMA student as a folder of the teacher's own pipeline class with a few-step scheduler."""
    changed = {backbone.part: _target_network(backbone), "scheduler": few_step_scheduler(backbone, grid)}
    parts, config = {**backbone.pipeline.components, **changed}, backbone.pipeline.config
    options = {name: config[name] for name in _PIPELINE_OPTIONS if name in config}
    type(backbone.pipeline)(**parts, **options).save_pretrained(folder)


_PIPELINE_OPTIONS = ("requires_safety_checker", "force_zeros_for_empty_prompt")


def _target_network(backbone: LatentBackbone) -> ModelMixin:
    if "target" in backbone.copies:
        return backbone.copies["target"]
    with torch.device("meta"):
        network = type(backbone.network).from_config(backbone.network.config)
    network.load_state_dict(backbone.adapters.merged_state("target"), assign=True)
    return network


def stock_latents(pipeline: DiffusionPipeline, guidance_scale: float, side: int | None = None) -> Tensor:
    """The 2-step latent of `PROMPT` as anyone draws it, without scott; of a square of `side` pixels, or as it comes."""
    pipeline.set_progress_bar_config(disable=True)
    with torch.random.fork_rng(devices=[]):
        return pipeline(
            PROMPT,
            num_inference_steps=2,
            guidance_scale=guidance_scale,
            height=side,
            width=side,
            generator=torch.manual_seed(SEED),  # torch's own: SD3's pipeline hands no other to its scheduler
            output_type="latent",
            **call_options(type(pipeline).__name__),
        ).images


def call_options(pipeline: str) -> dict[str, Any]:
    """What the call of a stock pipeline class has to say so as to draw the prompt and the size it is given."""
    return {"use_resolution_binning": False, "clean_caption": False} if pipeline.startswith("PixArt") else {}


def check(what: str, folder: Path, expected: Tensor, got: Tensor, tolerance: float = TOLERANCE) -> None:
    """Raise `UserError` unless the latents differ by at most `tolerance` of their spread."""
    if not (off := difference(expected, got)) <= tolerance:
        raise UserError(
            f"the student read back from {folder} by {what} draws {off:.2g} of a spread off; expected {tolerance}"
        )
