"""Tiny pipelines of Stable Diffusion's families and PixArt: `tiny_sd(folder)` writes one, and returns the folder."""

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from tests.tiny.parts import tiny_clip_config, tiny_t5, tiny_tokenizer, tiny_unet, tiny_vae
from transformers import CLIPTextModel, CLIPTextModelWithProjection

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def tiny_sd(folder, prediction_type="epsilon", **unet_options):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(tiny_clip_config(tokenizer)),
        tokenizer=tokenizer,
        unet=tiny_unet(**unet_options),
        scheduler=DDIMScheduler(**STABLE_DIFFUSION, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def tiny_sdxl(folder, **unet_options):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    unet = tiny_unet(
        cross_attention_dim=32 + 64,  # of different widths, as the published encoders are
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
        use_linear_projection=True,
        **unet_options,
    )
    StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(tiny_clip_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(tiny_clip_config(tokenizer, hidden_size=64, projection_dim=32)),
        tokenizer=tokenizer,
        tokenizer_2=tiny_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(**STABLE_DIFFUSION),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def tiny_pixart(folder):
    """PixArt-α, with the learned variance its networks have. 32 latents a side: stock pipelines know no less."""
    torch.manual_seed(0)
    tokenizer, encoder = tiny_t5()
    transformer = PixArtTransformer2DModel(
        sample_size=32,
        num_layers=4,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=32,
        out_channels=8,
    )
    PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=tiny_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    ).save_pretrained(folder)
    return folder


def tiny_sd3(folder, **sizes):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    tokenizer_3, t5 = tiny_t5(features=64)  # as many as the two CLIPs have together, which are padded to it
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=16,
        **{"num_layers": 4} | sizes,
    )
    config = tiny_clip_config(tokenizer, projection_dim=32)
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(shift_factor=0.1),
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=tiny_tokenizer(),
        text_encoder_3=t5,
        tokenizer_3=tokenizer_3,
    ).save_pretrained(folder)
    return folder


def tiny_sd35(folder, dual_attention_layers=(0, 1), **sizes):
    """SD3.5: SD3 with normed queries and keys, and in its medium a second attention in the first blocks."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3(folder, **sizes))
    torch.manual_seed(0)
    changes = {"qk_norm": "rms_norm", "dual_attention_layers": dual_attention_layers}
    pipeline.transformer = SD3Transformer2DModel.from_config({**pipeline.transformer.config, **changes})
    pipeline.save_pretrained(folder)
