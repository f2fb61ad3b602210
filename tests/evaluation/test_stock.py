"""Stock pipelines as they are loaded to be measured."""

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, LCMScheduler, StableDiffusionPipeline, UNet2DModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from scott import evaluation
from scott.errors import UserError
from scott.evaluation.stock import PipelineSampler, default_guidance, load_pipeline, seeded
from scott.measured import Measured
from scott.mini.embedded import GUIDANCE
from scott.targets import target_of

CPU = torch.device("cpu")


def test_nothing_is_drawn_black_for_safety(teacher_folders, tmp_path) -> None:
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(vision_config=tower | {"image_size": 32, "patch_size": 32}, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-10)  # takes offence at everything
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    parts = {"safety_checker": checker, "feature_extractor": processor}
    StableDiffusionPipeline.from_pretrained(teacher_folders["sd1"], **parts).save_pretrained(tmp_path)
    pipeline = load_pipeline(str(tmp_path), None, None, torch.float32, CPU)
    assert PipelineSampler(pipeline, 1, 1.0)(["a cat"], 0).max() > 0


def test_pictures_are_decoded_one_at_a_time(teacher_folders, monkeypatch) -> None:
    pipeline = load_pipeline(str(teacher_folders["sd1"]), None, None, torch.float32, CPU)
    decoder, sizes = pipeline.vae.decoder, []
    monkeypatch.setattr(decoder, "forward", lambda z, *rest, of=decoder.forward: sizes.append(len(z)) or of(z, *rest))
    assert len(PipelineSampler(pipeline, 1, 1.0)(["a cat", "dog", "red"], 0)) == 3
    assert sizes == [1, 1, 1]


def test_the_guidance_of_a_pipelines_own_call_is_known(teacher_folders) -> None:
    """SD's call has 7.5."""
    pipeline = load_pipeline(str(teacher_folders["sd1"]), None, None, torch.float32, CPU)
    assert default_guidance(pipeline) == 7.5
    own, given = (PipelineSampler(pipeline, 1, omega)(["a cat"], 0) for omega in (None, 7.5))
    assert torch.equal(own, given)


@pytest.mark.parametrize("family", ["sd3", "flux", "chroma", "flux2-klein", "qwen-image", "z-image", "sana"])
def test_a_seed_of_a_flow_is_one_picture(teacher_folders, monkeypatch, family):
    """Though most of their pipelines hand the scheduler, which draws noise, no generator; torch's own is left alone."""
    monkeypatch.setattr(evaluation.stock, "DEFAULT_SIZE", 8)
    scheduler = None if family == "sana" else "FlowMatchLCMScheduler"
    pipeline = load_pipeline(str(teacher_folders[family]), scheduler, None, torch.float32, CPU)
    pipeline.default_sample_size = 8
    sampler = PipelineSampler(pipeline, 2, 1.0)
    before = torch.get_rng_state()
    first, again, other = (sampler(["a cat"], seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("family", "scheduler"), [("sd1", "LCMScheduler"), ("sd1", "EulerAncestralDiscreteScheduler")])
def test_a_seed_is_that_of_a_generator(teacher_folders, family, scheduler):
    pipeline = load_pipeline(str(teacher_folders[family]), scheduler, None, torch.float32, CPU)
    call = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "pt"}
    expected = pipeline("a cat", generator=torch.Generator().manual_seed(3), **call).images
    assert torch.equal(PipelineSampler(pipeline, 3, 1.0)(["a cat"], 3), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_own_generator_is_seeded_and_left_alone():
    gpu = torch.device("cuda", torch.cuda.current_device())
    before = torch.cuda.get_rng_state(gpu)
    drawn = []
    for _ in range(2):
        with seeded(3, gpu):
            drawn.append(torch.randn(4, device=gpu))
    assert torch.equal(*drawn)
    assert torch.equal(before, torch.cuda.get_rng_state(gpu))


def test_a_pipeline_without_prompts_is_refused(tmp_path) -> None:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    network = UNet2DModel(sample_size=8, norm_num_groups=4, layers_per_block=1, **blocks)
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a DDPMPipeline; expected a pipeline that draws pictures of prompts"):
        load_pipeline(str(tmp_path), None, None, torch.float32, CPU)


def test_a_lora_that_is_not_there_is_said(teacher_folders) -> None:
    with pytest.raises(UserError, match=r"no LoRA file at style\.safetensors"):
        load_pipeline(str(teacher_folders["sd1"]), None, "style.safetensors", torch.float32, CPU)


@pytest.mark.parametrize(("family", "other"), [("sd1", "sd3"), ("sd1", "sdxl"), ("sd3", "flux")])
def test_a_lora_of_another_kind_of_pipeline_is_refused(teacher_folders, style_lora, family, other) -> None:
    """Of some, diffusers takes nothing, and says so to its log alone."""
    with pytest.raises(UserError, match="is a LoRA of another kind of teacher"):
        load_pipeline(str(teacher_folders[family]), None, str(style_lora(other)), torch.float32, CPU)


def test_a_lora_of_the_hub_of_which_nothing_is_taken_is_refused(teacher_folders, monkeypatch) -> None:
    monkeypatch.setattr(StableDiffusionPipeline, "load_lora_weights", lambda self, name: None)
    with pytest.raises(UserError, match="someone/style is a LoRA of another kind of pipeline; nothing of it goes into"):
        load_pipeline(str(teacher_folders["sd1"]), None, "someone/style", torch.float32, CPU)


def test_pictures_that_are_not_finite_are_no_pictures(teacher_folders) -> None:
    pipeline: Any = load_pipeline(str(teacher_folders["sd1"]), None, None, torch.float32, CPU)
    pipeline.unet.conv_out.bias.data.fill_(torch.inf)
    with pytest.raises(UserError, match="got pictures that are not finite; if the model draws in fp16"):
        PipelineSampler(pipeline, 1, 1.0)(["a cat"], 0)


def test_what_a_scheduler_cannot_do_is_said(teacher_folders) -> None:
    def opened(scheduler: str) -> Any:
        return load_pipeline(str(teacher_folders["sd1"]), scheduler, None, torch.float32, CPU)

    with pytest.raises(UserError, match="StableDiffusionPipeline does not draw in 60 steps by LCMScheduler: "):
        PipelineSampler(opened("LCMScheduler"), 60, 1.0)(["a cat"], 0)
    with pytest.raises(UserError, match="does not draw in 1 step by RePaintScheduler: "):
        PipelineSampler(opened("RePaintScheduler"), 1, 1.0)(["a cat"], 0)
    with pytest.raises(UserError, match=r"VQDiffusionScheduler of .* cannot be made: "):
        opened("VQDiffusionScheduler")


def test_a_pipeline_without_a_vae_is_refused(teacher_folders, monkeypatch) -> None:
    """As Kandinsky's and IF's are, of which nothing says how large their pictures are."""
    load = StableDiffusionPipeline.from_pretrained

    def without(*given: Any, **options: Any) -> Any:
        pipeline = load(*given, **options)
        del pipeline.vae_scale_factor
        return pipeline

    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", without)
    with pytest.raises(UserError, match="expected a pipeline that draws pictures of prompts by a VAE"):
        load_pipeline(str(teacher_folders["sd1"]), None, None, torch.float32, CPU)


def test_another_scheduler_of_a_flow_has_its_shift(teacher_folders, tmp_path) -> None:
    """Which DPM-Solver's config calls otherwise than that of a scheduler of flows alone."""
    folder = shutil.copytree(teacher_folders["sana"], tmp_path / "sana")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"flow_shift": 3.0}))
    made = load_pipeline(str(folder), "FlowMatchEulerDiscreteScheduler", None, torch.float32, CPU)
    assert made.scheduler.config.shift == 3.0
    made.save_pretrained(tmp_path / "euler")
    again = load_pipeline(str(tmp_path / "euler"), "FlowMatchHeunDiscreteScheduler", None, torch.float32, CPU)
    assert again.scheduler.config.shift == 3.0


