"""A LoRA file is the student on the original teacher, for readers that are not ours, and never silently nothing."""

import copy
import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_unet_state_dict_to_peft
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.export.conftest import write
from tests.teachers.published import published as published_configs

from scott.app.models import Models
from scott.errors import UserError
from scott.export import lora
from scott.export.info import METADATA, STUDENT_INFO
from scott.export.kohya import kohya_keys
from scott.export.ldm import unet_names
from scott.export.lora import apply_lora, lora_file, lora_form, save_lora, warn_of_base
from scott.export.pipeline import call_options
from scott.export.snippet import pipeline_snippet
from scott.export.trained import difference, draw_latents, few_step_scheduler
from scott.measured import Measured
from scott.samplers import StudentSampler
from scott.targets import target_of
from scott.teacher_source import TeacherSource
from scott.teachers import load_backbone
from scott.teachers.lora import Adapters, lora_targets
from scott.teachers.sd import UNetBackbone
from scott.teachers.sdxl import SDXLBackbone

FAMILIES = {"sd1": "kohya", "sd2": "kohya", "sdxl": "kohya", "pixart": "peft", "sd3": "diffusers"}
SIDE = 64
"""In pixels, of what draws many by default."""
BASES = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


def drawn(trained):
    backbone = trained.backbone
    return StudentSampler(backbone, backbone.target, trained.grid, 2, 4.0).latents(["a dog"], 3)


def stock(trained, load=lambda pipe: None):
    """What the original teacher draws in 2 steps under the few-step scheduler, once `load` has been at it."""
    pipe = DiffusionPipeline.from_pretrained(trained.config.teacher)
    pipe.scheduler = few_step_scheduler(trained.backbone, trained.grid)
    load(pipe)
    pipe.set_progress_bar_config(disable=True)
    options, backbone = call_options(type(pipe).__name__), trained.backbone
    options |= {"height": SIDE, "width": SIDE} if backbone.packed else {}
    call = {"num_inference_steps": 2, "guidance_scale": trained.info.guidance_scale, "generator": torch.manual_seed(3)}
    return backbone.from_pipeline(pipe("a dog", output_type="latent", **call, **options).images)


@pytest.mark.parametrize(
    ("family", "variant"),
    [*((family, "lora") for family in FAMILIES), ("sd1", "rslora"), ("sd1", "dora"), ("pixart", "dora")],
)
def test_the_file_makes_the_original_teacher_the_student(make_trained, tmp_path, family, variant):
    trained = make_trained(family, variant=variant)
    form = lora_form(trained.backbone, variant, "lora")
    assert form == ("diffusers" if (family, variant) == ("sd1", "dora") else FAMILIES[family])
    write(trained, tmp_path, "lora")

    def load(pipe):
        if form == "peft":
            pipe.transformer = PeftModel.from_pretrained(pipe.transformer, tmp_path)
        else:
            pipe.load_lora_weights(tmp_path)

    expected = drawn(trained)
    assert difference(expected, stock(trained, load)) < 1e-4
    assert difference(expected, stock(trained)) > 0.01, "the LoRA has to matter"


@pytest.mark.parametrize("family", BASES)
def test_programs_can_tell_what_a_kohya_file_is_for(make_trained, tmp_path, family):
    trained = make_trained(family, variant="rslora")
    save_lora(trained, tmp_path, "kohya")
    file = tmp_path / "lora.safetensors"
    tensors = load_file(file)
    assert {key.split(".", 1)[1] for key in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert all(key.startswith("lora_unet_") for key in tensors)
    assert {value.item() for key, value in tensors.items() if key.endswith(".alpha")} == {16.0}, "s r of s = 8 / √4"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["ss_base_model_version"] == BASES[family]
    assert metadata["ss_v2"] == str(family == "sd2")
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "16")
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["modelspec.architecture"].startswith("stable-diffusion-xl" if family == "sdxl" else "stable-diff")
    assert metadata["modelspec.prediction_type"] == ("v" if family == "sd2" else "epsilon")
    assert "lora_adapter_metadata" not in metadata, "diffusers refuses a file that gives α twice"


