"""What is measured: the embedded teacher, and Stable Diffusion 1.5 at a quarter of its width."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from scott.data.batch import Batch
from scott.mini.embedded import TEACHER, load_teacher
from scott.recipes import configs
from scott.teachers import LatentBackbone
from scott.teachers.sd import UNetBackbone
from scott.training.config import DistillConfig

RANK = 16
"""Of student and critic. A LoRA's part of a layer goes with rank / width: 16 here is 64 on SD1.5."""
PROMPT = "a red apple"


@dataclass(frozen=True)
class Model:
    """A teacher and how its student is trained; both batch sizes are defaults."""

    teacher: Callable[[], LatentBackbone]
    config: DistillConfig
    sample_batch: int


def sd50m() -> LatentBackbone:
    """SD1.5 with every width divided by four and random weights: 53.8 M parameters at 32x32 latents (256 px).

    The VAE (5.3 M) and the text encoder (14.8 M, with CLIP's whole vocabulary) shrink alike, so that all parts cost
    what they cost in SD1.5 relative to one another.
    """
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TEACHER / "tokenizer", model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=12,
        num_attention_heads=3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(80, 160, 320, 320),
        cross_attention_dim=192,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    vae = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=16,
        sample_size=256,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler.from_pretrained(TEACHER / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return UNetBackbone(pipeline)


_LORA = {"train": "lora", "lora_rank": RANK, "critic_rank": RANK, "data": "none", "out": Path("none")}
# a recipe saves memory where its teacher is large; here everything runs in fp32 and nothing is computed twice
_LORA |= {"precision": "fp32", "gradient_checkpointing": False}
MODELS = {
    "mini": Model(load_teacher, configs.mini(method="paper", **_LORA), 8),
    "sd50m": Model(sd50m, configs.sd15(method="paper", **_LORA | {"batch_size": 4}), 2),
}


@dataclass(frozen=True)
class Data:
    """A batch as a script reads it (pixels (B, 3, H, W) in [0, 1] and captions) and as scott caches it."""

    pixels: Tensor
    prompts: list[str]
    encoded: Batch


def random_data(backbone: LatentBackbone, batch_size: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(batch_size, 3, backbone.resolution, backbone.resolution, generator=generator)
    prompts = [PROMPT] * batch_size
    return Data(pixels, prompts, Batch(*backbone.encode_images(pixels), backbone.encode_prompts(prompts)))