def test_a_pipeline_whose_network_says_no_size_has_its_own(teacher_folders) -> None:
    pipeline = load_pipeline(str(teacher_folders["flux"]), None, None, torch.float32, CPU)
    assert "sample_size" not in pipeline.transformer.config
    pipeline.default_sample_size = 24
    assert PipelineSampler(pipeline, 1, None).resolution == 24 * pipeline.vae_scale_factor


def test_a_scheduler_of_another_kind_is_refused(teacher_folders) -> None:
    def opened(family: str, scheduler: str) -> None:
        load_pipeline(str(teacher_folders[family]), scheduler, None, torch.float32, CPU)

    with pytest.raises(UserError, match="is a diffusion, and FlowMatchEulerDiscreteScheduler, by its config, is for"):
        opened("sd1", "FlowMatchEulerDiscreteScheduler")
    with pytest.raises(UserError, match="is a flow, and EulerDiscreteScheduler, by its config, is for a diffusion"):
        opened("sd3", "EulerDiscreteScheduler")
    opened("sd1", "DPMSolverMultistepScheduler")
    opened("sd3", "FlowMatchLCMScheduler")


def test_a_few_step_pipeline_of_others_is_drawn_by_its_own_call(teacher_folders, tmp_path) -> None:
    """At the guidance of that call, or another; only what has a scott.json is scott's."""
    pipeline = StableDiffusionPipeline.from_pretrained(teacher_folders["sd1"])
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path / "lcm")
    for given, expected in ((None, 7.5), (1.0, 1.0)):
        target = target_of(str(tmp_path / "lcm"), [2], Measured(guidance=given), torch.float32)
        assert list(target.samplers) == ["lcm-lcm-2"]
        sampler = target.samplers["lcm-lcm-2"]
        assert isinstance(sampler, PipelineSampler)
        assert sampler.guidance == expected
        sampler(["a cat"], 0)
        assert sampler.network_calls == (2 if given else 4)


@pytest.mark.parametrize(("family", "drawn"), [("sd1", 1.0), ("flux", 0.5)])
def test_no_guidance_is_called_that(teacher_folders, family, drawn) -> None:
    """diffusers takes 1 and less for none, but where the network takes the number."""
    target = target_of(str(teacher_folders[family]), [1], Measured(guidance=0.5), torch.float32)
    assert {sampler.guidance for sampler in target.samplers.values()} == {drawn}


def test_the_embedded_teacher_is_drawn_at_its_own_guidance() -> None:
    measured = Measured()
    (sampler,) = target_of("mini", [1], measured, torch.float32).samplers.values()
    (asked,) = target_of("mini", [1], replace(measured, guidance=3.0), torch.float32).samplers.values()
    assert (sampler.guidance, asked.guidance) == (GUIDANCE, 3.0)
