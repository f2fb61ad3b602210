"""LoRA files of other programs: each layer is merged, at its own scale, or the file is refused."""

from dataclasses import replace
from itertools import cycle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from scott.commands.initial import check_start, initial_lora
from scott.errors import UserError
from scott.export.lora import foreign_factors
from scott.export.snippet import teacher_snippet
from scott.recipes.configs import mini
from scott.teacher_source import TeacherSource
from scott.teachers import load_backbone
from scott.teachers.lora_files import lora_path
from scott.teachers.skeleton import skeleton

NETWORK = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "conv1")
TEXT = ("q_proj", "out_proj", "fc1")
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


@pytest.fixture
def updates(make_backbone):
    """`updates(family, part, ends)`: layer → (A, B, α) of ranks 1, 2 and 4 and α of 1 and 3."""

    def make(family, part, ends):
        found = getattr(make_backbone(family=family).pipeline, part).named_modules()
        layers = [(name, m) for name, m in found if isinstance(m, nn.Linear | nn.Conv2d) and name.endswith(ends)]
        ranks, alphas, generator = cycle((1, 2, 4)), cycle((1.0, 3.0)), torch.Generator().manual_seed(0)
        made = {}
        for name, layer in layers:
            (out, width, *kernel), r = layer.weight.shape, next(ranks)
            a = torch.randn(r, width, *kernel, generator=generator).half()
            made[name] = a, torch.randn(out, r, *[1] * len(kernel), generator=generator).half(), next(alphas)
        return made

    return make


def kohya(part, layers):
    """As sd-scripts names and keeps it, in half precision."""
    tensors = {}
    for layer, (a, b, alpha) in layers.items():
        full = layer if part == "unet" or layer.startswith("text_model.") else f"text_model.{layer}"
        name = f"{KOHYA[part]}_{full.replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": torch.tensor(alpha)}
    return tensors


def dotted(part, layers, factors=("lora_A", "lora_B"), prefix=True):
    """In diffusers' names, with α beside."""
    tensors = {}
    for layer, (a, b, alpha) in layers.items():
        name = f"{part}.{layer}" if prefix else layer
        tensors |= {f"{name}.{factors[0]}.weight": a, f"{name}.{factors[1]}.weight": b}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def product(update):
    """α / r · B A."""
    a, b, alpha = update
    return (alpha / len(a) * b.float().flatten(1) @ a.float().flatten(1)).view(len(b), *a.shape[1:])


def check_merged(pipeline, plain, updates, scale):
    """That a pipeline's parts are `plain` ones and what `updates` adds to their layers."""
    for part, layers in updates.items():
        before = getattr(plain, part).state_dict()
        for name, value in getattr(pipeline, part).state_dict().items():
            layer = name.removesuffix(".weight")
            more = scale * product(layers[layer]) if layer in layers else 0
            torch.testing.assert_close(value, before[name] + more, atol=1e-5, rtol=1e-4, msg=f"{part}.{name}")


def program(backbone, given):
    """Python that makes a teacher's pipeline, without its call."""
    return teacher_snippet(given, backbone, prompt="a cat", steps=2, seed=0, guidance=4.0).split("image = pipe(")[0]


def ran(backbone, given):
    exec(program(backbone, given), made := {})
    return made


def source(teacher_folders, family, *loras):
    return TeacherSource(teacher=str(teacher_folders[family]), teacher_lora=tuple(map(str, loras)))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_each_layer_is_merged_at_its_own_scale(teacher_folders, make_backbone, updates, tmp_path, family):
    """In the program that makes it, and as a start too: diffusers finds no α of attention in kohya's names."""
    parts = ["unet", "text_encoder", *(["text_encoder_2"] if family == "sdxl" else [])]
    made = {part: updates(family, part, NETWORK if part == "unet" else TEXT) for part in parts}
    assert {name.split(".")[0] for name in made["unet"]} >= {"mid_block", "down_blocks", "up_blocks"}
    file, plain = tmp_path / "style.safetensors", make_backbone(family=family)
    save_file({k: v for part, layers in made.items() for k, v in kohya(part, layers).items()}, file)
    given = source(teacher_folders, family, f"{file}:0.5")
    merged = load_backbone(given)
    check_merged(merged.pipeline, plain.pipeline, made, 0.5)

    for layer, factors in foreign_factors(make_backbone(family=family), file).items():
        torch.testing.assert_close(factors.product(), product(made["unet"][layer]).flatten(1), atol=1e-5, rtol=1e-4)

    check_merged(ran(merged, given)["pipe"], plain.pipeline, made, 0.5)


