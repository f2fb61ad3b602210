"""One file in the original code's names is the student, for diffusers' own reader, and is a teacher like any folder."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scott.errors import UserError
from scott.export.ldm import unet_names
from scott.export.pipeline import stock_latents
from scott.export.single_file import FILE, read_checkpoint, require_unet, save_checkpoint
from scott.export.trained import difference
from scott.students import load_student

KINDS = [("sd1", "lora"), ("sd1", "full"), ("sd2", "lora"), ("sdxl", "full")]


@pytest.mark.parametrize(("family", "train"), KINDS)
def test_diffusers_reads_the_file_and_draws_the_student(make_trained, teacher_folders, tmp_path, family, train):
    trained = make_trained(family, train)
    expected = trained.expected()
    info = save_checkpoint(trained, tmp_path)
    assert (info.takes_guidance, info.guidance_min, info.guidance_max, info.guidance) == (False, 4.0, 4.0, 4.0)
    read_checkpoint(tmp_path, expected)
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipe = kind.from_single_file(
        str(tmp_path / FILE), config=str(teacher_folders[family]), safety_checker=None, feature_extractor=None
    )
    pipe.scheduler = expected.scheduler
    assert difference(expected.latents, stock_latents(pipe, 1.0)) < 1e-4
    with torch.no_grad():
        pixels = [vae.decode(expected.latents).sample for vae in (pipe.vae, trained.backbone.vae)]
    torch.testing.assert_close(*pixels)


def test_the_file_is_no_teacher(make_trained, tmp_path, command_line, teacher_folders):
    """Of its own metadata, since nothing else in it says that it draws in few steps."""
    save_checkpoint(make_trained("sd1"), tmp_path)
    given = ["--teacher", tmp_path / FILE, "--teacher-config", teacher_folders["sd1"], "--data", "pictures"]
    code, _, said = command_line("distill", *given, "--dry-run")
    assert (code, "is a few-step student already; distil from" in " ".join(said.split())) == (2, True)


@pytest.mark.parametrize("name", [FILE, "renamed.safetensors"])
def test_the_file_is_no_lora(make_trained, tmp_path, name):
    save_checkpoint(make_trained("sd1"), tmp_path)
    (tmp_path / FILE).rename(tmp_path / name)
    with pytest.raises(UserError, match="holds a checkpoint for other programs; draw with the run or its student/"):
        load_student(str(tmp_path / name))


def test_programs_can_tell_what_a_file_is(make_trained, tmp_path):
    trained = make_trained("sd2")
    save_checkpoint(trained, tmp_path, torch.float16)
    with safe_open(tmp_path / FILE, "pt") as opened:
        said = opened.metadata()
    assert said["modelspec.architecture"] == "stable-diffusion-v2-768-v"
    assert said["modelspec.prediction_type"] == "v"
    assert {value.dtype for value in load_file(tmp_path / FILE).values()} == {torch.float16}
    read_checkpoint(tmp_path, trained.expected(), torch.float16)


def test_a_file_that_reads_back_differently_is_refused(make_trained, tmp_path):
    trained = make_trained()
    expected = trained.expected()
    save_checkpoint(trained, tmp_path)
    tensors = load_file(tmp_path / FILE)
    tensors["model.diffusion_model.out.2.bias"] += 1
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(UserError, match=r"read back from .* by from_single_file draws .* of a spread off"):
        read_checkpoint(tmp_path, expected)


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "PixArtAlphaPipeline", "FluxPipeline"])
def test_a_transformer_has_no_such_file(name):
    with pytest.raises(UserError, match=f"got --to checkpoint for a {name}; expected SD1"):
        require_unet(name)


def test_a_weight_without_a_name_is_an_error(make_backbone):
    network = make_backbone().network
    with pytest.raises(UserError, match=r"no name for 1 weights, such as mid_block.resnets.7.conv1.weight"):
        unet_names(network, [*network.state_dict(), "mid_block.resnets.7.conv1.weight"])
