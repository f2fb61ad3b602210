"""The embedded teacher that ships, from its first edition, stage by stage.

    python -m experiments.embedded_teacher.build text image unet --start FIRST    # on one core
    python -m experiments.embedded_teacher.build decoder --start FIRST            # on another
    python -m experiments.embedded_teacher.build --start FIRST --out FOLDER       # all: a pipeline and a CLIP in fp16

A stage that is stopped goes on by the same command; one that is finished is read back. The same seed gives the same
weights on the same CPU. The tokenizer and the VAE's encoder are not trained.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from experiments.embedded_teacher import decoder, image, text, unet
from experiments.embedded_teacher.first.build import save_clip
from experiments.embedded_teacher.stage import StageConfig
from experiments.runs import exit_code
from transformers import CLIPModel

from scott.errors import UserError
from scott.mini import embedded, glyphs

Stage = Literal["text", "image", "decoder", "unet"]


@dataclass(kw_only=True)
class Build:
    """Train stages of the embedded teacher; with --out, write what they give."""

    stages: tyro.conf.Positional[tuple[Stage, ...]] = ("text", "image", "decoder", "unet")
    work: Path = Path("runs/embedded-teacher")
    """Where the stages keep their checkpoints and logs."""
    start: Path
    """A folder with teacher/ and clip/ to start from: the first edition's, as first.build writes them."""
    shard: Path = glyphs.SHARD
    out: Path | None = None
    """Where teacher/ and clip/ are written; needs all stages."""
    as_is: bool = False
    """Train nothing: write with --out what the stages have got to."""
    unet_steps: int = unet.STAGE.steps
    decoder_steps: int = decoder.STAGE.steps
    device: str = "cpu"
    """Where stages train. Their data are drawn on the CPU, and are the same everywhere."""
    workers: int = 0
    """Processes that draw the data ahead of the training."""
    seed: int = 0

    def run(self) -> None:
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"got --device {self.device}, and torch sees none here; leave it out for the CPU")
        torch.set_num_threads(1)
        stages = ("text", "image", "decoder", "unet") if self.out else self.stages
        teacher = embedded.load_teacher(self.start / "teacher")
        clip = CLIPModel.from_pretrained(self.start / "clip", dtype=torch.float32)
        tokenizer = teacher.pipeline.tokenizer
        if {"text", "image", "unet"} & set(stages):
            text.train(self._folder("text"), clip, tokenizer, self.shard, seed=self.seed, config=self._of(text.STAGE))
            # what ships is fp16, so what comes after is trained on what the fp16 tower gives
            clip.text_model.half().float()
            teacher.pipeline.text_encoder.load_state_dict(clip.text_model.state_dict())
        if "image" in stages:
            image.train(
                self._folder("image"), clip, tokenizer, self.shard, seed=self.seed, config=self._of(image.STAGE)
            )
        if "decoder" in stages:
            config = self._of(dataclasses.replace(decoder.STAGE, steps=self.decoder_steps))
            decoder.train(self._folder("decoder"), teacher.vae, self.shard, seed=self.seed, config=config)
        if "unet" in stages:
            config = self._of(dataclasses.replace(unet.STAGE, steps=self.unet_steps))
            unet.train(self._folder("unet"), teacher, self.shard, seed=self.seed, config=config)
        if self.out:
            teacher.pipeline.to(dtype=torch.float16).save_pretrained(self.out / "teacher")
            save_clip(clip, tokenizer, self.out / "clip")

    def _folder(self, stage: str) -> Path:
        return self.work / stage

    def _of(self, config: StageConfig) -> StageConfig:
        return dataclasses.replace(config, as_is=self.as_is, device=self.device, workers=self.workers)


if __name__ == "__main__":
    asked = tyro.cli(Build)
    sys.exit(exit_code(lambda report: asked.run()))