def test_one_alpha_beside_several_ranks_is_left_to_diffusers(teacher_folders, make_backbone, updates, tmp_path):
    made = {"unet": {name: (a, b, 3.0) for name, (a, b, _) in updates("sd1", "unet", NETWORK).items()}}
    save_file(kohya("unet", made["unet"]), tmp_path / "style.safetensors")
    given = source(teacher_folders, "sd1", tmp_path / "style.safetensors")
    merged = load_backbone(given)
    check_merged(merged.pipeline, make_backbone().pipeline, made, 1)
    assert f'pipe.load_lora_weights("{tmp_path / "style.safetensors"}")' in program(merged, given)


@pytest.mark.parametrize(
    ("family", "form"),
    [
        *[("sd1", {}), ("sd1", {"factors": ("lora.down", "lora.up")}), ("sd1", {"prefix": False}), ("sd3", {})],
        *[(family, {"factors": ("lora_down", "lora_up")}) for family in ("flux", "chroma")],
    ],
    ids=str,
)
def test_an_alpha_beside_diffusers_names_counts(teacher_folders, make_backbone, updates, tmp_path, family, form):
    part = "unet" if family == "sd1" else "transformer"
    made = {part: updates(family, part, ("to_q", "to_v"))}
    save_file(dotted(part, made[part], **form), tmp_path / "style.safetensors")
    merged = load_backbone(source(teacher_folders, family, tmp_path / "style.safetensors"))
    check_merged(merged.pipeline, make_backbone(family=family).pipeline, made, 1)


@pytest.fixture
def of_flux(updates, tmp_path):
    """A FLUX LoRA with a text encoder's part."""
    made = {
        "transformer": updates("flux", "transformer", ("to_q",)),
        "text_encoder": updates("flux", "text_encoder", TEXT),
    }
    text = {f"text_model.{layer}": update for layer, update in made["text_encoder"].items()}
    file = tmp_path / "style.safetensors"
    save_file(dotted("transformer", made["transformer"]) | dotted("text_encoder", text), file)
    return file, made


def test_flux_has_its_text_encoders_part_merged(teacher_folders, make_backbone, of_flux):
    file, made = of_flux
    given = source(teacher_folders, "flux", f"{file}:0.5")
    merged, plain = load_backbone(given), make_backbone(family="flux").pipeline
    check_merged(merged.pipeline, plain, made, 0.5)
    check_merged(ran(merged, given)["pipe"], plain, made, 0.5)


@pytest.mark.parametrize("loads", [load_backbone, skeleton])
def test_layers_that_diffusers_would_drop_are_refused(teacher_folders, make_backbone, updates, tmp_path, loads):
    def refused(family, tensors, said):
        save_file(tensors, tmp_path / "style.safetensors")
        with pytest.raises(UserError, match=said):
            loads(source(teacher_folders, family, tmp_path / "style.safetensors"))

    network = kohya("unet", updates("sdxl", "unet", ("to_q",)))
    text = kohya("text_encoder", updates("sdxl", "text_encoder", ("q_proj", "fc1")))
    refused("sdxl", network | text, "names 4 layers of text encoders, and diffusers reads 2 of them; give a LoRA")
    zero = {name: 0 * value if "q_proj.lora_up" in name else value for name, value in text.items()}
    save_file(network | zero, tmp_path / "style.safetensors")
    loads(source(teacher_folders, "sdxl", tmp_path / "style.safetensors"))
    t5 = {f"lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_{n}.weight": torch.ones(2, 2) for n in ("down", "up")}
    layer = updates("flux", "transformer", ("to_q",))
    refused("flux", dotted("transformer", layer) | t5, "names 1 layers of text encoders, and diffusers reads 0 of them")


@pytest.mark.parametrize(
    ("end", "said"),
    [("dora_scale", "is a DoRA of kohya's, which is not read"), ("lora_mid.weight", "is a LoCon of three")],
)
def test_other_kinds_in_kohyas_names_are_refused(teacher_folders, make_backbone, updates, tmp_path, end, said):
    tensors = kohya("unet", updates("sd1", "unet", ("to_q",)))
    tensors |= {name.replace("alpha", end): torch.ones(4, 1) for name in tensors if name.endswith("alpha")}
    save_file(tensors, tmp_path / "style.safetensors")
    for loads in (load_backbone, skeleton):
        with pytest.raises(UserError, match=said):
            loads(source(teacher_folders, "sd1", tmp_path / "style.safetensors"))
    config = mini(train="lora", teacher=str(teacher_folders["sd1"]), init=str(tmp_path / "style.safetensors"))
    config = replace(config, out=tmp_path / "new")
    with pytest.raises(UserError, match=said) as raised:
        check_start(make_backbone(), config)
    assert "--teacher-lora" not in str(raised.value)


