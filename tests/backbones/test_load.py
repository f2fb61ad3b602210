"""What is wrong with a teacher's folder, said in one line."""

import json
import shutil

import pytest

from scott.backbones import load_backbone
from scott.errors import UserError


@pytest.fixture
def folder(sd_folders, tmp_path):
    return shutil.copytree(sd_folders["epsilon"], tmp_path / "teacher")


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


def test_a_hub_id_that_is_nowhere():
    assert "no folder nobody/nothing" in complaint("nobody/nothing")


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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "is a StableDiffusionXLPipeline with UNet2DConditionModel"),
        ({"unet": ["diffusers", "KandinskyNet"]}, "is a StableDiffusionPipeline with KandinskyNet"),
        ({"unet": None, "transformer": ["diffusers", "SD3Transformer2DModel"]}, "SD3Transformer2DModel"),
        ({"unet": [None, None]}, "expected StableDiffusionPipeline with UNet2DConditionModel"),
    ],
)
def test_unknown_family(folder, change, said):
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert said in complaint(folder)
