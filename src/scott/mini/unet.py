"""The U-Net of the embedded teacher, trained on latents and text embeddings that are computed once."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from scott.backbones.unet import UNetBackbone
from scott.diffusion import DiscreteSchedule
from scott.mini import scenes
from scott.mini.stage import StageConfig, run_stage

CAPTION_DROPOUT = 0.1
SCENES = 65_536  # cached scenes; a pass over them is 1,024 steps
STAGE = StageConfig(steps=12_000, batch_size=64, learning_rate=1e-3, warmup=500, ema_decay=0.9995, checkpoint_every=500)


def build_model() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=(96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    # every residual branch and the output start at zero, as in ADM (Dhariwal & Nichol 2021)
    for name, module in unet.named_modules():
        if name.endswith((".conv2", ".proj_out")) or name == "conv_out":
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    return unet


@torch.no_grad()
def cache_latents(
    file: Path, backbone: UNetBackbone, *, seed: int, count: int = SCENES, chunk: int = 256
) -> dict[str, Tensor]:
    """Mean and standard deviation of the latents, and the text embeddings, of the first training scenes (fp16)."""
    if not file.is_file():
        parts: dict[str, list[Tensor]] = {"mean": [], "std": [], "text": []}
        for start in range(0, count, chunk):
            pixels, captions = scenes.batch(range(start, min(start + chunk, count)), split="train", seed=seed)
            mean, std = backbone.encode_images(pixels)
            for name, value in (("mean", mean), ("std", std), ("text", backbone.encode_prompts(captions)["text"])):
                parts[name].append(value.half())
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({name: torch.cat(values) for name, values in parts.items()}, partial)
        partial.rename(file)
    return load_file(file)


def train(folder: Path, backbone: UNetBackbone, *, seed: int, config: StageConfig = STAGE) -> UNet2DConditionModel:
    """Train (or resume) in `folder` with ε-prediction on Stable Diffusion's schedule; the averaged model, eval mode."""
    cached = cache_latents(folder / "latents.safetensors", backbone, seed=seed)
    empty = backbone.encode_prompts([""])["text"]
    schedule = DiscreteSchedule.stable_diffusion()
    torch.manual_seed(seed)
    unet = build_model().train()
    count = len(cached["mean"])

    def losses(indices: range, generator: torch.Generator) -> dict[str, Tensor]:
        batch = len(indices)
        rows = torch.randint(count, (batch,), generator=generator)
        mean, std, text = (cached[name][rows].float() for name in ("mean", "std", "text"))
        x0 = mean + std * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        t = torch.randint(1000, (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < CAPTION_DROPOUT
        text = torch.where(dropped[:, None, None], empty, text)
        return {"epsilon_mse": F.mse_loss(unet(schedule.add_noise(x0, noise, t), t, text).sample, noise)}

    unet.load_state_dict(run_stage("unet", unet, losses, config, folder, seed=seed))
    return unet.eval()
