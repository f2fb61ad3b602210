"""Teachers as people bring them: what their config files leave out or say oddly is taken, or refused in one line."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from sentencepiece import SentencePieceTrainer
from tests.tiny.stable import tiny_sd

from scott.errors import UserError
from scott.teacher_source import TeacherSource
from scott.teachers import load_backbone
from scott.teachers.skeleton import skeleton


@pytest.fixture
def edited(teacher_folders, tmp_path):
    """`edited(file, change, family)`: a copy of a tiny pipeline with something else in a JSON file."""

    def make(file, change, family="sd1"):
        folder = shutil.copytree(teacher_folders[family], tmp_path / family)
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({k: v for k, v in (content | change).items() if v != "absent"}))
        return folder

    return make


def refused(folder, said, named=True):
    for read in (load_backbone, skeleton):
        with pytest.raises(UserError, match=said) as caught:
            read(folder)
        assert "\n" not in str(caught.value)
        assert "torchsde" not in said or "download" not in str(caught.value), "it says what to install"
        assert str(folder) in str(caught.value) or not named


@pytest.mark.parametrize("size", [None, [8, 8], 0, -1, 2**31, 8.0, True, "8", "absent"])
@pytest.mark.parametrize(("family", "part"), [("sd1", "unet"), ("pixart", "transformer")])
def test_a_network_that_does_not_say_its_size(edited, family, part, size):
    """A huge one would be built, with a position for each place, before anything else is found wrong."""
    folder = edited(f"{part}/config.json", {"sample_size": size}, family)
    if (family, size) == ("pixart", "absent"):  # the class has a default, 128
        assert skeleton(folder).latent_shape == (4, 128, 128)
    else:
        refused(folder, f"has sample_size .* in {part}/config.json; expected the side of its latents, a number from 1")


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [("nowhere.NowhereScheduler", "nowhere|NowhereScheduler"), ("diffusers.DPMSolverSDEScheduler", "torchsde")],
)
def test_a_scheduler_whose_package_is_absent(edited, scheduler, said):
    """In the second one's place, which needs torchsde, diffusers has a class that raises ImportError when used."""
    refused(edited("model_index.json", {"scheduler": scheduler.split(".")}), said)


def test_a_tokenizer_that_does_not_say_its_length(edited, teacher_folders):
    for family, part in (("sd1", "tokenizer"), ("sdxl", "tokenizer_2"), ("sd3", "tokenizer")):
        folder = edited(f"{part}/tokenizer_config.json", {"model_max_length": "absent"}, family)
        given, whole = (load_backbone(place).encode_prompts(["a cat"]) for place in (folder, teacher_folders[family]))
        assert all(torch.equal(given[name], whole[name]) for name in whole)


def test_a_unet_without_a_middle(tmp_path):
    backbone = load_backbone(tiny_sd(tmp_path / "teacher", mid_block_type=None))
    assert None not in backbone.blocks()
    backbone.add_student("lora", rank=2)
    backbone.add_critic(2)
    x, t = torch.randn(1, *backbone.latent_shape), torch.tensor([999])
    cond = backbone.encode_prompts(["a cat"])
    assert torch.equal(backbone.student(x, t, cond), backbone.teacher(x, t, cond))
    assert bool(backbone.critic(x, t, cond).isfinite().all())
    backbone.add_critic(2, "heads")
    assert bool(backbone.critic(x, t, cond).isfinite().all())


def test_a_teacher_preconditioned_as_in_edm_is_refused(edited):
    """Playground v2.5's scheduler."""
    folder = edited("model_index.json", {"scheduler": ["diffusers", "EDMDPMSolverMultistepScheduler"]})
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"sigma_max": 80.0, "sigma_data": 0.5}))
    refused(folder, "got the scheduler EDMDPMSolverMultistepScheduler: .* is not supported", named=False)


