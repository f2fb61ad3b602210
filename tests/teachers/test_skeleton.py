"""A skeleton is the loaded backbone but for the weights: same tensors in shape and dtype, same conditions."""

import json
import shutil

import pytest
import torch
from tests.teachers.published import NAMES, write_configs
from torch import nn

from scott.errors import UserError
from scott.teachers import layout, load_backbone
from scott.teachers.skeleton import skeleton

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

PARAMETERS = {
    # the network's and its text encoders', as published: SD1.5's in diffusers' `num_parameters`, the others in the
    # sizes of the hub's weight files (SD3's network is "2 B", PixArt's "0.6 B", T5-XXL's encoder 4.76 B)
    "sd15": (859_520_964, 123_060_480),
    "sd21": (865_910_724, 340_387_840),
    "sdxl": (2_567_463_684, 817_720_320),
    "pixart": (610_856_096, 4_762_310_656),
    "pixart-1024": (611_349_152, 4_762_310_656),  # fed the picture's size and shape besides
    "sd3": (2_028_328_000, 123_650_304 + 694_659_840 + 4_762_310_656),
    # these as their model pages say: "2.2 B", "8.1 B", "12 B", "8.9 B", "4 B", "20 B", "6 B", "1.6 B"
    "sd35-medium": (2_243_171_520, 123_650_304 + 694_659_840 + 4_762_310_656),
    "sd35-large": (8_056_627_520, 123_650_304 + 694_659_840 + 4_762_310_656),
    "flux": (11_901_408_320, 123_060_480 + 4_762_310_656),
    "chroma": (8_899_983_424, 4_762_310_656),
    "flux2-klein": (3_875_544_576, 4_022_468_096),
    "qwen-image": (20_430_401_088, 8_292_166_656),
    "z-image": (6_154_908_736, 4_022_468_096),
    "sana": (1_604_462_752, 2_614_341_888),
}
VAES = dict.fromkeys(("sd3", "sd35-medium", "sd35-large", "flux", "chroma", "z-image"), 83_819_683)
VAES |= {"flux2-klein": 84_046_115, "qwen-image": 126_892_531, "sana": 312_250_275}
SD_VAE = 83_653_863


@pytest.fixture
def configs_only(teacher_folders, family, tmp_path):
    """A family's tiny pipeline, and a copy of its folder that holds nothing but config files."""
    whole = teacher_folders[family]
    keep = ("config.json", "model_index.json", "scheduler_config.json")
    shutil.copytree(whole, tmp_path / "configs", copy_function=lambda a, b: a.endswith(keep) and shutil.copy(a, b))
    assert not list((tmp_path / "configs").rglob("*.safetensors"))
    assert not list((tmp_path / "configs").rglob("tokenizer.json"))
    return whole, tmp_path / "configs"


def tensors(backbone):
    """(part, name) → (shape, dtype) of everything a pipeline holds."""
    modules = {name: part for name, part in backbone.pipeline.components.items() if isinstance(part, nn.Module)}
    return {
        (part, name): (tuple(tensor.shape), tensor.dtype)
        for part, module in modules.items()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_has_the_loaded_ones_tensors(configs_only, dtype):
    whole, configs = configs_only
    loaded, made = load_backbone(whole, dtype), skeleton(configs, dtype)
    assert tensors(made) == tensors(loaded)
    modules = [part for part in made.pipeline.components.values() if isinstance(part, nn.Module)]
    assert {t.device.type for m in modules for t in [*m.parameters(), *m.buffers()]} == {"meta"}
    assert type(made) is type(loaded)
    assert type(made.pipeline) is type(loaded.pipeline)
    assert made.pipeline.components.keys() == loaded.pipeline.components.keys()
    for name in ("schedule", "prediction", "latent_shape", "resolution", "original_inference_steps"):
        assert getattr(made, name) == getattr(loaded, name), name


def test_its_conditions_have_the_loaded_ones_shapes(configs_only):
    whole, configs = configs_only

    def shapes(cond):
        return {name: (value.shape, value.dtype) for name, value in cond.items()}

    loaded, made = load_backbone(whole), skeleton(configs)
    assert shapes(made.unconditional()) == shapes(loaded.unconditional())
    assert shapes(made.encode_prompts(["a", "b"])) == shapes(loaded.encode_prompts(["a", "b"]))


@pytest.mark.parametrize("name", NAMES)
def test_the_published_configs_give_the_published_sizes(name, tmp_path):
    backbone = skeleton(write_configs(name, tmp_path))
    encoders = [part for key, part in backbone.pipeline.components.items() if key.startswith("text_encoder")]
    sizes = backbone.network.num_parameters(), sum(encoder.num_parameters() for encoder in encoders)
    assert sizes == PARAMETERS[name]
    assert backbone.vae.num_parameters() == VAES.get(name, SD_VAE)
    assert backbone.resolution == {"sd15": 512, "sd21": 768, "pixart": 512}.get(name, 1024)


def test_a_hub_teacher_costs_its_config_files_alone(monkeypatch, tmp_path):
    folder, asked = write_configs("sd3", tmp_path), []

    def download(teacher, name):
        asked.append(name)
        return str(folder / name)

    monkeypatch.setattr(layout, "hf_hub_download", download)
    assert skeleton("stabilityai/stable-diffusion-3-medium-diffusers").network.num_parameters() == 2_028_328_000
    assert sorted(asked) == sorted(str(file.relative_to(folder)) for file in folder.rglob("*.json"))


def test_a_pixart_folder_loads_under_the_class_name_it_was_published_with(teacher_folders, tmp_path):
    folder = shutil.copytree(teacher_folders["pixart"], tmp_path / "teacher")
    for file, key in (("model_index.json", "transformer"), ("transformer/config.json", "_class_name")):
        config = json.loads((folder / file).read_text())
        config[key] = ["diffusers", "Transformer2DModel"] if key == "transformer" else "Transformer2DModel"
        (folder / file).write_text(json.dumps(config))
    state, renamed = (load_backbone(f).network.state_dict() for f in (teacher_folders["pixart"], folder))
    assert state.keys() == renamed.keys()
    assert all(torch.equal(value, renamed[key]) for key, value in state.items())
    assert tensors(skeleton(folder)) == tensors(load_backbone(folder))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("unet/config.json", None, "has no unet/config.json"),
        ("unet/config.json", "{", "not valid JSON"),
        ("vae/config.json", '{"block_out_channels": "many"}', "cannot be built"),
        ("model_index.json", '{"_class_name": "FluxPipeline"}', "is a FluxPipeline with no network"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, file, text, said):
    folder = write_configs("sd15", tmp_path / "teacher")
    (folder / file).unlink()
    if text:
        (folder / file).write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        skeleton(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(str(folder)) == 1


@pytest.mark.parametrize(
    ("name", "file", "changes"),
    [
        ("flux", "transformer/config.json", {"guidance_embeds": False}),
        ("flux2-klein", "model_index.json", {"is_distilled": True}),
    ],
)
def test_few_step_editions_are_refused_by_their_configs(name, file, changes, tmp_path):
    """FLUX.1-schnell and the distilled FLUX.2 [klein]."""
    file = write_configs(name, tmp_path) / file
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=r"schnell|few-step student already"):
        skeleton(tmp_path)
