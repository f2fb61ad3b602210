"""A trained student of each family: moved off its teacher, as training would."""

import pytest
import torch

from scott.export.lora import read_lora, save_lora
from scott.export.pipeline import read_student, save_student
from scott.export.trained import Trained
from scott.training.config import DistillConfig

ALPHA = 8.0
"""Not the rank, so that a reader who leaves it out is found out."""


@pytest.fixture
def make_trained(make_backbone, teacher_folders, perturb, tmp_path):
    """`make_trained(family="sd1", train="lora", backbone=None, variant="lora")`: of a run in `tmp_path`."""

    def make(family="sd1", train="lora", backbone=None, variant="lora"):
        backbone = backbone or make_backbone(family=family)
        torch.manual_seed(1)
        backbone.add_student(train, rank=4, alpha=ALPHA, variant=variant)
        perturb(backbone.target_parameters())
        config = DistillConfig(
            teacher=str(teacher_folders[family]),
            data="mini",
            out=tmp_path,
            train=train,
            lora_rank=4,
            lora_alpha=ALPHA,
            lora_variant=variant,
            guidance_min=4.0,
            guidance_max=4.0,
        )
        return Trained(backbone, config, updates=7)

    return make


def write(trained: Trained, folder, kind: str = "diffusers", dtype=torch.float32) -> None:
    """As `scott export` writes and reads back."""
    folder.mkdir(exist_ok=True)
    expected = trained.expected()
    if kind == "diffusers":
        save_student(trained.backbone, folder, trained.grid, dtype)
        read_student(folder, expected, dtype)
    else:
        form = save_lora(trained, folder, kind, dtype)
        read_lora(folder, kind, form, expected, dtype)
