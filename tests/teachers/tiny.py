"""Tiny pipelines of the families that `tests.conftest` has not: `FOLDERS[family](folder)` writes one."""

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tests.conftest import tiny_clip_config, tiny_sd3, tiny_t5, tiny_tokenizer, tiny_vae
from transformers import CLIPTextModel

SHIFT = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "max_image_seq_len": 4096}
"""As FLUX.1's scheduler shifts by size."""


def tiny_sd35(folder):
    """SD3.5 medium: SD3 with normed queries and keys, and a second attention in its first blocks."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3(folder))
    torch.manual_seed(0)
    changes = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
    pipeline.transformer = SD3Transformer2DModel.from_config({**pipeline.transformer.config, **changes})
    pipeline.save_pretrained(folder)


def flux_like(**options):
    """What FLUX's transformer and those made of it have in common, with `options` of their own."""
    sizes = {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
    return sizes | {"in_channels": 16, "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6)} | options


def tiny_flux(folder):
    torch.manual_seed(0)
    tokenizer, (tokenizer_2, t5) = tiny_tokenizer(), tiny_t5()
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFT),
        vae=tiny_vae(shift_factor=0.1, scaling_factor=0.36),
        text_encoder=CLIPTextModel(tiny_clip_config(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(**flux_like(pooled_projection_dim=32, guidance_embeds=True)),
    ).save_pretrained(folder)


FOLDERS = {"sd35": tiny_sd35, "flux": tiny_flux}