def published(name):
    """The published U-Net of a config on the meta device, as a backbone, and the layers that a LoRA student adapts."""
    config = published_configs(name)["unet/config.json"]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    kind = SDXLBackbone if name == "sdxl" else UNetBackbone
    backbone = kind.__new__(kind)  # its class and its network are all that is asked
    backbone.network = unet
    return backbone, lora_targets(unet, ("",), UNetBackbone.student_layers)


@pytest.mark.parametrize(("name", "count"), [("sd15", 256), ("sd21", 256), ("sdxl", 771)])
def test_kohya_names_of_the_published_networks_convert_back(name, count):
    backbone, layers = published(name)
    assert len(layers) == count
    ends = ("lora_down.weight", "lora_up.weight")
    keys = kohya_keys(backbone, layers)
    names = [f"{keys[layer]}.{end}" for layer in layers for end in ends]
    tensors = {name: torch.full((1, 1), index) for index, name in enumerate(names)}
    assert len(tensors) == 2 * count
    place = "output_blocks_2_2_conv" if name == "sdxl" else "up_blocks_0_upsamplers_0_conv"
    assert f"lora_unet_{place}" in keys.values(), "which A1111 takes of SDXL by the original code's name alone"
    tensors |= {f"{key}.alpha": torch.tensor(1.0) for key in keys.values()}
    assert len(tensors) == 3 * count, "2,313 keys of SDXL, as sd-scripts counts them"
    back, alphas = StableDiffusionXLPipeline.lora_state_dict(tensors, unet_config=backbone.network.config)
    back = convert_unet_state_dict_to_peft(back)
    expected = [f"unet.{layer}.lora_{part}.weight" for layer in layers for part in "AB"]
    assert {key: value.item() for key, value in back.items()} == {key: index for index, key in enumerate(expected)}
    assert len(alphas) == count


