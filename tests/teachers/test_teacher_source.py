"""Where a teacher may come from besides a plain folder, and what may be put in its place before it is distilled."""

import gzip
import importlib.util
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from tests.teachers.published import write_configs

from scott.errors import UserError
from scott.export.ldm import UNET, VAE
from scott.export.single_file import FILE, original_tensors, save_checkpoint
from scott.export.trained import Trained
from scott.mini.embedded import teacher_source
from scott.recipes import mini
from scott.teacher_source import TeacherSource
from scott.teachers import load_backbone, single_file
from scott.teachers.fingerprint import differing, fingerprints, network_fingerprint
from scott.teachers.single_file import clip_tokenizer, kind_of, known_configs, tokenizer_of
from scott.teachers.skeleton import skeleton


def source(teacher, **more):
    return TeacherSource(teacher=str(teacher), **{name: str(value) for name, value in more.items()})


@pytest.fixture(scope="module")
def file_of(make_backbone, tmp_path_factory):
    """`file_of(family)`: a teacher as one file. Its LoRA is new, and changes nothing."""

    def write(family):
        folder = tmp_path_factory.mktemp(family)
        save_checkpoint(Trained(make_backbone("lora", family=family), mini(train="lora"), 0), folder)
        return folder / FILE

    return write


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_one_file_is_the_teacher_that_its_folder_is(file_of, teacher_folders, make_backbone, family):
    given = source(file_of(family), teacher_config=teacher_folders[family])
    read, whole = load_backbone(given), make_backbone(family=family)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(read.network.state_dict()[name], value), name
    assert fingerprints(read) == fingerprints(whole)
    assert (read.schedule, read.latent_shape) == (whole.schedule, whole.latent_shape)
    assert {p.dtype for p in load_backbone(given, torch.bfloat16).vae.parameters()} == {torch.float32}
    assert skeleton(given).network.state_dict().keys() == whole.network.state_dict().keys()


def test_a_ckpt_is_read_if_it_holds_tensors_alone(file_of, teacher_folders, tmp_path):
    tensors = load_file(file_of("sd1"))
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "model.ckpt")
    load_backbone(source(tmp_path / "model.ckpt", teacher_config=teacher_folders["sd1"]))
    torch.save({"state_dict": tensors, "callback": print}, tmp_path / "code.ckpt")
    with pytest.raises(UserError, match=r"only tensors are read, since a pickle can run code; expected .safetensors"):
        load_backbone(tmp_path / "code.ckpt")


def without_some(tensors):
    return {name: value for name, value in tensors.items() if ".middle_block." not in name}