@pytest.mark.parametrize("end", ["diff_b", "diff", "set_weight"])
def test_biases_and_norms_that_diffusers_would_drop_are_refused(teacher_folders, make_backbone, tmp_path, end):
    """But where they change nothing, as in many files."""
    layer, name = "transformer_blocks.0.attn.to_out.0", "lora_unet_double_blocks_0_img_attn_proj"
    plain = make_backbone(family="flux").network
    (out, width), file = plain.get_submodule(layer).weight.shape, tmp_path / "style.safetensors"
    a, b = torch.randn(2, width), torch.randn(out, 2)
    factors = {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": torch.tensor(2.0)}
    save_file(factors | {f"{name}.{end}": torch.ones(out)}, file)
    with pytest.raises(UserError, match=f"has {name}.{end}, which is no product of factors and is not read; give"):
        load_backbone(source(teacher_folders, "flux", file))
    save_file(factors | ({f"{name}.diff_b": torch.zeros(out)} if end == "diff_b" else {}), file)
    merged = load_backbone(source(teacher_folders, "flux", file)).network
    torch.testing.assert_close(merged.get_submodule(layer).weight, plain.get_submodule(layer).weight + b @ a)


def test_layers_in_the_names_of_two_programs_are_refused(teacher_folders, updates, tmp_path):
    layers = updates("flux", "transformer", ("to_q",))
    tensors = dotted("transformer", layers, ("lora_down", "lora_up"))
    tensors |= {
        f"lora_unet_double_blocks_0_img_attn_proj.lora_{end}.weight": torch.ones(2, 2) for end in ("down", "up")
    }
    save_file(tensors, tmp_path / "style.safetensors")
    for loads in (load_backbone, skeleton):
        with pytest.raises(UserError, match=r"names layers as transformer\.… and as lora_unet_…, of which diffusers"):
            loads(source(teacher_folders, "flux", tmp_path / "style.safetensors"))


def test_a_name_of_the_adapter_in_the_tensors_names_is_passed_over(teacher_folders, make_backbone, updates, tmp_path):
    made = updates("qwen-image", "transformer", ("to_q",))
    tensors = {}
    for layer, (a, b, _) in made.items():
        tensors |= {f"{layer}.lora_A.default.weight": a, f"{layer}.lora_B.default.weight": b}
    save_file(tensors, tmp_path / "style.safetensors")
    merged = load_backbone(source(teacher_folders, "qwen-image", tmp_path / "style.safetensors"))
    made = {layer: (a, b, float(len(a))) for layer, (a, b, _) in made.items()}
    check_merged(merged.pipeline, make_backbone(family="qwen-image").pipeline, {"transformer": made}, 1)


def test_biases_beside_pefts_factors_are_merged_and_no_start(teacher_folders, make_backbone, tmp_path):
    layer = "transformer_blocks.0.attn.to_out.0"
    plain = make_backbone(family="flux").network
    adapted = get_peft_model(
        make_backbone(family="flux").network, LoraConfig(r=2, lora_alpha=2, target_modules=[layer], lora_bias=True)
    )
    factors = {name: parameter for name, parameter in adapted.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for parameter in factors.values():
            parameter.normal_()
    adapted.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    merged = load_backbone(source(teacher_folders, "flux", file)).network.get_submodule(layer)
    (bias,) = (value for name, value in factors.items() if name.endswith("bias"))
    torch.testing.assert_close(merged.bias, plain.get_submodule(layer).bias + bias)
    config = mini(train="lora", teacher=str(teacher_folders["flux"]), init=str(file), lora_rank=4)
    with pytest.raises(UserError, match="has biases beside B, which a student has not; merge it by --teacher-lora"):
        check_start(make_backbone(family="flux"), replace(config, out=tmp_path / "new"))


def test_a_start_leaves_the_text_encoders_part_out_and_says_so(make_backbone, of_flux, teacher_folders, tmp_path):
    file, made = of_flux
    config = mini(train="lora", teacher=str(teacher_folders["flux"]), init=str(file), lora_rank=4)
    said, config = [], replace(config, out=tmp_path / "new")
    lora = initial_lora(make_backbone(family="flux"), config, said.append)
    assert len(lora) == 2 * len(made["transformer"])
    assert any(f"has {len(made['text_encoder'])} layers of text encoders" in line for line in said)


def test_peft_names_of_flux_2s_own_code_are_diffusers_to_read(teacher_folders, make_backbone, tmp_path):
    layer = "transformer_blocks.0.attn.to_out.0"
    plain = make_backbone(family="flux2-klein").network
    (out, width), name = plain.get_submodule(layer).weight.shape, "base_model.model.double_blocks.0.img_attn.proj"
    a, b = torch.randn(2, width), torch.randn(out, 2)
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, tmp_path / "style.safetensors")
    given = source(teacher_folders, "flux2-klein", tmp_path)
    skeleton(given)
    merged = load_backbone(given).network
    torch.testing.assert_close(merged.get_submodule(layer).weight, plain.get_submodule(layer).weight + b @ a)


def test_of_several_files_in_a_folder_one_has_to_be_named(tmp_path):
    for name in "ab":
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"has 2 \.safetensors files; expected one; name the LoRA, such as .*a\.safet"):
        lora_path(tmp_path)
    assert load_file(lora_path(tmp_path / "b.safetensors"))
