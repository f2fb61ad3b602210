"""What is wrong with a teacher's folder, said in one line."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from scott.diffusion import DiscreteSchedule, FlowSchedule
from scott.errors import UserError
from scott.mini import embedded
from scott.teachers import load_backbone
from scott.teachers.pixart import PixArtBackbone
from scott.teachers.sd import UNetBackbone
from scott.teachers.sd3 import SD3Backbone
from scott.teachers.sdxl import SDXLBackbone


@pytest.fixture
def folder(teacher_folders, tmp_path):
    return shutil.copytree(teacher_folders["sd1"], tmp_path / "teacher")


@pytest.fixture
def folder_of(teacher_folders, tmp_path):
    """`folder_of(family)`: a copy of its pipeline to do harm to."""
    return lambda family: shutil.copytree(teacher_folders[family], tmp_path / family)


def complaint(teacher):
    with pytest.raises(UserError) as caught:
        load_backbone(teacher)
    message = str(caught.value)
    assert "\n" not in message
    assert str(teacher) in message
    return message


def weights(folder, part):
    return next((folder / part).glob("*.safetensors"))


def test_a_whole_folder_loads_from_a_path_and_a_string(folder):
    assert load_backbone(folder).latent_shape == load_backbone(str(folder)).latent_shape == (4, 8, 8)


def test_missing_folder(tmp_path):
    assert "no teacher at" in complaint(tmp_path / "nowhere")
    assert "no teacher at" in complaint("nowhere")


def test_an_embedded_teacher_that_is_not_there(tmp_path, monkeypatch):
    """Installing scott again brings only its own back."""
    with pytest.raises(UserError, match=r"no embedded teacher at .*; name a folder that experiments\.embedded"):
        embedded.load_teacher(tmp_path / "mine")
    monkeypatch.setattr(embedded, "TEACHER", tmp_path / "shipped")
    with pytest.raises(UserError, match=r"no embedded teacher at .*; reinstall scott"):
        embedded.load_teacher(tmp_path / "shipped")


def test_a_hub_id_that_is_nowhere():
    assert "no folder nobody/nothing" in complaint("nobody/nothing")


@pytest.mark.parametrize("name", ["notes.txt", "model.bin", "model"])
def test_a_file_that_is_there_is_not_asked_for_at_the_hub(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"what is no model")
    monkeypatch.chdir(tmp_path)
    for place in (name, tmp_path / name):
        assert "is a file; expected a diffusers pipeline folder" in complaint(place)


def test_not_a_pipeline(tmp_path):
    assert "has no model_index.json" in complaint(tmp_path)


@pytest.mark.parametrize("text", ["{", "", "[]", '"unet"', "null", '{"unet": 3}'])
def test_corrupt_index(folder, text):
    (folder / "model_index.json").write_text(text)
    complaint(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_truncated_weights(folder, part):
    file = weights(folder, part)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "cannot be loaded" in complaint(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("harm", ["some are left out", "all have another prefix"])
def test_weights_that_would_stay_random(folder, part, harm):
    file = weights(folder, part)
    tensors = load_file(file)
    if harm == "some are left out":
        kept = dict(sorted(tensors.items())[3:])
    else:
        kept = {f"module.{name}": value for name, value in tensors.items()}
    save_file(kept, file, metadata={"format": "pt"})
    assert f"the files of {part} lack" in complaint(folder)


@pytest.mark.parametrize(
    ("family", "part"), [("sd3", "text_encoder_3"), ("sd3", "transformer"), ("pixart", "text_encoder")]
)
def test_random_weights_of_other_families(folder_of, family, part):
    folder = folder_of(family)
    file = weights(folder, part)
    save_file(dict(sorted(load_file(file).items())[2:]), file, metadata={"format": "pt"})
    assert f"the files of {part} lack" in complaint(folder)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("model_index.json", {"vae": 3}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "many"}),
        ("unet/config.json", {"in_channels": 9}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_say_what_cannot_be(folder, file, change):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    complaint(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_weights(folder, part):
    weights(folder, part).unlink()
    assert "cannot be loaded" in complaint(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_missing_part(folder, part):
    shutil.rmtree(folder / part)
    assert "cannot be loaded" in complaint(folder)


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"])
def test_corrupt_config(folder, file):
    (folder / file).write_text("{")
    assert "cannot be loaded" in complaint(folder)


# --- families ------------------------------------------------------------------------------------------------

KINDS = {
    "sd1": (UNetBackbone, "epsilon", (4, 8, 8), 64),
    "sd2": (UNetBackbone, "v_prediction", (4, 8, 8), 64),
    "sdxl": (SDXLBackbone, "epsilon", (4, 8, 8), 64),
    "pixart": (PixArtBackbone, "epsilon", (4, 32, 32), 256),
    "sd3": (SD3Backbone, "flow", (4, 8, 8), 64),
}


def test_a_folder_of_each_family_is_recognised(teacher_folders, family):
    backbone = load_backbone(teacher_folders[family])
    found = (type(backbone), backbone.prediction, backbone.latent_shape, backbone.resolution)
    assert found == KINDS[family]
    if family == "sd3":
        assert backbone.schedule == FlowSchedule(3.0)
    else:
        assert isinstance(backbone.schedule, DiscreteSchedule)
        assert backbone.schedule.prediction_type == backbone.prediction
    assert backbone.original_inference_steps is None
    assert backbone.takes_guidance == (family in ("sd1", "sd2", "sdxl"))


def edit_index(folder, change):
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def test_pixart_sigma_takes_longer_prompts_than_alpha(folder_of):
    folder = folder_of("pixart")
    assert load_backbone(folder).encode_prompts(["a"])["text"].shape[1] == 120
    edit_index(folder, {"_class_name": "PixArtSigmaPipeline"})
    assert load_backbone(folder).encode_prompts(["a"])["text"].shape[1] == 300


def test_a_safety_checker_is_not_read(folder):
    edit_index(folder, {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]})
    edit_index(folder, {"requires_safety_checker": True})
    assert load_backbone(folder).pipeline.safety_checker is None


def test_sd3_does_without_its_t5(folder_of):
    folder = folder_of("sd3")
    edit_index(folder, {"text_encoder_3": [None, None], "tokenizer_3": [None, None]})
    backbone = load_backbone(folder)
    assert backbone.encode_prompts(["a cat"])["text"].shape[-1] == 64
    with pytest.raises(UserError, match="got a prompt of 15 tokens, expected at most 14"):
        backbone.encode_prompts(["b " * 15])


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("sdxl", "tokenizer_2"),
        ("sdxl", "text_encoder_2"),
        ("sdxl", "unet"),
        ("sd3", "tokenizer_2"),
        ("sd3", "tokenizer_3"),
        ("sd3", "text_encoder_2"),
        ("sd3", "text_encoder_3"),
        ("sd3", "transformer"),
        ("pixart", "tokenizer"),
        ("pixart", "text_encoder"),
        ("pixart", "transformer"),
    ],
)
def test_a_part_that_is_missing_or_cut_off(folder_of, family, part):
    folder = folder_of(family)
    file = folder / part / "tokenizer.json" if "tokenizer" in part else weights(folder, part)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert "cannot be loaded" in complaint(folder)
    file.unlink()
    assert "cannot be loaded" in complaint(folder)
    shutil.rmtree(folder / part)
    assert "cannot be loaded" in complaint(folder)
    edit_index(folder, {part: [None, None]})
    if part == "text_encoder_3":
        load_backbone(folder)
    else:
        assert ("no network" if part in ("unet", "transformer") else f"it has no {part}") in complaint(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "LuminaPipeline", "unet": ["diffusers", "LuminaNextDiT2DModel"]}, "a LuminaPipeline with L"),
        ({"unet": ["diffusers", "KandinskyNet"]}, "is a StableDiffusionPipeline with KandinskyNet"),
        ({"unet": None, "transformer": ["diffusers", "SD3Transformer2DModel"]}, "SD3Transformer2DModel"),
        ({"unet": [None, None]}, "is a StableDiffusionPipeline with no network"),
        ({"_class_name": None}, "is a None with UNet2DConditionModel"),
    ],
)
def test_an_unknown_family_is_named_with_the_known_ones(folder, change, said):
    edit_index(folder, change)
    message = complaint(folder)
    assert said in message
    for pipeline, network in (
        ("StableDiffusionPipeline", "UNet2DConditionModel"),
        ("StableDiffusionXLPipeline", "UNet2DConditionModel"),
        ("PixArtAlphaPipeline", "PixArtTransformer2DModel"),
        ("PixArtSigmaPipeline", "PixArtTransformer2DModel"),
        ("StableDiffusion3Pipeline", "SD3Transformer2DModel"),
    ):
        assert f"{pipeline} with {network}" in message


def test_a_pipeline_of_another_family_than_its_parts(folder):
    """SD1 under SDXL's name: its second text encoder is missing."""
    edit_index(folder, {"_class_name": "StableDiffusionXLPipeline"})
    assert "it has no tokenizer_2 and no text_encoder_2" in complaint(folder)