BROKEN = {
    "a LoRA": (lambda tensors: {"lora_unet_conv_in.lora_up.weight": torch.ones(1)}, "give it as --teacher-lora"),
    "a network alone": (lambda tensors: {"conv_in.weight": torch.ones(1)}, "expected a file with a whole pipeline"),
    "another kind": (lambda tensors: tensors, "give --teacher-config a diffusers folder"),
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_file_that_is_no_known_pipeline(file_of, tmp_path, change, said):
    save_file(change(load_file(file_of("sd1"))), tmp_path / "file.safetensors")
    for loads in (load_backbone, skeleton):
        with pytest.raises(UserError, match=said):
            loads(tmp_path / "file.safetensors")


def test_a_file_that_lacks_weights(file_of, teacher_folders, tmp_path):
    save_file(without_some(load_file(file_of("sd1"))), tmp_path / "file.safetensors")
    with pytest.raises(UserError, match="it lacks weights that its configs ask for"):
        load_backbone(source(tmp_path / "file.safetensors", teacher_config=teacher_folders["sd1"]))


# --- the published kinds -------------------------------------------------------------------------------------

COUNTS = {"sd15": (686, 248, 196), "sd21": (686, 248, 23 * 12 + 4), "sdxl": (1680, 248, 196 + 32 * 12 + 5)}
"""Weights of the published U-Nets, VAEs and text encoders; CLIP's 12 layers have 16 each, OpenCLIP's 12."""


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_pipelines_are_told_by_the_names_they_get(name, tmp_path):
    """diffusers' reader tells the kinds by single names of the published files."""
    plain, _ = original_tensors(skeleton(write_configs(name, tmp_path)), 3.0)
    assert kind_of(plain) == name
    unet, vae = (sum(key.startswith(prefix) for key in plain) for prefix in (UNET, VAE))
    assert (unet, vae, len(plain) - unet - vae) == COUNTS[name]


def test_a_file_says_how_it_predicts(tmp_path, monkeypatch):
    monkeypatch.setattr(single_file, "kind_of", lambda tensors: "sdxl")
    key = {"model.diffusion_model.x": torch.ones(1)}
    for index, (tensors, metadata, prediction, zero) in enumerate(
        (
            ({}, None, "epsilon", None),
            ({"v_pred": torch.ones(0)}, None, "v_prediction", False),
            ({"v_pred": torch.ones(0), "ztsnr": torch.ones(0)}, None, "v_prediction", True),
            ({}, {"modelspec.prediction_type": "v"}, "v_prediction", None),
        )
    ):
        save_file(key | tensors, tmp_path / f"{index}.safetensors", metadata)
        found = known_configs(tmp_path / f"{index}.safetensors")["scheduler/scheduler_config.json"]
        assert (found["prediction_type"], found.get("rescale_betas_zero_snr")) == (prediction, zero)


def test_clips_tokenizer_is_made_of_its_merges(tmp_path):
    merges = ["c a", "ca t</w>", *(f"{a} {b}" for a in "defghijk" for b in "lmnopqrs")]
    with gzip.open(tmp_path / "bpe.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *merges]))
    start, end = 2 * 256 + len(merges), 2 * 256 + len(merges) + 1
    for pad, index in (("!", 0), ("<|endoftext|>", end)):
        ids = clip_tokenizer(tmp_path / "bpe.gz", pad)("CAT  a", padding="max_length").input_ids
        assert ids[:4] == [start, 2 * 256 + 1, 256 + ord("a") - ord("!"), end]
        assert ids[4:] == [index] * 73


def test_no_tokenizer_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"the hub does not give stable-.*pip install open_clip_torch.*--teacher-config"
    ):
        tokenizer_of("sd15", "tokenizer")


# --- variants, LoRAs, another VAE ----------------------------------------------------------------------------


@pytest.fixture
def half(teacher_folders, tmp_path):
    """A folder of half-precision weights under their variant's name."""
    pipe = DiffusionPipeline.from_pretrained(teacher_folders["sd1"]).to(torch.float16)
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    return tmp_path / "half"


def test_the_only_variant_is_found(half, make_backbone):
    rounded = {name: value.half().float() for name, value in make_backbone().network.state_dict().items()}
    for given in (source(half), source(half, variant="fp16")):
        read = load_backbone(given)
        assert all(torch.equal(rounded[name], value) for name, value in read.network.state_dict().items())
        assert {p.dtype for p in (*read.network.parameters(), *read.vae.parameters())} == {torch.float32}
    with pytest.raises(UserError, match="cannot be loaded"):
        load_backbone(source(half, variant="ema"))


def test_of_several_variants_one_has_to_be_named(half):
    (file,) = (half / "unet").glob("*.safetensors")
    other = {name: -value for name, value in load_file(file).items()}
    save_file(other, file.with_name(file.name.replace("fp16", "non_ema")), {"format": "pt"})
    with pytest.raises(UserError, match="several weights of unet; give --variant fp16 or non_ema"):
        load_backbone(half)
    read = load_backbone(source(half, variant="non_ema"))
    assert torch.equal(read.network.conv_in.weight, other["conv_in.weight"].float())


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_loras_are_merged_into_the_teacher(teacher_folders, style_lora, make_backbone, inputs, family):
    file = style_lora(family)
    before = {
        name: path.read_bytes() for name, path in enumerate(sorted(teacher_folders[family].rglob("*.safetensors")))
    }
    given = TeacherSource(teacher=str(teacher_folders[family]), teacher_lora=(f"{file}:0.5", f"{file}:-0.25"))
    merged, plain = load_backbone(given), make_backbone(family=family)
    assert merged.version != plain.version
    assert not merged.adapters.layers
    half = load_backbone(given, torch.float16)
    assert not differing(network_fingerprint(half), network_fingerprint(merged))
    for name, value in merged.network.state_dict().items():
        assert torch.equal(half.network.state_dict()[name], value.half()), name
    pipe = plain.pipeline
    pipe.load_lora_weights(file, adapter_name="style")
    pipe.set_adapters("style", 0.25)
    plain.adapters.use = None  # peft's own switch is on
    x, t, cond = inputs(merged)
    expected = plain._output(plain.network, x, t, cond)
    torch.testing.assert_close(merged.output(None, x, t, cond), expected, atol=1e-4, rtol=1e-4)
    assert before == {
        n: path.read_bytes() for n, path in enumerate(sorted(teacher_folders[family].rglob("*.safetensors")))
    }


def test_loras_that_fit_nothing(teacher_folders, style_lora, tmp_path):
    def merging(family, file):
        return load_backbone(TeacherSource(teacher=str(teacher_folders[family]), teacher_lora=(str(file),)))

    with pytest.raises(UserError, match="diffusers loads no LoRA into a PixArtAlphaPipeline"):
        merging("pixart", style_lora("sd1"))
    with pytest.raises(UserError, match="no LoRA file at"):
        merging("sd1", tmp_path / "nowhere.safetensors")
    with pytest.raises(UserError, match=r"names no layer of this teacher|cannot be loaded"):
        merging("sd1", style_lora("sd3"))


def test_a_scale_and_a_name_with_a_colon():
    given = TeacherSource(teacher="a", teacher_lora=("a.safetensors", "b.safetensors:0.5", "C:c.safetensors"))
    assert [(str(file), scale) for file, scale in given.loras] == [
        ("a.safetensors", 1.0),
        ("b.safetensors", 0.5),
        ("C:c.safetensors", 1.0),
    ]


def test_another_vae(teacher_folders, file_of, tmp_path):
    pipe = DiffusionPipeline.from_pretrained(teacher_folders["sd1"])
    with torch.no_grad():
        for parameter in pipe.vae.parameters():
            parameter.neg_()
    pipe.vae.save_pretrained(tmp_path / "vae")
    tensors = load_file(file_of("sd1"))
    inside = {name.removeprefix(VAE): -value for name, value in tensors.items() if name.startswith(VAE)}
    save_file(inside, tmp_path / "vae.safetensors")
    shutil.copytree(teacher_folders["sd1"], tmp_path / "pipe")
    pipe.vae.save_pretrained(tmp_path / "pipe" / "vae")
    for place in ("vae", "vae.safetensors", "pipe"):
        read = load_backbone(source(teacher_folders["sd1"], vae=tmp_path / place))
        for name, value in pipe.vae.state_dict().items():
            assert torch.equal(read.vae.state_dict()[name], value), (place, name)
    with pytest.raises(UserError, match="nowhere cannot be loaded"):
        load_backbone(source(teacher_folders["sd1"], vae=tmp_path / "nowhere"))


def test_an_embedded_name_keeps_what_else_is_given():
    given = teacher_source(TeacherSource(teacher="mini", vae="x"))
    assert (given.vae, given.teacher.endswith("teacher")) == ("x", True)