def test_a_vae_for_previews_is_refused(teacher_folders, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(teacher_folders["sd1"])
    blocks = {"encoder_block_out_channels": (8,), "decoder_block_out_channels": (8,)}
    pipeline.vae = AutoencoderTiny(**blocks, num_encoder_blocks=(1,), num_decoder_blocks=(1,))
    pipeline.save_pretrained(tmp_path)
    refused(tmp_path, "the VAE is an AutoencoderTiny, for previews", named=False)


def test_noise_prediction_without_signal_at_the_last_time_is_refused(edited):
    folder = edited("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True})
    refused(folder, "predicts ε and has zero terminal SNR", named=False)


TAKEN = {
    "betas in two axes": ("scheduler/scheduler_config.json", {"trained_betas": [[0.1, 0.2]]}, "sd1"),
    "no times": ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "sd1"),
    "a width that its heads do not share": ("text_encoder/config.json", {"hidden_size": 7}, "sd1"),
    "a part without a class": ("model_index.json", {"text_encoder": ["transformers"]}, "sd1"),
    "a scale that is no number": ("vae/config.json", {"scaling_factor": "large"}, "sd1"),
    "a shift between two sizes that are one": (
        "scheduler/scheduler_config.json",
        {"base_image_seq_len": 4096},
        "flux",
    ),
}


@pytest.mark.parametrize(("file", "change", "family"), TAKEN.values(), ids=TAKEN.keys())
def test_what_the_libraries_take_and_cannot_be_is_refused(edited, file, change, family):
    refused(edited(file, change, family), "cannot be (loaded|built)")


SCALES = {
    "nothing": ({"scaling_factor": 0}, "sd1"),
    "none": ({"scaling_factor": None}, "sdxl"),
    "no number": ({"scaling_factor": float("nan")}, "sd1"),
    "a mirror": ({"scaling_factor": -0.18}, "sd3"),
    "a channel that does not vary": ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 0.0, 1.0, 1.0]}, "sdxl"),
    "a mean that is none": ({"latents_mean": [float("inf")] * 4, "latents_std": [1.0] * 4}, "sdxl"),
}


@pytest.mark.parametrize(("change", "family"), SCALES.values(), ids=SCALES.keys())
def test_a_vae_without_a_scale_is_refused(edited, change, family):
    """It would be trained on zeros, or on latents of another size than stock pipelines decode."""
    refused(edited("vae/config.json", change, family), f"the VAE has {next(iter(change))}.*expected .* above 0")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer_config.json", b'{"model_max_length": 16, "pad_token": null}', "has no pad_token; put one into its"),
        ("merges.txt", b"\xff\xfe\0", "cannot be loaded"),
    ],
)
def test_a_tokenizer_that_cannot_be_used(teacher_folders, tmp_path, file, content, said):
    folder = shutil.copytree(teacher_folders["sd1"], tmp_path / "teacher")
    load_backbone(folder).pipeline.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / file).write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_backbone(folder)


def test_a_t5_tokenizer_of_a_sentencepiece_file_alone(teacher_folders, tmp_path):
    """As PixArt's and Chroma's published folders have it."""
    folder = shutil.copytree(teacher_folders["pixart"], tmp_path / "teacher") / "tokenizer"
    shutil.rmtree(folder)
    folder.mkdir()
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    lines = iter(["a cat", "a dog", "the quick brown fox jumps over a lazy dog"])
    SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(folder / "spiece"), vocab_size=30, hard_vocab_limit=False, **ids
    )
    (folder / "spiece.vocab").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    cat, dog = load_backbone(folder.parent).encode_prompts(["a cat", "a dog"])["text"]
    assert not torch.equal(cat, dog)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_are_quantised_already(edited, part):
    """bitsandbytes would read them, and no student could be saved."""
    quantised = {"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}
    refused(edited(f"{part}/config.json", quantised), f"has a quantised {part}; give the plain weights")


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"[" * 100_000])
def test_the_config_of_another_vae_is_no_json(teacher_folders, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json .*(not valid JSON|holds no JSON object).*; copy or download it"):
        skeleton(TeacherSource(teacher=str(teacher_folders["sd1"]), vae=str(tmp_path)))


@pytest.mark.parametrize("parts", [("unet",), ("unet", "vae", "text_encoder")])
def test_weights_of_a_variant_alone_are_taken(teacher_folders, tmp_path, parts):
    folder = shutil.copytree(teacher_folders["sd1"], tmp_path / "teacher")
    for part in parts:
        (file,) = (folder / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    ours, theirs = (load_backbone(place).network.state_dict() for place in (folder, teacher_folders["sd1"]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", ["model.safetensors", "models/model.safetensors"])
def test_a_file_that_is_no_checkpoint(name, tmp_path, monkeypatch):
    """The hub is not asked for a name that stands for a file here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scott.teachers.layout.hf_hub_download", None)
    (tmp_path / "models").mkdir()
    (tmp_path / name).write_bytes(b"weights")
    refused(name, "cannot be read")
