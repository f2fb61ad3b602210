"""A trained student of each family: moved off its teacher, as training would."""

import pytest
import torch
from diffusers import DiffusionPipeline

from scott.export.info import STUDENT_INFO
from scott.export.lora import read_lora, save_lora
from scott.export.pipeline import read_student, save_student
from scott.export.single_file import read_checkpoint, save_checkpoint
from scott.export.trained import Trained, student_grid
from scott.teachers import load_backbone
from scott.training.config import DistillConfig

SMALL = {
    "unet": {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)},
    "transformer": {"num_layers": 2},
    "vae": {
        "block_out_channels": (8,),
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "mid_block_add_attention": False,
    },
}
"""Of as few layers as a family can do with."""
ALPHA = 8.0
"""Not the rank, so that a reader who leaves it out is found out."""


@pytest.fixture
def make_trained(make_backbone, teacher_folders, perturb, tmp_path):
    """`make_trained(family="sd1", train="lora", backbone=None, variant="lora", teacher=None)`: of a run in `tmp_path`,
    whose teacher is another folder than the family's where one is given."""

    def make(family="sd1", train="lora", backbone=None, variant="lora", teacher=None):
        backbone = backbone or make_backbone(family=family)
        torch.manual_seed(1)
        backbone.add_student(train, rank=4, alpha=ALPHA, variant=variant)
        perturb(backbone.target_parameters())
        config = DistillConfig(
            teacher=str(teacher or teacher_folders[family]),
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
        read_student(folder, expected)
    elif kind == "checkpoint":
        save_checkpoint(trained, folder, dtype)
        read_checkpoint(folder, expected, dtype)
    else:
        form = save_lora(trained, folder, kind, dtype)
        read_lora(folder, kind, form, expected, dtype)


@pytest.fixture
def small_student(make_trained, teacher_folders, tmp_path):
    """`small_student(family, train)`: (stock folder, its backbone, grid, info), of networks made `SMALL`."""

    def make(family, train):
        pipe = DiffusionPipeline.from_pretrained(teacher_folders[family])
        torch.manual_seed(0)
        for name, part in pipe.components.items():
            if name in SMALL:
                setattr(pipe, name, type(part).from_config({**part.config, **SMALL[name]}))
            elif name.startswith("text_encoder"):
                setattr(pipe, name, type(part)(type(part.config)(**part.config.to_dict() | {"num_hidden_layers": 1})))
        pipe.save_pretrained(tmp_path / "teacher")
        trained = make_trained(train=train, backbone=load_backbone(tmp_path / "teacher"))
        write(trained, tmp_path / "student")
        (tmp_path / "student" / STUDENT_INFO).write_text(trained.info.to_json())
        backbone = load_backbone(tmp_path / "student")
        grid = student_grid(backbone.schedule, trained.info.original_inference_steps)
        return tmp_path / "student", backbone, grid, trained.info

    return make
