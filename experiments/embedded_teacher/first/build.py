"""The first edition of the embedded teacher, from its glyphs alone, in resumable stages; deterministic given its seed.

Glyphs → tokenizer → Mini-CLIP and VAE → cached latents → U-Net → a `StableDiffusionPipeline` folder in fp16.

    python -m experiments.embedded_teacher.first.build --out FOLDER     # hours; resumed by the same command
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from diffusers import DDIMScheduler, StableDiffusionPipeline
from experiments.embedded_teacher.first import autoencoder, clip, unet
from experiments.runs import exit_code
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from scott.errors import UserError
from scott.teachers.sd import UNetBackbone

SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    # the trailing grid starts at t = 999, as the student's does
    "timestep_spacing": "trailing",
}


def build(
    work: Path,
    out: Path,
    *,
    seed: int = 0,
    unet_steps: int = unet.STAGE.steps,
    start: Path | None = None,
    say: Callable[[str], None],
) -> None:
    """Train what is missing in `work` and write `out/teacher` (pipeline folder) and `out/clip` (both towers).

    With `start`, a folder that an earlier build wrote, its encoders are kept and its U-Net is trained further.
    """
    torch.manual_seed(seed)
    pipeline, towers = _load(start) if start else _train_encoders(work, seed, say)
    # what ships is fp16, so the U-Net is trained on what the fp16 encoder and text tower give
    for part in (pipeline.vae, pipeline.text_encoder, towers):
        part.half().float()
    say(f"unet: {unet_steps} steps, log in {work}/unet/log.jsonl")
    config = replace(unet.STAGE, steps=unet_steps)
    pipeline.unet = unet.train(work / "unet", UNetBackbone(pipeline), seed=seed, config=config)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(out / "teacher")
    save_clip(towers, pipeline.tokenizer, out / "clip")


def _load(start: Path) -> tuple[StableDiffusionPipeline, CLIPModel]:
    if not (start / "teacher").is_dir():
        raise UserError(f"no teacher in {start}; expected a folder that this build wrote")
    pipeline = StableDiffusionPipeline.from_pretrained(start / "teacher", dtype=torch.float32)
    pipeline.unet = unet.grown(pipeline.unet)
    return pipeline, CLIPModel.from_pretrained(start / "clip", dtype=torch.float32)


def _train_encoders(work: Path, seed: int, say: Callable[[str], None]) -> tuple[StableDiffusionPipeline, CLIPModel]:
    """Tokenizer, Mini-CLIP and VAE, in a pipeline whose U-Net is untrained."""
    tokenizer_folder = work / "tokenizer"
    if not tokenizer_folder.is_dir():
        say("tokenizer")
        clip.train_tokenizer(tokenizer_folder, seed=seed)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    say(f"clip: {clip.STAGE.steps} steps, log in {work}/clip/log.jsonl")
    towers = clip.train(work / "clip", tokenizer, seed=seed, config=clip.STAGE)
    say(f"autoencoder: {autoencoder.STAGE.steps} steps, log in {work}/autoencoder/log.jsonl")
    vae = autoencoder.train(work / "autoencoder", seed=seed, config=autoencoder.STAGE)
    text_encoder = CLIPTextModel(towers.config.text_config)
    text_encoder.load_state_dict(towers.text_model.state_dict())
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet.build_model(),
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline, towers


def save_clip(towers: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Both towers in fp16 with their tokenizer and normalisation: all that `evaluation.networks.clip` reads."""
    towers.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    normalisation = {"image_mean": [clip.MEAN] * 3, "image_std": [clip.STD] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(normalisation))


@dataclass
class FirstBuild:
    """Train the first edition of the embedded teacher."""

    work: Path = Path("runs/first-embedded-teacher")
    """Where the stages keep their checkpoints and logs."""
    out: Path = Path("runs/first-embedded-teacher/out")
    """Where teacher/ and clip/ are written."""
    start: Path | None = None
    """What an earlier build wrote: its encoders are kept and its U-Net is trained further."""
    unet_steps: int = unet.STAGE.steps
    seed: int = 0

    def run(self) -> None:
        build(self.work, self.out, seed=self.seed, unet_steps=self.unet_steps, start=self.start, say=print)


if __name__ == "__main__":
    asked = tyro.cli(FirstBuild)
    sys.exit(exit_code(lambda report: asked.run()))
