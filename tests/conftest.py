"""A whole `StableDiffusionPipeline`, small enough to run a test in, and backbones made of it."""

import copy
import functools
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils.logging import disable_progress_bar, set_verbosity_error
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from scott.backbones import load_backbone

MAX_TOKENS = 16
disable_progress_bar()
set_verbosity_error()


def tiny_tokenizer():
    """One token a letter, and "cat" merged into one."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges = [("c", "a"), ("ca", "t</w>")]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocab = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


@pytest.fixture(scope="session")
def tiny_unet():
    """`tiny_unet(**options)`: an untrained U-Net in eval mode."""

    def make(**options):
        torch.manual_seed(0)
        tiny = {
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
        }
        return UNet2DConditionModel(**(tiny | options)).eval()

    return make


@pytest.fixture(scope="session")
def tiny_sd(tiny_unet):
    """`tiny_sd(folder, prediction_type="epsilon", **unet_options)` writes a pipeline folder and returns its path."""

    def write(folder, prediction_type="epsilon", **unet_options):
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer()
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            sample_size=64,
        )
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        )
        StableDiffusionPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=tiny_unet(**unet_options),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def sd_folders(tiny_sd, tmp_path_factory):
    """prediction type → folder. Not to be written to."""
    return {
        "epsilon": tiny_sd(tmp_path_factory.mktemp("sd1")),
        "v_prediction": tiny_sd(tmp_path_factory.mktemp("sd2"), "v_prediction", use_linear_projection=True),
    }


@pytest.fixture(scope="session")
def make_backbone(sd_folders):
    """`make_backbone(train=None, critic_rank=0, prediction_type="epsilon")`: a fresh one, alike each time."""

    @functools.cache
    def original(train, critic_rank, prediction_type):
        backbone = load_backbone(sd_folders[prediction_type])
        torch.manual_seed(1)
        if train:
            backbone.add_student(train, rank=4, alpha=4.0)
        if critic_rank:
            backbone.add_critic(critic_rank)
        return backbone

    def make(train=None, critic_rank=0, prediction_type="epsilon"):
        return copy.deepcopy(original(train, critic_rank, prediction_type))

    return make


@pytest.fixture(scope="session")
def perturb():
    """`perturb(parameters, seed)` moves each parameter by N(0, 0.05²), in place."""

    def move(parameters, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)

    return move
