"""A LoRA file is the student on the original teacher, for readers that are not ours, and never silently nothing."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_unet_state_dict_to_peft
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scott.errors import UserError
from scott.export import lora
from scott.export.lora import FORMS, apply_lora, lora_form, save_lora, write_lora
from scott.export.pipeline import call_options
from scott.export.trained import difference, draw_latents, few_step_scheduler
from scott.samplers import StudentSampler
from scott.teachers.lora import lora_targets
from scott.teachers.sd import UNetBackbone

FAMILIES = {"sd1": "diffusers", "sd2": "diffusers", "sdxl": "diffusers", "pixart": "peft", "sd3": "diffusers"}
KOHYA = ("sd1", "sd2", "sdxl")
CONFIGS = Path(__file__).parents[1] / "teachers" / "configs"
"""The config files of published pipelines."""


def drawn(trained):
    backbone = trained.backbone
    return StudentSampler(backbone, backbone.target, trained.grid, 2, 4.0).latents(["a dog"], 3)


def stock(trained, load=lambda pipe: None):
    """What the original teacher draws in 2 steps under the few-step scheduler, once `load` has been at it."""
    pipe = DiffusionPipeline.from_pretrained(trained.config.teacher)
    pipe.scheduler = few_step_scheduler(trained.backbone, trained.grid)
    load(pipe)
    pipe.set_progress_bar_config(disable=True)
    options = call_options(type(pipe).__name__)
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "generator": torch.manual_seed(3)}
    return pipe("a dog", output_type="latent", **call, **options).images


@pytest.mark.parametrize(
    ("family", "variant"),
    [*((family, "lora") for family in FAMILIES), ("sd1", "rslora"), ("sd1", "dora"), ("pixart", "dora")],
)
def test_the_file_makes_the_original_teacher_the_student(make_trained, tmp_path, family, variant):
    trained = make_trained(family, variant=variant)
    form = lora_form(trained, kohya=False)
    assert form == FAMILIES[family]
    write_lora(trained, tmp_path, form)

    def load(pipe):
        if form == "peft":
            pipe.transformer = PeftModel.from_pretrained(pipe.transformer, tmp_path)
        else:
            pipe.load_lora_weights(tmp_path, weight_name=FORMS[form].file)

    expected = drawn(trained)
    assert difference(expected, stock(trained, load)) < 1e-4
    assert difference(expected, stock(trained)) > 0.01, "the LoRA has to matter"


@pytest.mark.parametrize("family", KOHYA)
def test_the_kohya_file_converts_back(make_trained, tmp_path, family):
    trained = make_trained(family)
    for form in ("diffusers", "kohya"):
        (tmp_path / form).mkdir()
        write_lora(trained, tmp_path / form, form)
    file = tmp_path / "kohya" / FORMS["kohya"].file
    tensors = load_file(file)
    assert {key.split(".", 1)[1] for key in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert all(key.startswith("lora_unet_") for key in tensors)
    assert {value.item() for key, value in tensors.items() if key.endswith(".alpha")} == {8.0}
    pipeline = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    back, alphas = pipeline.lora_state_dict(dict(tensors))
    back = convert_unet_state_dict_to_peft({key.removeprefix("unet."): value for key, value in back.items()})
    original = load_file(tmp_path / "diffusers" / FORMS["diffusers"].file)
    original = {key.removeprefix("unet."): value for key, value in original.items()}
    assert back.keys() == original.keys()
    assert all(torch.equal(back[key], original[key]) for key in original)
    assert len(alphas) == len(original) / 2


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_kohya_names_of_the_published_networks_convert_back(name):
    config = json.loads((CONFIGS / f"{name}.json").read_text())["unet/config.json"]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    layers = lora_targets(unet, ("",), UNetBackbone.student_layers)
    names = [f"{layer}.lora_{part}.weight" for layer in layers for part in "AB"]
    tensors = {FORMS["kohya"].key("unet", name): torch.full((1, 1), index) for index, name in enumerate(names)}
    assert len(tensors) == 2 * len(layers) > 300
    back, _ = StableDiffusionXLPipeline.lora_state_dict(tensors)
    back = convert_unet_state_dict_to_peft(back)
    expected = {FORMS["diffusers"].key("unet", name): index for index, name in enumerate(names)}
    assert {key: value.item() for key, value in back.items()} == expected


def test_a_file_that_loads_as_nothing_is_refused(make_trained, tmp_path, monkeypatch):
    wrong = dataclasses.replace(FORMS["diffusers"], key=lambda part, name: f"model.{name}")
    monkeypatch.setitem(FORMS, "diffusers", wrong)
    with pytest.raises(UserError, match="changes 0 layers"):
        write_lora(make_trained(), tmp_path, "diffusers")


def test_a_file_without_alpha_is_refused(make_trained, tmp_path, monkeypatch):
    monkeypatch.setattr(lora, "save_file", lambda tensors, file, metadata: save_file(tensors, file, {"format": "pt"}))
    with pytest.raises(UserError, match="differs on layer"):
        write_lora(make_trained(), tmp_path, "diffusers")


def test_a_file_that_lacks_a_layer_is_refused(make_trained, tmp_path, monkeypatch):
    def save_most(tensors, file, metadata):
        save_file({key: tensors[key] for key in sorted(tensors)[2:]}, file, {"format": "pt"})

    monkeypatch.setattr(lora, "save_file", save_most)
    with pytest.raises(UserError, match=r"changes \d+ layers"):
        write_lora(make_trained(), tmp_path, "diffusers")


@pytest.mark.parametrize(("family", "form"), [("sdxl", "diffusers"), ("sdxl", "kohya"), ("pixart", "peft")])
@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
def test_scott_reads_its_own_file(make_trained, make_backbone, tmp_path, family, form, variant):
    trained = make_trained(family, variant=variant)
    if (form, variant) == ("kohya", "dora"):
        with pytest.raises(UserError, match="use --to lora"):
            lora_form(trained, kohya=True)
        return
    save_lora(trained, tmp_path, form)
    with safe_open(tmp_path / FORMS[form].file, "pt") as file:
        assert {"format", "scott"} <= file.metadata().keys()
    for path in (tmp_path, tmp_path / FORMS[form].file):
        backbone = make_backbone(family=family)
        assert apply_lora(backbone, path) == trained.info
        assert torch.equal(draw_latents(backbone, trained.grid, 4.0), trained.latents())


def test_a_lora_of_another_teacher_or_maker_is_refused(make_trained, make_backbone, tmp_path):
    save_lora(make_trained("sd1"), tmp_path, "diffusers")
    with pytest.raises(UserError, match="another kind of teacher"):
        apply_lora(make_backbone(family="sd3"), tmp_path)
    with pytest.raises(UserError, match="no LoRA file"):
        apply_lora(make_backbone(), tmp_path / "nowhere")
    foreign, broken = tmp_path / "foreign.safetensors", tmp_path / "broken.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    broken.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="was not written by"):
        apply_lora(make_backbone(), foreign)
    with pytest.raises(UserError, match="cannot be read"):
        apply_lora(make_backbone(), broken)


def test_a_transformer_has_no_kohya_form(make_trained):
    for family in ("pixart", "sd3"):
        with pytest.raises(UserError, match="use --to lora"):
            lora_form(make_trained(family), kohya=True)


# --- diffusers' own ways in and out --------------------------------------------------------------------------


def test_diffusers_saves_the_adapter_from_our_network_and_puts_one_of_its_own_there(
    make_trained, make_backbone, teacher_folders, perturb, tmp_path
):
    trained = make_trained()
    trained.backbone.network.save_lora_adapter(tmp_path / "ours", adapter_name="target")
    expected = drawn(trained)
    options = {"prefix": None, "use_safetensors": True}
    read = stock(trained, lambda pipe: pipe.unet.load_lora_adapter(str(tmp_path / "ours"), **options))
    assert difference(expected, read) < 1e-4

    # a LoRA that stock diffusers made, of another rank, beside the student's
    pipe = DiffusionPipeline.from_pretrained(teacher_folders["sd1"])
    targets = lora_targets(pipe.unet, ("",), ("to_q", "conv1"))
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=targets), "theirs")
    perturb({name: p for name, p in pipe.unet.named_parameters() if ".lora_" in name})
    pipe.unet.save_lora_adapter(tmp_path / "theirs", adapter_name="theirs")
    backbone = make_backbone("lora")
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([999, 3]), backbone.encode_prompts(["a cat", "dog"])["text"]
    with torch.no_grad():
        plain, expected = backbone.network(x, t, text).sample, pipe.unet(x, t, text).sample
        backbone.network.load_lora_adapter(str(tmp_path / "theirs"), adapter_name="theirs", **options)
        backbone.adapters.adopt()
        assert torch.equal(backbone.network(x, t, text).sample, plain)
        with backbone.adapters.use("theirs"):
            torch.testing.assert_close(backbone.network(x, t, text).sample, expected)
        with backbone.adapters.use("student"):
            assert torch.equal(backbone.network(x, t, text).sample, plain)
    assert (expected - plain).abs().max() > 0.01