def test_sgm_names_are_those_of_the_original_networks_lists():
    """A1111 and ComfyUI name a layer after its place in lists that the original code fills block by block."""
    backbone, layers = published("sdxl")
    unet, place = backbone.network, {}
    parts = {"conv1": "in_layers.2", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    entries = [[("input_blocks", None)]]  # conv_in
    for side, blocks in (("input_blocks", unet.down_blocks), ("output_blocks", unet.up_blocks)):
        entries = entries if side == "input_blocks" else []
        for block in blocks:
            attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
            entries += [[part for part in pair if part] for pair in zip(block.resnets, attentions, strict=True)]
            if side == "input_blocks":
                entries += [[sampler] for sampler in block.downsamplers or ()]
            else:
                entries[-1] += block.upsamplers or ()
        place |= {part: f"{side}.{n}.{k}" for n, entry in enumerate(entries) for k, part in enumerate(entry)}
    middle = unet.mid_block
    for n, part in enumerate((middle.resnets[0], middle.attentions[0], middle.resnets[1])):
        place[part] = f"middle_block.{n}"
    names = unet_names(unet, [f"{layer}.weight" for layer in layers])
    for layer in layers:
        owner, _, rest = re.fullmatch(r"(.+\.(\w+samplers|resnets|attentions)\.\d+)\.(.+)", layer).groups()
        rest = "op" if "downsamplers" in owner else parts.get(rest, rest)
        assert names[f"{layer}.weight"] == f"{place[unet.get_submodule(owner)]}.{rest}.weight"


FAULTS = {
    "as nothing": (lambda tensors: {f"model.{key}": value for key, value in tensors.items()}, "changes 0 layers"),
    "without alpha": (
        lambda tensors: {k: t for k, t in tensors.items() if not k.endswith("alpha")},
        "differs on layer",
    ),
    "a layer too few": (lambda tensors: {key: tensors[key] for key in sorted(tensors)[3:]}, r"changes \d+ layers"),
}


@pytest.mark.parametrize(("spoil", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_a_file_that_its_reader_takes_otherwise_is_refused(make_trained, tmp_path, monkeypatch, spoil, said):
    monkeypatch.setattr(lora, "save_file", lambda tensors, file, _: save_file(spoil(tensors), file, {"format": "pt"}))
    with pytest.raises(UserError, match=said):
        write(make_trained(), tmp_path, "lora")


@pytest.mark.parametrize("family", ["sd3", "pixart"])
def test_a_reader_who_skips_the_metadata_sees_the_same(make_trained, tmp_path, family):
    """α is not the rank here: folded into B, what is in the tensors alone is the update."""
    trained = make_trained(family, variant="rslora")
    form = save_lora(trained, tmp_path, "lora")
    tensors = load_file(tmp_path / lora_file("lora", form))
    for name, factors in trained.expected().updates.items():
        (a, b) = (
            next(t for key, t in tensors.items() if key.endswith(f"{name}.lora_{part}.weight")) for part in ("A", "B")
        )
        torch.testing.assert_close(b @ a, factors.product())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(make_trained, make_backbone, tmp_path, dtype):
    trained = make_trained("sdxl")
    write(trained, tmp_path, "lora", dtype)
    assert {value.dtype for value in load_file(tmp_path / "pytorch_lora_weights.safetensors").values()} == {dtype}
    backbone = make_backbone(family="sdxl")
    apply_lora(backbone, tmp_path)
    rounding = torch.finfo(dtype).eps
    for name, parameter in backbone.target_parameters().items():
        torch.testing.assert_close(parameter, trained.backbone.target_parameters()[name], atol=1e-7, rtol=rounding)


@pytest.mark.parametrize(("family", "kind"), [("sdxl", "lora"), ("sd1", "kohya"), ("pixart", "lora"), ("sd3", "lora")])
@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
def test_scott_reads_its_own_file(make_trained, make_backbone, tmp_path, family, kind, variant):
    trained = make_trained(family, variant=variant)
    if (kind, variant) == ("kohya", "dora"):
        with pytest.raises(UserError, match="use --to lora"):
            lora_form(trained.backbone, variant, kind)
        return
    form = save_lora(trained, tmp_path, kind)
    said = []
    for path in (tmp_path, tmp_path / lora_file(kind, form)):
        backbone = make_backbone(family=family)
        assert apply_lora(backbone, path, said.append) == trained.info
        assert difference(draw_latents(backbone, trained.grid, 4.0), trained.latents()) < 1e-5
    assert not said


def test_another_base_of_the_same_shapes_is_a_warning(make_trained, make_backbone, perturb, tmp_path):
    save_lora(make_trained("sd1"), tmp_path, "lora")
    said, other = [], make_backbone()
    other.network = copy.deepcopy(other.network)
    perturb(dict(other.network.named_parameters()))
    other.adapters = Adapters(other.network)
    apply_lora(other, tmp_path, said.append)
    assert len(said) == 1
    assert "was made for UNet2DConditionModel" in said[0]
    assert "a LoRA draws best on its own base" in said[0]
    assert "\n" not in said[0]


def test_scott_evaluate_warns_of_another_base_than_its_own(make_trained, teacher_folders, tmp_path):
    trained, said = make_trained("sd1"), []
    save_lora(trained, tmp_path, "lora")
    (file,) = tmp_path.glob("*.safetensors")
    given = str(teacher_folders["sd1"]), (2,), Measured(lora=str(file)), torch.float32
    target_of(*given, pytest.fail)
    base = {"class": "UNet2DConditionModel", "dtype": "float32", "sha256": "0", "half": "0", "signs": "0" * 64}
    of_another = replace(trained.info, base=base)
    save_file(load_file(file), file, {METADATA: of_another.to_json()})
    target_of(*given, said.append)
    assert "was made for UNet2DConditionModel 00000000, not for" in said[0]
    save_file(load_file(file), file)  # as of another program, beside what is said of ours
    (tmp_path / STUDENT_INFO).write_text(of_another.to_json())
    target_of(*given, pytest.fail)
    network = trained.backbone.network
    network.is_loaded_in_8bit = True
    warn_of_base(network, file, of_another, pytest.fail)


def test_a_lora_of_another_teacher_or_maker_is_refused(make_trained, make_backbone, tmp_path):
    save_lora(make_trained("sd1"), tmp_path, "lora")
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


ODD = {
    "a rank in words": ({"lora_rank": "x"}, {}, "does not say what its student is"),
    "another rank": ({"lora_rank": 3}, {}, "not of rank 3"),
    "a rank of billions": ({"lora_rank": 10**9}, {}, "not of rank 1000000000"),
    "times that are a list": ({"times": [1]}, {}, r"does not say what its student is \(times \[1\]\)"),
    "a base that is a list": ({"base": [1]}, {}, "does not say what its student is"),
    "a base without its class": ({"base": {"sha256": "x"}}, {}, "does not say its rank and its base"),
    "several α of a layer": ({}, {"alpha": torch.ones(3)}, "is not as it was written"),
    "an α that is not finite": ({}, {"alpha": torch.tensor(float("nan"))}, "or not finite; export it again"),
}


@pytest.mark.parametrize(("said", "tensors", "names"), ODD.values(), ids=ODD.keys())
def test_a_file_of_ours_that_was_changed_is_refused(make_trained, make_backbone, tmp_path, said, tensors, names):
    save_lora(make_trained("sd1"), tmp_path, "lora")
    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    metadata["scott"] = json.dumps(json.loads(metadata["scott"]) | said)
    whole = load_file(file)
    changed = {name: tensors.get(name.rpartition(".")[2], value) for name, value in whole.items()}
    save_file({name: value.clone() for name, value in changed.items()}, file, metadata)
    with pytest.raises(UserError, match=names):
        apply_lora(make_backbone(), tmp_path)


def test_a_transformer_has_no_kohya_form(make_trained):
    for family in ("pixart", "sd3"):
        with pytest.raises(UserError, match="use --to lora"):
            lora_form(make_trained(family).backbone, "lora", "kohya")


@pytest.mark.parametrize("family", ["sd1", "sd3", "flux"])
def test_scott_evaluate_and_scott_app_draw_it_at_its_own_times(
    make_trained, teacher_folders, tmp_path, monkeypatch, family
):
    """By the scheduler beside it, and at its own ω, as do the lines of diffusers that the page shows; a scheduler of
    its class that is named is made of that one."""
    monkeypatch.chdir(tmp_path)
    trained, folder = make_trained(family), tmp_path / "lora"
    folder.mkdir()
    form = save_lora(trained, folder, "lora")
    (folder / STUDENT_INFO).write_text(trained.info.to_json())
    (tmp_path / "config.json").write_text(trained.config.to_json())
    own = plain(few_step_scheduler(trained.backbone, trained.grid))
    for place in (tmp_path, folder, folder / lora_file("lora", form)):
        for scheduler in (None, trained.info.scheduler):
            given = Measured(lora=str(place), scheduler=scheduler)
            target = target_of(str(teacher_folders[family]), (2,), given, torch.float32, pytest.fail)
            (sampler,) = target.samplers.values()
            assert plain(sampler.pipeline.scheduler) == own
            assert sampler.guidance == trained.info.guidance_scale
        stock = Models([]).student(f"{teacher_folders[family]}+{place}")
        assert plain(stock.pipeline.scheduler) == own
        assert stock.is_few_step
        lines: dict[str, Any] = {}
        exec(pipeline_snippet(stock.pipeline, stock.name, stock.lora, prompt="a", steps=2, seed=3, guidance=1.0), lines)
        assert plain(lines["pipe"].scheduler) == own


def plain(scheduler):
    """Its class and its settings, without where they are from."""
    return type(scheduler), {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux", "chroma"])
@pytest.mark.parametrize("fused", [False, True], ids=["beside", "fused"])
def test_a_style_lora_beside_the_students(make_trained, style_lora, tmp_path, family, fused):
    """Both at once in diffusers are the student's LoRA on a teacher with the style merged in."""
    trained = make_trained(family)
    if trained.backbone.packed:
        trained.backbone.resize(SIDE)
    save_lora(trained, tmp_path, "lora")

    def load(pipe):
        pipe.load_lora_weights(tmp_path, adapter_name="speed")
        pipe.load_lora_weights(style_lora(family), adapter_name="style")
        pipe.set_adapters(["speed", "style"], [1.0, 0.5])
        if fused:
            pipe.fuse_lora(adapter_names=["speed", "style"])
            pipe.unload_lora_weights()

    got = stock(trained, load)
    styled = load_backbone(TeacherSource(teacher=trained.config.teacher, teacher_lora=(f"{style_lora(family)}:0.5",)))
    styled.resize(trained.backbone.resolution)
    said = []
    apply_lora(styled, tmp_path, said.append)
    assert difference(StudentSampler(styled, styled.target, trained.grid, 2, 4.0).latents(["a dog"], 3), got) < 1e-4
    assert difference(drawn(trained), got) > 1e-3, "the style has to matter"
    assert "a LoRA draws best on its own base" in said[0]


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
