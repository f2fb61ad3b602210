"""The U-Net of the embedded teacher, trained on latents and text embeddings that are computed once."""

from pathlib import Path

from diffusers import UNet2DConditionModel
from experiments.embedded_teacher.first.clip import SHARD
from experiments.embedded_teacher.stage import StageConfig, run_stage
from experiments.embedded_teacher.unet import denoising
from torch import nn

from scott.data.preparation import full_settings, prepare_shards
from scott.data.settings import Settings
from scott.data.shard_source import ShardSource
from scott.errors import UserError
from scott.mini import scenes
from scott.teachers.fingerprint import fingerprints
from scott.teachers.sd import UNetBackbone

SCENES = 49_152  # cached scenes; a pass over them is 768 steps
STAGE = StageConfig(steps=22_000, batch_size=64, learning_rate=1e-3, warmup=500, ema_decay=0.9995, checkpoint_every=500)


def build_model() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=(96, 128),
        layers_per_block=1,
        # one attention at 8x8, on the way down: small subjects are three latents wide and have to be placed
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
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


def grown(earlier: UNet2DConditionModel) -> UNet2DConditionModel:
    """Today's architecture with an earlier build's weights; attention it did not have starts as the identity."""
    unet = build_model()
    lacking, unknown = unet.load_state_dict(earlier.state_dict(), strict=False)
    if unknown or any(".attentions." not in name for name in lacking):
        raise UserError(f"the U-Net to start from has other layers than this build trains: {(lacking + unknown)[0]}")
    return unet


def train(folder: Path, backbone: UNetBackbone, *, seed: int, config: StageConfig) -> UNet2DConditionModel:
    """Train (or resume) in `folder` with ε-prediction on Stable Diffusion's schedule; the averaged model, eval mode."""
    images, settings, data = scenes.Scenes(SCENES, "train", seed, SHARD), Settings(), folder / "data"
    made_for = full_settings("mini", images, settings, backbone, fingerprints(backbone))
    prepare_shards(images, backbone, settings, made_for, data, lambda *_: None)
    cached = ShardSource(data, seed).all()
    empty = backbone.encode_prompts([""])["text"]
    unet = backbone.network.requires_grad_(True).train()
    draw, losses = denoising(unet, {"mean": cached.mean, "std": cached.std, "text": cached.cond["text"]}, empty)
    unet.load_state_dict(run_stage("unet", unet, draw, losses, config, folder, seed=seed))
    return unet.eval()
