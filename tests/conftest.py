"""A whole pipeline of each family, small enough to run a test in, and backbones made of them."""

import copy
import functools
import gc
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils.logging import disable_progress_bar, set_verbosity_error
from hypothesis import HealthCheck, settings
from peft import LoraConfig, get_peft_model_state_dict
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from scott.cli import main
from scott.commands import validation
from scott.diffusion import JumpGrid
from scott.teachers import load_backbone

TESTS = Path(__file__).parent
SLOW = ("training/test_processes.py", "golden/test_golden.py", "training/test_stopped.py")
SLOW += ("training/test_trainer.py", "test_pages_run.py", "recipes/test_recipes.py", "training/test_budget.py")
SLOW += ("commands/test_demo.py", "app/test_browser.py", "test_notebooks.py", "test_cli_export.py")
SLOW += (
    "test_benchmarks.py",
    "recipes/test_real_scale.py",
    "teachers/test_families.py",
    "teachers/test_flow_families.py",
    "test_cli.py",
)
MAX_TOKENS = 16
disable_progress_bar()
set_verbosity_error()
FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck))  # how long anything takes is no test's business
settings.register_profile("scott", FUZZ, max_examples=40)
settings.register_profile("thorough", FUZZ, max_examples=1000)  # pytest --hypothesis-profile thorough
settings.load_profile("scott")
gc.disable()  # until all tests are imported, of which nothing is garbage


def pytest_collection_modifyitems(items):
    """Slow files first: whoever is free last then has a short one left."""
    rank = {TESTS / name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish():
    """What was imported stays, and is not looked through again whenever garbage is collected: every 20,000 new objects,
    of which a copy of a backbone has as many, not every 700."""
    gc.set_threshold(20_000)
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def few_steps_of_the_teacher():
    """Beside a student that a run draws on its way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "TEACHER_STEPS", 2)
        yield


@pytest.fixture
def command_line(monkeypatch, capfd):
    """`command_line(*arguments)` runs scott in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["scott", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return run


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


def tiny_clip_config(tokenizer, **options):
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**(config | options))


def tiny_t5(features=32):
    """A T5 encoder and a tokenizer of letters."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(chr(code) for code in range(ord("a"), ord("z") + 1))]
    tokenizer = T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)
    config = T5Config(vocab_size=len(tokenizer), d_model=features, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return tokenizer, T5EncoderModel(config)


def tiny_vae(channels=4, **options):
    return AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=64,
        **options,
    )


STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@pytest.fixture(scope="session")
def tiny_sd(tiny_unet):
    """`tiny_sd(folder, prediction_type="epsilon", **unet_options)` writes a pipeline folder and returns its path."""

    def write(folder, prediction_type="epsilon", **unet_options):
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

    return write


def tiny_sdxl(tiny_unet, folder):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    unet = tiny_unet(
        cross_attention_dim=32 + 64,  # of different widths, as the published encoders are
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
        use_linear_projection=True,
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


def tiny_sd3(folder):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    tokenizer_3, t5 = tiny_t5(features=64)  # as many as the two CLIPs have together, which are padded to it
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=16,
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


@pytest.fixture(scope="session")
def teacher_folders(tiny_sd, tiny_unet, tmp_path_factory):
    """family → folder of a tiny pipeline, for sd1, sd2, sdxl, pixart and sd3. Not to be written to."""
    new = tmp_path_factory.mktemp
    return {
        "sd1": tiny_sd(new("sd1")),
        "sd2": tiny_sd(new("sd2"), "v_prediction", use_linear_projection=True),
        "sdxl": tiny_sdxl(tiny_unet, new("sdxl")),
        "pixart": tiny_pixart(new("pixart")),
        "sd3": tiny_sd3(new("sd3")),
    }


@pytest.fixture(scope="session")
def flow_folder(tmp_path_factory):
    """family → folder of a tiny pipeline of `tests.teachers.tiny`. Not to be written to."""
    from tests.teachers.tiny import FOLDERS  # which is made of what stands here

    @functools.cache
    def make(family):
        path = tmp_path_factory.mktemp(family)
        FOLDERS[family](path)
        return path

    return make


@pytest.fixture(scope="session")
def style_lora(teacher_folders, tmp_path_factory):
    """`style_lora(family)`: a LoRA file of rank 2 on attention, as diffusers' own training scripts save it."""

    @functools.cache
    def make(family):
        pipe = DiffusionPipeline.from_pretrained(teacher_folders[family])
        part = "unet" if hasattr(pipe, "unet") else "transformer"
        torch.manual_seed(3)
        network = getattr(pipe, part)
        network.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
        folder = tmp_path_factory.mktemp("style")
        pipe.save_lora_weights(folder, **{f"{part}_lora_layers": get_peft_model_state_dict(network)})
        return folder / "pytorch_lora_weights.safetensors"

    return make


@pytest.fixture(params=["sd1", "sd2", "sdxl", "pixart", "sd3"])
def family(request):
    """Runs the test once for every family."""
    return request.param


@pytest.fixture(scope="session")
def sd_folders(teacher_folders):
    """prediction type → folder. Not to be written to."""
    return {"epsilon": teacher_folders["sd1"], "v_prediction": teacher_folders["sd2"]}


@pytest.fixture(scope="session")
def make_backbone(teacher_folders):
    """`make_backbone(train=None, critic_rank=0, family="sd1", critic="lora", dtype=torch.float32)`: a fresh one, alike
    each time."""

    def copied(backbone):
        # what no test writes to is shared
        frozen = (p for name, p in backbone.pipeline.components.items() if name.startswith(("vae", "text", "tok")))
        memo = {id(part): part for part in frozen if part is not None}
        # modules' tables of hooks, nearly all empty: made beforehand, they take a third less time
        for part in (backbone.network, *backbone.copies.values(), backbone.critic_model):
            for module in part.modules() if part is not None else ():
                memo |= {id(v): type(v)() for v in vars(module).values() if isinstance(v, dict | set) and not v}
        return copy.deepcopy(backbone, memo)

    @functools.cache
    def original(train, critic_rank, family, critic, dtype):
        if not train and not critic_rank:
            return load_backbone(teacher_folders[family], dtype)
        backbone = copied(original(None, 0, family, "lora", dtype))
        torch.manual_seed(1)
        if train:
            backbone.add_student(train, rank=4, alpha=4.0)
        if critic_rank:
            backbone.add_critic(critic_rank, critic)
        return backbone

    def make(train=None, critic_rank=0, family="sd1", critic="lora", dtype=torch.float32):
        return copied(original(train, critic_rank, family, critic, dtype))

    return make


@pytest.fixture(scope="session")
def inputs():
    """`inputs(backbone, seed=0)`: two states, their times (the last and a middle one) and their condition."""

    def make(backbone, seed=0):
        generator = torch.Generator().manual_seed(seed)
        cond = backbone.encode_prompts(["a cat", "dog"]) | {"guidance": torch.tensor([3.0, 7.5])}
        x = torch.randn(2, *backbone.latent_shape, generator=generator)
        return x, JumpGrid(backbone.schedule).times[[-1, 34]], cond

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
