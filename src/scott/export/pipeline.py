"""The student as a stock diffusers pipeline folder, reloaded and compared before it is called done."""

import shutil
from pathlib import Path

from scott.backbones import Backbone, load_backbone
from scott.diffusion import JumpGrid
from scott.generators import StudentSampler

TOLERANCE = 1e-4
"""Largest difference in a latent between the student in memory and the one read back, fp32."""


def export_student(backbone: Backbone, grid: JumpGrid, folder: Path, *, guidance: float) -> None:
    """Write the backbone's EMA student to `folder`, replacing an older one only when the new one draws the same.

    Raises `RuntimeError` when the reloaded student's 2-step latent is off by more than 1e-4.
    """
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    backbone.save_student(partial, grid)
    reloaded = load_backbone(partial).to(backbone.device)
    here = StudentSampler(backbone, grid, 2, guidance).latents([""], 0)
    there = StudentSampler(reloaded, grid, 2, guidance, network="teacher").latents([""], 0)
    difference = (here - there).abs().max().item()
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"the student read back from {partial} differs by {difference:.2g}, over {TOLERANCE}; not exported"
        )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
