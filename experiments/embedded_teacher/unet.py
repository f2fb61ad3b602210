"""Stage 4: the U-Net, on all styles, from the weights it has.

ε-prediction on Stable Diffusion's schedule, as before: L = mean (ε − ε_θ(α x0 + σ ε, t, c))², t uniform, the caption
dropped in a tenth of the samples. Latents and token states are computed once, by the frozen encoder and text tower.
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from experiments.embedded_teacher.stage import StageConfig, run_stage
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from scott.diffusion import DiscreteSchedule
from scott.mini import scenes
from scott.teachers import LatentBackbone

CAPTION_DROPOUT = 0.1
SCENES = 65_536
STAGE = StageConfig(
    steps=40_000,
    batch_size=64,
    learning_rate=5e-4,
    warmup=500,
    ema_decay=0.9995,
    decay="last fifth",
    checkpoint_every=500,
)


def cached(file: Path, teacher: LatentBackbone, shard: Path, *, seed: int, count: int) -> dict[str, Tensor]:
    """Latents' `mean` and `std` (N, C, H, W) and token states `text` (N, L, D) of scenes, in fp16; kept in `file`."""
    if not file.is_file():
        parts: dict[str, list[Tensor]] = {"mean": [], "std": [], "text": []}
        for start in range(0, count, 64):
            drawn = [
                scenes.scene(i, split="train", seed=seed, shard=shard) for i in range(start, min(start + 64, count))
            ]
            mean, std = teacher.encode_images(scenes.pictures(drawn, shard))
            text = teacher.encode_prompts([this.caption for this in drawn])["text"]
            for name, value in (("mean", mean), ("std", std), ("text", text)):
                parts[name].append(value.half().contiguous())
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({name: torch.cat(values).contiguous() for name, values in parts.items()}, partial)
        partial.rename(file)
    return load_file(file)


def train(
    folder: Path, teacher: LatentBackbone, shard: Path, *, seed: int, config: StageConfig
) -> UNet2DConditionModel:
    """Train (or resume) the network of `teacher`, in place; it ends as its weights' average, in eval mode."""
    data = cached(folder / "data.safetensors", teacher, shard, seed=seed, count=SCENES)
    empty = teacher.encode_prompts([""])["text"]
    schedule = DiscreteSchedule.stable_diffusion()
    unet = teacher.network.requires_grad_(True).train()

    def losses(indices: range, generator: torch.Generator) -> dict[str, Tensor]:
        batch = len(indices)
        rows = torch.randint(SCENES, (batch,), generator=generator)
        mean, std, text = (data[name][rows].float() for name in ("mean", "std", "text"))
        x0 = mean + std * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(1000, (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < CAPTION_DROPOUT
        text = torch.where(dropped[:, None, None], empty, text)
        return {"epsilon_mse": F.mse_loss(unet(schedule.add_noise(x0, noise, t), t, text).sample, noise)}

    unet.load_state_dict(run_stage("unet", unet, losses, config, folder, seed=seed))
    return unet.requires_grad_(False).eval()
