"""A config, carried out: load teacher and data, distil, save the student and compare it with what was saved."""

from collections.abc import Callable
from pathlib import Path

import torch

from scott.backbones import Backbone, LatentBackbone, load_backbone
from scott.data import CachedSource, CaptionedImages, Folder, prepare
from scott.errors import UserError
from scott.evaluation import image_grid
from scott.generators import StudentSampler
from scott.mini import embedded
from scott.mini.scenes import Scenes
from scott.recipes.export import export_finished
from scott.training.config import DistillConfig
from scott.training.loop import Hooks, distill, open_run

MINI_SCENES = 8192
Report = Callable[[str, int, int, dict[str, float]], None]
"""(phase, done, in all, terms): called as the work goes on."""


def teacher_of(name: str, dtype: torch.dtype = torch.float32) -> LatentBackbone:
    """`mini`, or what `load_backbone` takes, on the best device there is."""
    return (embedded.load_teacher(dtype=dtype) if name == "mini" else load_backbone(name, dtype)).to(best_device())


def check(backbone: Backbone, config: DistillConfig) -> None:
    """Raise `UserError` where a config does not suit its teacher."""
    if backbone.original_inference_steps is not None:
        raise UserError(f"{config.teacher} is a few-step student already; distil from the teacher it was made from")
    if not backbone.takes_guidance and config.guidance_min != config.guidance_max:
        raise UserError(
            f"got guidance from {config.guidance_min} to {config.guidance_max} for {config.teacher}, whose student "
            "takes no ω; set guidance_min = guidance_max"
        )
    config.make_solver(backbone.schedule)
    config.make_grid(backbone.schedule)


def add_models(backbone: Backbone, config: DistillConfig) -> None:
    """Student, EMA target and critic as the config has them, from its seed."""
    torch.manual_seed(config.seed)  # LoRA's A is random
    backbone.add_student(config.train, rank=config.lora_rank, alpha=config.alpha)
    if config.has_critic:
        backbone.add_critic(config.critic_rank, config.critic)
    if config.gradient_checkpointing:
        backbone.checkpoint_activations()
    if config.compile:
        backbone.compile()


def images_of(name: str) -> CaptionedImages:
    return Scenes(MINI_SCENES) if name == "mini" else Folder(Path(name))


def best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def run(config: DistillConfig, report: Report) -> Backbone:
    """Distil as `config` says into `config.out`, resuming what is there, and write `config.out/student`.

    Returns the backbone, whose target is the student. Everything that can be wrong with the input is found before the
    first step (see `DistillConfig`, `load_backbone`, `open_run`).
    """
    backbone = teacher_of(config.teacher, config.dtype)
    check(backbone, config)
    grid = config.make_grid(backbone.schedule)
    images = images_of(config.data)
    open_run(config)
    cache = config.out / "latents.safetensors"
    samples = prepare(images, backbone, cache, lambda done, total: report("encode", done, total, {}))
    source = CachedSource(samples, images.name, config.seed)
    add_models(backbone, config)
    backbone.park_encoders()
    prompts = [images[i][1] for i in range(min(8, len(images)))]
    guidance = (config.guidance_min + config.guidance_max) / 2

    def draw(step: int) -> dict[str, float]:
        rows = [
            StudentSampler(backbone, backbone.target, grid, steps, guidance)(prompts, config.seed)
            for steps in (1, 2, 4)
        ]
        grid_image = image_grid([list(row) for row in rows], [f"{n} steps" for n in (1, 2, 4)], prompts)
        grid_image.save(config.out / "samples" / f"step-{step:08d}.png")
        return {}

    hooks = Hooks(progress=lambda done, terms: report("distil", done, config.max_steps, terms), sample=draw)
    distill(backbone, source, config, hooks)
    device = backbone.device
    export_finished(backbone, config)
    return backbone.to(device)
