"""The student as a stock diffusers pipeline folder, reloaded and compared before it is called done."""

import json
import shutil
from pathlib import Path

from scott.backbones import Backbone, load_backbone
from scott.diffusion import JumpGrid
from scott.errors import UserError
from scott.generators import StudentSampler
from scott.training.config import DistillConfig

TOLERANCE = 1e-4
"""Largest difference between a latent of the student in memory and of the one read back, over the latent's standard
deviation; both drawn on the CPU in fp32, where the two differ only by rounding."""
STUDENT_INFO = "scott.json"


def export_student(backbone: Backbone, grid: JumpGrid, config: DistillConfig) -> Path:
    """Write the EMA student to `config.out/student`, replacing an older one only when the new one draws the same.

    Beside the pipeline stands `scott.json`: the range of ω the student was trained for.

    Raises `UserError` when the reloaded student's 2-step latent is off by more than `TOLERANCE` of its spread; what was
    written stays for inspection.
    """
    folder = config.out / "student"
    partial = folder.with_name(".partial-student")
    shutil.rmtree(partial, ignore_errors=True)
    backbone.save_student(partial, grid)
    info = {"train": config.train, "guidance_min": config.guidance_min, "guidance_max": config.guidance_max}
    (partial / STUDENT_INFO).write_text(json.dumps(info))
    here, there = backbone.to("cpu"), load_backbone(partial)
    drawn = [
        StudentSampler(here, here.target, grid, 2, config.guidance_min).latents([""], 0),
        StudentSampler(there, there.teacher, grid, 2, config.guidance_min).latents([""], 0),
    ]
    difference = ((drawn[0] - drawn[1]).abs().max() / drawn[0].std()).item()
    if not difference <= TOLERANCE:
        raise UserError(
            f"the student read back from {partial} draws {difference:.2g} of a spread off; expected {TOLERANCE}"
        )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder
