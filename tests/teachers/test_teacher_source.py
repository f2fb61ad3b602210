"""Where a teacher may come from besides a plain folder, and what may be put in its place before it is distilled."""

import gzip
import importlib.util
import json
import shutil
from itertools import product

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.loaders import single_file_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.teachers.flux_file import converter, original_names
from tests.teachers.published import write_configs
from tests.tiny.parts import tiny_clip_config, tiny_vae
from transformers import CLIPTextModelWithProjection

from scott.errors import UserError
from scott.export.info import StudentInfo
from scott.export.ldm import UNET, VAE, vae_names
from scott.export.single_file import FILE, original_tensors, save_checkpoint
from scott.export.snippet import snippet, teacher_snippet
from scott.export.trained import Trained
from scott.mini.embedded import TEACHER, teacher_source
from scott.recipes.configs import mini, sd15
from scott.teacher_source import TeacherSource
from scott.teachers import load_backbone, single_file
from scott.teachers.fingerprint import differing, fingerprints, network_fingerprint
from scott.teachers.load import doubt_of_prediction
from scott.teachers.modified import predicting
from scott.teachers.single_file import kind_of, known_configs, lacking_parts
from scott.teachers.skeleton import skeleton
from scott.teachers.tokenizers import clip_tokenizer, tokenizer_of


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


BROKEN = {
    "a LoRA": (lambda tensors: {"lora_unet_conv_in.lora_up.weight": torch.ones(1)}, "give it as --teacher-lora"),
    "a network alone": (lambda tensors: {"conv_in.weight": torch.ones(1)}, "expected a file with a whole pipeline"),
    "another kind": (lambda tensors: tensors, "give --teacher-config a diffusers folder"),
    "CosXL": (lambda tensors: tensors | {"edm_vpred.sigma_max": torch.ones(1)}, "preconditioned as EDM's is"),
    "scaled fp8": (
        lambda tensors: tensors | {"model.diffusion_model.out.2.scale_weight": torch.ones(1)},
        r"holds quantised weights .* expected fp32, bf16, fp16 or plain fp8",
    ),
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_file_that_is_no_known_pipeline(file_of, tmp_path, change, said):
    save_file(change(load_file(file_of("sd1"))), tmp_path / "file.safetensors")
    for loads in (load_backbone, skeleton):
        with pytest.raises(UserError, match=said):
            loads(tmp_path / "file.safetensors")


def test_a_file_that_is_laid_out_otherwise_than_its_configs(file_of, teacher_folders):
    for loads in (load_backbone, skeleton):
        with pytest.raises(UserError, match=r"the network of .* weights and that of its configs .*--teacher-config"):
            loads(source(file_of("sd1"), teacher_config=teacher_folders["sdxl"]))


def test_a_file_that_lacks_weights(file_of, teacher_folders, tmp_path):
    tensors = load_file(file_of("sd1"))
    del tensors["cond_stage_model.transformer.text_model.final_layer_norm.weight"]
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(UserError, match="it lacks "):
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


SAYS = {
    "nothing": ({}, None, None, ("epsilon", None)),
    "v": ({"v_pred": torch.ones(0)}, None, None, ("v_prediction", False)),
    "v and zero SNR": ({"v_pred": torch.ones(0), "ztsnr": torch.ones(0)}, None, None, ("v_prediction", True)),
    "v in words": ({}, {"modelspec.prediction_type": "v"}, None, ("v_prediction", False)),
    "nothing, and is told by a flag": ({}, None, "v-ztsnr", ("v_prediction", True)),
    "other than a flag": ({"v_pred": torch.ones(0)}, None, "epsilon", ("epsilon", False)),
}


@pytest.mark.parametrize(("tensors", "metadata", "flag", "expected"), SAYS.values(), ids=SAYS.keys())
def test_a_file_says_how_it_predicts(tmp_path, monkeypatch, tensors, metadata, flag, expected):
    monkeypatch.setattr(single_file, "kind_of", lambda tensors: "sdxl")
    save_file({"model.diffusion_model.x": torch.ones(1)} | tensors, tmp_path / "file.safetensors", metadata)
    found = known_configs(tmp_path / "file.safetensors", flag)["scheduler/scheduler_config.json"]
    assert (found["prediction_type"], found.get("rescale_betas_zero_snr")) == expected


SD2 = {
    "2.1, which says nothing": (None, None, ("v_prediction", 96)),
    "of the base edition by the flag": (None, "epsilon", ("epsilon", 64)),
    "of the base edition in words": ({"modelspec.architecture": "stable-diffusion-v2-512"}, None, ("epsilon", 64)),
}


@pytest.mark.parametrize(("metadata", "flag", "expected"), SD2.values(), ids=SD2.keys())
def test_sd2s_base_edition_predicts_noise_of_512_pixels(tmp_path, metadata, flag, expected):
    """Its networks are 2.1's, weight by weight in shape, so that a file has to say it, or who gives it."""
    key = {"model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": torch.ones(1, 1024)}
    save_file(key, tmp_path / "file.safetensors", metadata)
    configs = known_configs(tmp_path / "file.safetensors", flag)
    got = configs["scheduler/scheduler_config.json"]["prediction_type"], configs["unet/config.json"]["sample_size"]
    assert got == expected


@pytest.mark.parametrize("loads", [load_backbone, skeleton])
def test_a_prediction_is_given_to_any_teacher(teacher_folders, loads):
    folder = teacher_folders["sd1"]
    for prediction, name, last in (("v", "v_prediction", 0.068), ("v-ztsnr", "v_prediction", 0.0)):
        backbone = loads(source(folder, prediction=prediction))
        alpha = backbone.schedule.alpha(torch.tensor([999])).item()
        assert (backbone.prediction, alpha) == (name, pytest.approx(last, abs=1e-3))
    for flow in ("sd3", "flux", "sana"):  # the last has a solver of Stable Diffusion's
        with pytest.raises(UserError, match="for a flow, which predicts its velocity; leave it out"):
            loads(source(teacher_folders[flow], prediction="v"))


SPACED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SPACED |= {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False, "trained_betas": None}
WITHOUT = {
    "PNDMScheduler": {"skip_prk_steps": True},  # as Stable Diffusion 1.5 is published
    "DDIMScheduler": {},
    "EulerDiscreteScheduler": {"skip_prk_steps": True},
    "DPMSolverMultistepScheduler": {"solver_order": 2, "algorithm_type": "dpmsolver++"},
}


@pytest.mark.parametrize("loads", [load_backbone, skeleton])
@pytest.mark.parametrize("name", WITHOUT)
def test_a_scheduler_that_names_no_prediction_is_no_flow(teacher_folders, tmp_path, loads, name):
    """Older files have none: it is their classes' default, ε."""
    folder = shutil.copytree(teacher_folders["sd1"], tmp_path / "teacher")
    index = json.loads((folder / "model_index.json").read_text()) | {"scheduler": ["diffusers", name]}
    (folder / "model_index.json").write_text(json.dumps(index))
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": name, "_diffusers_version": "0.6.0"} | SPACED | WITHOUT[name]))
    assert loads(folder).prediction == "epsilon"
    for prediction, last in (("v", 0.068), ("v-ztsnr", 0.0)):
        backbone = loads(source(folder, prediction=prediction))
        alpha = backbone.schedule.alpha(torch.tensor([999])).item()
        assert (backbone.prediction, alpha) == ("v_prediction", pytest.approx(last, abs=1e-3))


def test_a_network_that_answers_noise_with_noise_predicts_no_v():
    """The embedded teacher, which is trained."""
    with pytest.raises(UserError, match="its network predicts the noise; give --prediction epsilon"):
        load_backbone(source(TEACHER, prediction="v"))


def test_a_network_that_answers_noise_with_something_else_is_doubted(teacher_folders):
    assert doubt_of_prediction(load_backbone(TEACHER)) is None
    untrained = load_backbone(teacher_folders["sd1"])
    assert "if its network predicts v, give --prediction v, or v-ztsnr" in (doubt_of_prediction(untrained) or "")
    for family in ("sd2", "sd3"):
        assert doubt_of_prediction(load_backbone(teacher_folders[family])) is None, "it is of another kind"


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
        tokenizer_of("sd15", "tokenizer", "CLIPTokenizer")


# --- files of a network alone --------------------------------------------------------------------------------

SD3_NAMES = (
    ("pos_embed.proj.", "x_embedder.proj."),
    ("pos_embed.pos_embed", "pos_embed"),
    ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
    ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("transformer_blocks.", "joint_blocks."),
    ("norm1.linear", "x_block.adaLN_modulation.1"),
    ("norm1_context.linear", "context_block.adaLN_modulation.1"),
    ("ff.net.0.proj", "x_block.mlp.fc1"),
    ("ff.net.2", "x_block.mlp.fc2"),
    ("ff_context.net.0.proj", "context_block.mlp.fc1"),
    ("ff_context.net.2", "context_block.mlp.fc2"),
    ("attn.to_out.0", "x_block.attn.proj"),
    ("attn2.to_out.0", "x_block.attn2.proj"),
    ("attn.to_add_out", "context_block.attn.proj"),
    ("attn.norm_added_", "context_block.attn.ln_"),
    ("attn.norm_", "x_block.attn.ln_"),
    ("attn2.norm_", "x_block.attn2.ln_"),
)
"""diffusers' names → those of SD3's own code, where the last layer's scale and shift stand the other way round."""
QKV = (("attn.to_{}", "x_block.attn"), ("attn2.to_{}", "x_block.attn2"), ("attn.add_{}_proj", "context_block.attn"))


def original_sd3(network):
    state, made = dict(network.state_dict()), {}
    last = f"transformer_blocks.{len(network.transformer_blocks) - 1}.norm1_context"
    for name in [name for name in state if name.startswith(("norm_out", last))]:
        state[name] = torch.cat(state[name].chunk(2)[::-1])
    for i, (ours, theirs), end in product(range(len(network.transformer_blocks)), QKV, ("weight", "bias")):
        names = [f"transformer_blocks.{i}.{ours.format(letter)}.{end}" for letter in "qkv"]
        if names[0] in state:
            made[f"joint_blocks.{i}.{theirs}.qkv.{end}"] = torch.cat([state.pop(name) for name in names])
    for name, value in state.items():
        for ours, theirs in SD3_NAMES:
            if name.startswith(ours) or f".{ours}" in name:
                name = name.replace(ours, theirs)
        made[name.replace("proj_out", "final_layer.linear")] = value
    return made


@pytest.fixture(scope="module")
def sd35(teacher_folders):
    """A tiny SD3.5: its folder, its backbone, and its network in the names of SD3's own code."""
    folder = teacher_folders["sd35"]
    whole = load_backbone(folder)
    return folder, whole, {name: value.contiguous() for name, value in original_sd3(whole.network).items()}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_file_of_the_network_alone_has_its_other_parts_from_a_folder(sd35, tmp_path, prefix):
    folder, whole, tensors = sd35
    save_file({prefix + name: value for name, value in tensors.items()}, tmp_path / "network.safetensors")
    read = load_backbone(source(tmp_path / "network.safetensors", teacher_config=folder))
    for name, value in whole.network.state_dict().items():
        assert torch.equal(read.network.state_dict()[name], value), name
    assert fingerprints(read) == fingerprints(whole)
    half = load_backbone(source(tmp_path / "network.safetensors", teacher_config=folder), torch.bfloat16)
    dtypes = {name: part.dtype for name, part in half.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert dtypes.pop("vae") == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}


@pytest.mark.parametrize("names", [["shared"], ["shared", "encoder.embed_tokens"]], ids=["one name", "both"])
def test_a_t5_of_a_file_has_one_embedding_whatever_its_names(sd35, tmp_path, names):
    """Programs write it under one of its names or under both."""
    folder, whole, tensors = sd35
    t5 = dict(whole.pipeline.text_encoder_3.named_parameters())
    embedding = t5.pop("shared.weight")
    t5 |= {f"{name}.weight": embedding.clone() for name in names}
    tensors = tensors | {f"text_encoders.t5xxl.transformer.{name}": value for name, value in t5.items()}
    save_file(tensors, tmp_path / "file.safetensors")
    read = load_backbone(source(tmp_path / "file.safetensors", teacher_config=folder))
    assert fingerprints(read) == fingerprints(whole)


def of_published(name):
    """Tensors by which diffusers' reader tells a published file's kind, without values."""
    sides = {"sd3": (36864, 9216), "sd35-medium": (147456, 9216), "sd35-large": (36864, 14592)}
    if name in sides:
        places, width = sides[name]
        found = {"pos_embed": (1, places, 8), "joint_blocks.0.context_block.adaLN_modulation.1.bias": (width,)}
        found |= {"joint_blocks.37.x_block.mlp.fc1.weight": (8, 8)} if name == "sd35-large" else {}
    elif name == "playground":
        found = {"edm_mean": (4,), "model.diffusion_model.out.0.bias": (8,)}
    else:
        found = {"double_blocks.0.img_attn.norm.key_norm.scale": (8,), "img_in.weight": (8, 64)}
        found |= {"guidance_in.in_layer.bias": (8,)} if name == "flux" else {}
    return {key: torch.empty(shape) for key, shape in found.items()}


REFUSED = {"schnell": "is a few-step student already", "playground": "preconditioned as EDM's is"}


@pytest.mark.parametrize("name", ["sd3", "sd35-medium", "sd35-large", "flux", *REFUSED])
def test_a_network_of_a_known_kind_says_what_it_lacks(name, tmp_path):
    """From its configs, before anything is loaded, and so in a dry run."""
    file = tmp_path / "file.safetensors"
    save_file(of_published(name), file)
    said = REFUSED.get(name, "has no text_encoder; give --teacher-config a")
    for loads in (load_backbone, skeleton):
        with pytest.raises(UserError, match=said):
            loads(file)
    if name not in REFUSED:
        assert kind_of(of_published(name)) == name


@pytest.mark.parametrize(("name", "family"), [("schnell", "flux"), ("playground", "sdxl")])
def test_configs_of_another_kind_make_no_teacher_of_what_is_none(teacher_folders, tmp_path, name, family):
    save_file(of_published(name), tmp_path / "file.safetensors")
    for loads in (load_backbone, skeleton):
        with pytest.raises(UserError, match=REFUSED[name]):
            loads(source(tmp_path / "file.safetensors", teacher_config=teacher_folders[family]))


@pytest.mark.parametrize("loads", [load_backbone, skeleton])
def test_a_file_says_how_it_predicts_beside_given_configs_too(file_of, teacher_folders, tmp_path, loads):
    file, folder = tmp_path / "file.safetensors", teacher_folders["sdxl"]
    save_file(load_file(file_of("sdxl")) | {"v_pred": torch.ones(0), "ztsnr": torch.ones(0)}, file)
    marked = loads(source(file, teacher_config=folder))
    assert (marked.prediction, marked.schedule.alpha(marked.schedule.last_time).item()) == ("v_prediction", 0)
    assert loads(source(file, teacher_config=folder, prediction="epsilon")).prediction == "epsilon"


def test_a_teachers_lines_say_how_its_file_predicts(file_of, teacher_folders, tmp_path):
    """diffusers reads no `v_pred` and no `ztsnr`, and draws noise with what is laid out as its configs are."""
    file = tmp_path / "file.safetensors"
    save_file(load_file(file_of("sdxl")) | {"v_pred": torch.ones(0), "ztsnr": torch.ones(0)}, file)
    given = source(file, teacher_config=teacher_folders["sdxl"])
    lines = teacher_snippet(given, load_backbone(given), prompt="a cat", steps=2, seed=0, guidance=4.0)
    assert 'prediction_type="v_prediction", rescale_betas_zero_snr=True)' in lines
    exec(lines.split("image = pipe(")[0], made := {})
    scheduler = made["pipe"].scheduler.config
    assert (scheduler.prediction_type, scheduler.rescale_betas_zero_snr) == ("v_prediction", True)


@pytest.mark.parametrize(("prediction", "sized"), [("epsilon", True), (None, False)])
def test_a_student_of_sd2s_base_edition_is_asked_for_512_pixels(tmp_path, prediction, sized):
    """diffusers takes each file of SD2 for one of 768."""
    key = {"model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": torch.ones(1, 1024)}
    save_file(key, tmp_path / "file.safetensors")
    config = sd15(teacher=str(tmp_path / "file.safetensors"), prediction=prediction, data="none")
    kind, times = ("StableDiffusionPipeline", "LCMScheduler"), {"1": [999.0]}
    info = StudentInfo(*kind, "lora", 1, 3.0, 3.0, False, 125, times, lora_rank=64, lora_alpha=64.0)
    lines = snippet(config, info, "checkpoint", tmp_path)
    assert ("height=512" in lines and "width=512" in lines) == sized


def test_configs_of_a_flow_take_no_prediction(tmp_path):
    """So that it is refused, where the scheduler's config is changed."""
    save_file(of_published("sd35-medium"), tmp_path / "file.safetensors")
    found = known_configs(tmp_path / "file.safetensors", "v")["scheduler/scheduler_config.json"]
    assert "prediction_type" not in found
    flow = FlowMatchEulerDiscreteScheduler.from_config(found)
    with pytest.raises(UserError, match="for a flow, which predicts its velocity; leave it out"):
        predicting(flow, source(tmp_path / "file.safetensors", prediction="v"))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_flux_is_read_by_its_own_names(teacher_folders, tmp_path, monkeypatch, prefix):
    """By diffusers' converter, told the tiny network's width, also with the prefix that ComfyUI writes."""
    folder = teacher_folders["flux"]
    whole = load_backbone(folder)
    reader = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    monkeypatch.setitem(reader, "checkpoint_mapping_fn", converter(whole.network.inner_dim))
    tensors = {prefix + name: value for name, value in original_names(whole.network).items()}
    save_file(tensors, tmp_path / "flux.safetensors")
    read = load_backbone(source(tmp_path / "flux.safetensors", teacher_config=folder))
    assert fingerprints(read) == fingerprints(whole)
    assert not differing(network_fingerprint(read.network), network_fingerprint(whole.network))


def with_configs_of(monkeypatch, kind, folder, pipe):
    """A tiny pipeline's configs and tokenizers in the place of the published ones of a kind of files."""
    files = {file.relative_to(folder).as_posix(): json.loads(file.read_text()) for file in folder.rglob("*.json")}
    monkeypatch.setattr(single_file, "published", lambda name: {kind: files}[name])
    monkeypatch.setattr(single_file, "tokenizer_of", lambda name, part, kind: pipe.components[part])


def test_a_whole_flux_in_one_file_needs_nothing_else(teacher_folders, tmp_path, monkeypatch):
    """In fp8, as ComfyUI's have it: by the configs of its kind (the tiny one's), or a folder without weights."""
    folder = teacher_folders["flux"]
    pipe = load_backbone(folder).pipeline
    reader = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    monkeypatch.setitem(reader, "checkpoint_mapping_fn", converter(pipe.transformer.inner_dim))
    with_configs_of(monkeypatch, "flux", folder, pipe)
    names = vae_names(pipe.vae)
    parts = {
        UNET: original_names(pipe.transformer),
        "vae.": {names[name]: value for name, value in pipe.vae.state_dict().items()},
        "text_encoders.clip_l.transformer.text_model.": pipe.text_encoder.state_dict(),
        "text_encoders.t5xxl.transformer.": dict(pipe.text_encoder_2.named_parameters()),
    }
    tensors = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
    file = tmp_path / "flux.safetensors"
    save_file({name: value.to(torch.float8_e4m3fn) for name, value in tensors.items()}, file)
    configs = shutil.copytree(folder, tmp_path / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    for given in (source(file), source(file, teacher_config=configs)):
        read = load_backbone(given).pipeline
        for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
            ours, theirs = (whole.components[part].state_dict() for whole in (read, pipe))
            for name, value in theirs.items():
                assert torch.equal(ours[name], value.to(torch.float8_e4m3fn).float()), name
        assert skeleton(given).network.state_dict().keys() == read.transformer.state_dict().keys()


@pytest.mark.parametrize("parts", [("text_encoder_3",), ()], ids=["with T5", "without T5"])
def test_a_whole_sd3_in_one_file_needs_nothing_else(teacher_folders, tmp_path, monkeypatch, parts):
    """Its CLIPs are told apart by their widths, and where it has no T5 the teacher does without."""
    pipe = DiffusionPipeline.from_pretrained(teacher_folders["sd3"])
    config = tiny_clip_config(pipe.tokenizer_2, hidden_size=16, projection_dim=16)
    pipe.text_encoder_2 = CLIPTextModelWithProjection(config)
    pipe.transformer = type(pipe.transformer).from_config({**pipe.transformer.config, "pooled_projection_dim": 32 + 16})
    torch.nn.init.eye_(pipe.text_encoder.text_projection.weight)  # which diffusers' reader takes it to be
    pipe.save_pretrained(tmp_path / "folder")
    monkeypatch.setattr(single_file, "kind_of", lambda tensors: "sd3")
    with_configs_of(monkeypatch, "sd3", tmp_path / "folder", pipe)
    state = {name: dict(part.named_parameters()) for name, part in pipe.components.items() if hasattr(part, "eval")}
    names, encoders = vae_names(pipe.vae), {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    tensors = {UNET + name: value for name, value in original_sd3(pipe.transformer).items()}
    tensors |= {f"{VAE}{names[name]}": value for name, value in state["vae"].items()}
    for part, name in (encoders | dict.fromkeys(parts, "t5xxl")).items():
        tensors |= {f"text_encoders.{name}.transformer.{key}": value for key, value in state[part].items()}
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, tmp_path / "sd3.safetensors")
    read = load_backbone(tmp_path / "sd3.safetensors").pipeline
    assert (read.text_encoder_3 is None) == (not parts)
    for part in ("transformer", "vae", *encoders, *parts):
        ours = dict(read.components[part].named_parameters())
        assert all(torch.equal(ours[name], value) for name, value in state[part].items()), part


def test_a_network_is_read_in_its_dtype(file_of, teacher_folders, monkeypatch):
    """A copy in fp32 in between would be twice what its file is."""
    read, cast = {}, single_file.cast

    def spying(module, dtype):
        read[type(module).__name__] = {parameter.dtype for parameter in module.parameters()}
        cast(module, dtype)

    monkeypatch.setattr(single_file, "cast", spying)
    backbone = load_backbone(source(file_of("sdxl"), teacher_config=teacher_folders["sdxl"]), torch.float16)
    assert read["UNet2DConditionModel"] == {torch.float16}
    assert {parameter.dtype for parameter in backbone.vae.parameters()} == {torch.float32}


def test_one_text_encoder_is_not_taken_for_the_other(file_of, teacher_folders, tmp_path):
    """As of SDXL's file by diffusers' script and transformers 5, whose first encoder has none of the usual names."""
    file, folder = tmp_path / "file.safetensors", teacher_folders["sdxl"]
    save_file({name.replace(".text_model.", "."): value for name, value in load_file(file_of("sdxl")).items()}, file)
    index = json.loads((folder / "model_index.json").read_text())
    for place in (None, folder):  # another's encoder would be another teacher
        with pytest.raises(UserError, match=r"has a text_encoder under names that are not read, .*text_model"):
            lacking_parts(source(file, teacher_config=place), index)
    first = "conditioner.embedders.0."
    save_file({name: value for name, value in load_file(file).items() if not name.startswith(first)}, file)
    with pytest.raises(UserError, match="has no text_encoder; give --teacher-config"):
        lacking_parts(source(file), index)
    assert lacking_parts(source(file, teacher_config=folder), index) == ["text_encoder"]
    assert fingerprints(load_backbone(source(file, teacher_config=folder))) == fingerprints(load_backbone(folder))


def test_an_old_merge_is_told_how_its_text_encoder_is_named(tmp_path):
    """A way out by --teacher-config would be refused next."""
    names = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(320, 4, 1, 1)}
    names |= {"cond_stage_model.transformer.embeddings.position_embedding.weight": torch.ones(77, 768)}
    save_file(names, tmp_path / "file.safetensors")
    with pytest.raises(UserError, match=r"names that are not read, such as cond_stage_model\.transformer\.embeddings"):
        known_configs(tmp_path / "file.safetensors")


def test_a_checkpoint_without_a_vae_needs_one(file_of, teacher_folders, tmp_path):
    tensors = {name: value for name, value in load_file(file_of("sd1")).items() if not name.startswith(VAE)}
    file = tmp_path / "file.safetensors"
    save_file(tensors, file)
    folder = teacher_folders["sd1"]
    alone = load_backbone(source(file, teacher_config=folder))
    DiffusionPipeline.from_pretrained(folder).vae.save_pretrained(tmp_path / "vae")
    given = load_backbone(source(file, teacher_config=folder, vae=tmp_path / "vae"))
    assert fingerprints(alone) == fingerprints(given) == fingerprints(load_backbone(folder))
    index = {"vae": ["diffusers", "AutoencoderKL"]}
    assert lacking_parts(source(file, vae=tmp_path / "vae"), index) == ["vae"]
    with pytest.raises(UserError, match=r"has no vae; give --teacher-config .* or --vae"):
        lacking_parts(source(file), index)


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
    for loads in (load_backbone, skeleton):
        with pytest.raises(UserError, match="no weights of unet of the variant ema; it has only fp16"):
            loads(source(half, variant="ema"))


def test_a_variants_name_may_have_hyphens(half, make_backbone):
    for file in [*half.rglob("*.fp16.safetensors")]:
        file.rename(file.with_name(file.name.replace("fp16", "fp16-ema")))
    for given in (source(half), source(half, variant="fp16-ema")):
        assert torch.equal(
            load_backbone(given).network.conv_in.weight, make_backbone().network.conv_in.weight.half().float()
        )


def test_pickled_half_precision_weights_are_read_as_tensors_alone(half, make_backbone):
    for file in half.rglob("*.fp16.safetensors"):
        plain = "diffusion_pytorch_model" if file.name.startswith("diffusion") else "pytorch_model"
        torch.save(load_file(file), file.with_name(f"{plain}.fp16.bin"))
        file.unlink()
    read = load_backbone(half).network.state_dict()
    assert all(torch.equal(read[name], v.half().float()) for name, v in make_backbone().network.state_dict().items())
    (file,) = (half / "unet").glob("*.bin")
    torch.save({"code": print}, file)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_backbone(half)


MISSING = {
    "a LoRA": ({"teacher_lora": ("gone.safetensors",)}, "no LoRA file at gone.safetensors"),
    "a scale": ({"teacher_lora": ("gone.safetensors:nan",)}, "expected a finite scale"),
    "no LoRA": ({"teacher_lora": ("FOLDER/text.safetensors:0.5",)}, "text.safetensors, which cannot be read"),
    "a VAE": ({"vae": "gone/at/all"}, "no VAE at gone/at/all"),
    "a VAE's file": ({"vae": "gone.safetensors"}, "got --vae gone.safetensors, which cannot be read"),
    "no VAE": ({"vae": "FOLDER"}, "has no config.json of a VAE"),
    "a variant": ({"variant": "ema"}, "no weights of unet of the variant ema; it has none"),
}


@pytest.mark.parametrize(("given", "said"), MISSING.values(), ids=MISSING.keys())
def test_what_is_not_there_is_said_before_anything_is_read(teacher_folders, tmp_path, given, said):
    (tmp_path / "text.safetensors").write_text("no tensors")
    found = json.loads(json.dumps(given).replace("FOLDER", str(tmp_path)))
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    for loads in (load_backbone, skeleton):
        with pytest.raises(UserError, match=said):
            loads(TeacherSource(teacher=str(teacher_folders["sd1"]), **found))


def test_of_several_variants_one_has_to_be_named(half):
    (file,) = (half / "unet").glob("*.safetensors")
    other = {name: -value for name, value in load_file(file).items()}
    save_file(other, file.with_name(file.name.replace("fp16", "non_ema")), {"format": "pt"})
    with pytest.raises(UserError, match="several weights of unet; give --variant fp16 or non_ema"):
        load_backbone(half)
    read = load_backbone(source(half, variant="non_ema"))
    assert torch.equal(read.network.conv_in.weight, other["conv_in.weight"].float())


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux", "qwen-image", "z-image"])
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
    assert not differing(network_fingerprint(half.network), network_fingerprint(merged.network))
    for name, value in merged.network.state_dict().items():
        assert torch.equal(half.network.state_dict()[name], value.half()), name
    pipe = plain.pipeline
    pipe.load_lora_weights(file, adapter_name="style")
    pipe.set_adapters("style", 0.25)
    plain.adapters.use = None  # peft's own switch is on
    for backbone in (merged, plain):
        backbone.resize(64)  # later pipelines draw too many pixels by default
    x, t, cond = inputs(merged)
    expected = plain._output(plain.network, x, t, cond)
    torch.testing.assert_close(merged.output(None, x, t, cond), expected, atol=1e-4, rtol=1e-4)
    assert before == {
        n: path.read_bytes() for n, path in enumerate(sorted(teacher_folders[family].rglob("*.safetensors")))
    }


@pytest.mark.parametrize("family", ["sd1", "sd3"])
@pytest.mark.parametrize("form", ["network", "peft"])
def test_a_lora_of_a_network_alone_is_merged(teacher_folders, make_backbone, tmp_path, family, form):
    """As diffusers' `save_lora_adapter` writes it, and as peft does, which keeps its scale in a file beside."""
    network = load_backbone(teacher_folders[family]).network.requires_grad_(True)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_v"], init_lora_weights=False)
    torch.manual_seed(3)
    if form == "network":
        network.add_adapter(config, adapter_name="default")
        network.save_lora_adapter(tmp_path)
    else:
        get_peft_model(network, config).save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    factors = {name.removeprefix("base_model.model."): value for name, value in load_file(file).items()}
    layers = {name.removesuffix(".lora_A.weight") for name in factors if name.endswith("lora_A.weight")}
    plain = make_backbone(family=family).network.state_dict()
    for place in (file, tmp_path):
        given = TeacherSource(teacher=str(teacher_folders[family]), teacher_lora=(f"{place}:0.5",))
        merged = load_backbone(given).network.state_dict()
        changed = {name for name, value in merged.items() if not torch.equal(value, plain[name])}
        assert changed == {f"{layer}.weight" for layer in layers}
        for layer in layers:
            a, b = (factors[f"{layer}.lora_{x}.weight"] for x in "AB")
            torch.testing.assert_close(merged[f"{layer}.weight"], plain[f"{layer}.weight"] + 0.5 * 1.5 * b @ a)
        assert skeleton(given).network.state_dict().keys() == plain.keys()


def test_what_is_no_lora_says_so(teacher_folders, style_lora, tmp_path):
    """In a dry run too."""

    def refused(tensors, said):
        save_file(tensors, tmp_path / "file.safetensors")
        given = TeacherSource(teacher=str(teacher_folders["sd1"]), teacher_lora=(str(tmp_path / "file.safetensors"),))
        for loads in (load_backbone, skeleton):
            with pytest.raises(UserError, match=said):
                loads(given)

    refused({"lora_unet_mid_block.lokr_w1": torch.ones(1)}, "is a LoKr")
    refused({"lora_unet_mid_block.hada_w1_a": torch.ones(1)}, "is a LoHa")
    peft = {f"base_model.model.{name.removeprefix('unet.')}": v for name, v in load_file(style_lora("sd1")).items()}
    refused(peft, r"its scale is in adapter_config\.json, which is not beside it")
    refused({"unet.conv_in.weight": torch.ones(32, 4, 3, 3)}, r"it names no layer of this one")
    kohya = {}  # of the same layers, as SD2's are, but for the width of the text
    for name, value in load_file(style_lora("sd1")).items():
        layer, _, end = name.removeprefix("unet.").rpartition(".lora_")
        wide = end[0] == "A" and layer.endswith("attn2.to_v")
        kohya[f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if end[0] == 'A' else 'up'}.weight"] = (
            torch.ones(2, 1024) if wide else value
        )
    count = sum(value.shape[1] == 1024 for value in kohya.values())
    refused(kohya, rf"is a LoRA of another kind of teacher; .* has {len(kohya) // 2 - count} of the {len(kohya) // 2}")


@pytest.mark.parametrize("loads", [load_backbone, skeleton])
def test_loras_that_fit_nothing(teacher_folders, style_lora, loads):
    def merging(family, file):
        return loads(TeacherSource(teacher=str(teacher_folders[family]), teacher_lora=(str(file),)))

    with pytest.raises(UserError, match="diffusers loads none into a PixArtAlphaPipeline"):
        merging("pixart", style_lora("sd1"))
    for family, base in (("sd1", "sd3"), ("sd1", "sdxl"), ("sdxl", "sd1")):  # other names, and other sizes
        with pytest.raises(
            UserError, match="is a LoRA of another kind of teacher; give one of this teacher's own base"
        ):
            merging(family, style_lora(base))


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_a_lora_of_which_some_layers_fit(teacher_folders, style_lora, tmp_path, family):
    """As one of SD3.5-medium, which has more attention than SD3, and widths alike."""
    tensors = load_file(style_lora(family))
    more = {name.replace("blocks.0.", "blocks.9."): value.clone() for name, value in tensors.items()}
    more = {name: value for name, value in more.items() if name not in tensors}
    save_file(tensors | more, tmp_path / "lora.safetensors")
    given = TeacherSource(teacher=str(teacher_folders[family]), teacher_lora=(str(tmp_path / "lora.safetensors"),))
    count = sum(name.endswith("lora_B.weight") for name in tensors)
    with pytest.raises(UserError, match=rf"this one has {count} of the {count + len(more) // 2} layers that it names"):
        load_backbone(given)


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


@pytest.mark.parametrize("loads", [load_backbone, skeleton])
def test_a_vae_of_other_channels_is_refused(loads, teacher_folders, tmp_path):
    tiny_vae(channels=16).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the network takes 4 channels and the VAE has 16; expected as many"):
        loads(source(teacher_folders["sd1"], vae=tmp_path))


def test_an_embedded_name_keeps_what_else_is_given():
    given = teacher_source(TeacherSource(teacher="mini", vae="x"))
    assert (given.vae, given.teacher.endswith("teacher")) == ("x", True)
