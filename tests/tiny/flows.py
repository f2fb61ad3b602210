"""Tiny pipelines of the flows that came after Stable Diffusion 3: `tiny_flux(folder)` writes one."""

import string

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tests.tiny.parts import language_model, tiny_clip_config, tiny_qwen_tokenizer, tiny_t5, tiny_tokenizer, tiny_vae
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextModel,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

SHIFT = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "max_image_seq_len": 4096}
"""As FLUX.1's scheduler shifts by size."""


def flux_like(**options):
    """What FLUX's transformer and those made of it have in common, with `options` of their own."""
    sizes = {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
    return sizes | {"in_channels": 16, "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6)} | options


def tiny_flux(folder, **sizes):
    torch.manual_seed(0)
    tokenizer, (tokenizer_2, t5) = tiny_tokenizer(), tiny_t5()
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFT),
        vae=tiny_vae(shift_factor=0.1, scaling_factor=0.36),
        text_encoder=CLIPTextModel(tiny_clip_config(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(**flux_like(pooled_projection_dim=32, guidance_embeds=True, **sizes)),
    ).save_pretrained(folder)


def tiny_chroma(folder, **sizes):
    torch.manual_seed(0)
    tokenizer, t5 = tiny_t5()
    sizes |= {"approximator_num_channels": 16, "approximator_hidden_dim": 16, "approximator_layers": 1}
    ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.5),
        vae=tiny_vae(shift_factor=0.1, scaling_factor=0.36),
        text_encoder=t5,
        tokenizer=tokenizer,
        transformer=ChromaTransformer2DModel(**flux_like(**sizes)),
    ).save_pretrained(folder)


def tiny_flux2(folder, **sizes):
    torch.manual_seed(0)
    tokenizer = tiny_qwen_tokenizer()
    layers = language_model(len(tokenizer), num_hidden_layers=28, hidden_size=8, intermediate_size=8, head_dim=4)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    axes = {"axes_dims_rope": (4, 4, 4, 4), "joint_attention_dim": 24, "guidance_embeds": False}
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**layers, tie_word_embeddings=True)),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(**flux_like(**axes, **sizes)),
    ).save_pretrained(folder)


def tiny_qwen_image(folder, **sizes):
    torch.manual_seed(0)
    tokenizer = tiny_qwen_tokenizer()
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = language_model(len(tokenizer), num_hidden_layers=1, rope_parameters=rope)
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[-0.7, 0.1, 0.3, -0.2],
            latents_std=[2.8, 1.5, 0.8, 1.0],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
            **{"num_layers": 4} | sizes,
        ),
    ).save_pretrained(folder)


def tiny_z_image(folder):
    torch.manual_seed(0)
    tokenizer = tiny_qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    for parameter in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(parameter)
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=tiny_vae(shift_factor=0.1, scaling_factor=0.36),
        text_encoder=Qwen3Model(Qwen3Config(**language_model(len(tokenizer)))),
        tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)


def tiny_sana(folder):
    torch.manual_seed(0)
    letters = ["▁", *string.ascii_letters, *string.digits, *"'\",.:;-()[]\n"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *dict.fromkeys(letters)]
    tokenizer = GemmaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    begin = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", tokens.index("<bos>"))])
    tokenizer.backend_tokenizer.post_processor = begin  # as the published tokenizer.json has it
    widths = (8, 8, 8, 8)
    blocks = {f"{side}_layers_per_block": (1,) * 4 for side in ("encoder", "decoder")}
    blocks |= {f"{side}_block_out_channels": widths for side in ("encoder", "decoder")}
    blocks |= {f"{side}_qkv_multiscales": ((),) * 4 for side in ("encoder", "decoder")}
    SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(Gemma2Config(**language_model(len(tokenizer), num_hidden_layers=1))),
        vae=AutoencoderDC(latent_channels=4, scaling_factor=0.41, **blocks),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=32,
            sample_size=8,
            timestep_scale=0.5,
        ),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ).save_pretrained(folder)
