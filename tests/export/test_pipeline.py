"""A stock pipeline is done when what was read back draws the same, and not before."""

import dataclasses
import errno
import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tests.export.conftest import write
from tests.tiny.families import FAMILIES

from scott.diffusion import JumpGrid
from scott.errors import UserError
from scott.export.pipeline import call_options, read_student, round_student, save_student
from scott.export.trained import Trained, amplification, difference, replacing_folder
from scott.recipes.configs import sd15
from scott.samplers import StudentSampler
from scott.teachers import load_backbone


def drawn(trained: Trained):
    backbone = trained.backbone
    return StudentSampler(backbone, backbone.target, trained.grid, 2, trained.info.guidance).latents(["a dog"], 3)


@pytest.mark.parametrize(
    ("family", "train"),
    [("sd1", "full"), ("sd1", "lora"), ("sd2", "full"), ("sdxl", "full"), ("pixart", "full"), ("sd3", "lora")],
)
def test_the_stock_call_draws_the_student(make_trained, tmp_path, family, train):
    trained = make_trained(family, train)
    write(trained, tmp_path / "student")
    index = json.loads((tmp_path / "student" / "model_index.json").read_text())
    libraries = {part[0] for part in index.values() if isinstance(part, list)}
    assert libraries <= {"diffusers", "transformers", None}, "and not scott"
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "student")
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(
        "a dog",
        num_inference_steps=2,
        guidance_scale=trained.info.guidance_scale,
        generator=torch.manual_seed(3),
        output_type="latent",
        **call_options(type(pipe).__name__),
    ).images
    assert trained.info.guidance_scale == (4.0 if train == "full" and family.startswith("sd") else 1.0)
    assert difference(drawn(trained), latents) < 1e-4


def test_an_export_is_drawn_at_its_recipes_guidance(make_trained):
    """Not in the middle of the range it was trained on, which is 9."""
    trained = make_trained("sd1", "full")
    info = Trained(trained.backbone, sd15(data="d", train="full"), updates=7).info
    assert (info.guidance, info.guidance_min, info.guidance_max) == (3.0, 3.0, 15.0)


def test_a_student_that_reads_back_differently_is_refused(make_trained, tmp_path):
    trained = make_trained(train="full")
    expected = trained.expected()
    with torch.no_grad():
        next(iter(trained.backbone.target_parameters().values())).add_(0.1)
    save_student(trained.backbone, tmp_path, trained.grid)
    with pytest.raises(UserError, match="of a spread off"):
        read_student(tmp_path, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_half_precision_every_family_draws_its_rounded_student(make_trained, teacher_folders, tmp_path, family):
    trained = make_trained(family, backbone=load_backbone(teacher_folders[family]))  # to be rounded
    save_student(trained.backbone, tmp_path, trained.grid, torch.bfloat16)
    round_student(trained.backbone, torch.bfloat16)
    read_student(tmp_path, trained.expected())


def test_rounding_counts_by_lambda_and_is_let_through_so(make_trained, make_backbone, tmp_path):
    """Of PixArt's schedule, with λ = 157. Pictures of an untrained teacher have that spread, of a trained one about 1:
    ε that is off by 2e-4 here stands for one that is off by 1e-6 there, as of a network of many layers in fp32."""
    trained = make_trained("pixart", "full")
    expected, backbone = trained.expected(), trained.backbone
    save_student(backbone, tmp_path, trained.grid)
    (file,) = (tmp_path / "transformer").glob("*.safetensors")
    tensors, name = load_file(file), "proj_out.bias"

    def written(off):
        torch.manual_seed(0)
        save_file(tensors | {name: tensors[name] + off * torch.randn(tensors[name].shape)}, file, {"format": "pt"})

    written(2e-4)
    read_student(tmp_path, expected)
    written(1e-3)
    with pytest.raises(UserError, match="of a spread off"):
        read_student(tmp_path, expected)
    assert [amplification(make_backbone(family=family)) for family in ("sd1", "sd2", "sd3")] == [1, 1, 1]


def refuse(partial):
    (partial / "file").write_text("bad")
    raise UserError("differs")


def half_write(partial, error):
    (partial / "half").write_text("half")
    raise error


def test_an_export_takes_its_name_only_when_it_is_done(tmp_path):
    folder = tmp_path / "student"
    for text in ("old", "new"):
        with replacing_folder(folder) as partial:
            (partial / "file").write_text(text)
            assert not folder.exists() or (folder / "file").read_text() == "old"
        assert (folder / "file").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    with pytest.raises(UserError, match="differs"), replacing_folder(folder) as partial:
        refuse(partial)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"file": "new"}
    busy = pytest.raises(UserError, match="is being written by another command")
    with replacing_folder(folder), busy, replacing_folder(folder):
        pass
    with replacing_folder(folder) as partial:
        (partial / "file").write_text("newer")
    assert (folder / "file").read_text() == "newer"


def test_an_export_that_is_refused_or_has_no_room_leaves_nothing(tmp_path):
    """Not the room that is missing either."""
    with pytest.raises(UserError, match="no such form"), replacing_folder(tmp_path / "lora"):
        raise UserError("no such form")
    assert not list(tmp_path.iterdir())
    for error in (OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: … (os error 28)")):
        with pytest.raises(UserError, match=f"no room at {tmp_path} "), replacing_folder(tmp_path / "lora") as partial:
            half_write(partial, error)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["diffusers", "lora"])
def test_a_teacher_in_the_older_layout(teacher_folders, make_trained, tmp_path, kind):
    """Names of its text encoder that begin with `text_model.`, and a tokenizer of vocabulary and merges alone."""
    old = tmp_path / "old"
    shutil.copytree(teacher_folders["sd1"], old)
    encoder, tokenizer = old / "text_encoder" / "model.safetensors", old / "tokenizer"
    names = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(encoder).items()}
    save_file({name: value.clone() for name, value in names.items()}, encoder, {"format": "pt"})
    backbone = load_backbone(old)
    backbone.pipeline.tokenizer.backend_tokenizer.model.save(str(tokenizer))
    (tokenizer / "tokenizer.json").unlink()
    ours, new = load_backbone(old), load_backbone(teacher_folders["sd1"])
    assert torch.equal(ours.encode_prompts(["a cat"])["text"], new.encode_prompts(["a cat"])["text"])
    trained = make_trained(backbone=ours)
    trained = dataclasses.replace(trained, config=dataclasses.replace(trained.config, teacher=str(old)))
    write(trained, tmp_path / "out", kind)  # which reads back what it wrote, and compares what it draws


@pytest.mark.parametrize("family", ["qwen-image", "z-image", "sana"])
def test_what_an_older_transformers_asks_a_language_model_for(make_backbone, tmp_path, family):
    """Places in the text, special tokens and a tokenizer without a sentencepiece file; and no path of this machine."""
    backbone = make_backbone(family=family)
    encoder = backbone.pipeline.text_encoder.config
    text = encoder.to_dict().get("text_config") or encoder.to_dict()
    save_student(backbone, tmp_path, JumpGrid(backbone.schedule))
    files = {file: json.loads(file.read_text()) for file in tmp_path.rglob("*.json")}
    config = files[tmp_path / "text_encoder/config.json"]
    config = config.get("text_config", config)
    assert config["rope_theta"] == text["rope_parameters"]["rope_theta"]
    sections = text["rope_parameters"].get("mrope_section")
    assert config.get("rope_scaling", {}).get("mrope_section") == sections
    tokens = files[tmp_path / "tokenizer/tokenizer_config.json"]
    assert isinstance(tokens.get("extra_special_tokens", {}), dict)
    assert ("additional_special_tokens" in tokens) == (family != "sana")
    kind = files[tmp_path / "model_index.json"]["tokenizer"][1]
    assert kind == ("GemmaTokenizerFast" if family == "sana" else "Qwen2Tokenizer")
    assert not [file for file, content in files.items() if "_name_or_path" in content]
    read = load_backbone(tmp_path).pipeline
    assert read.tokenizer.all_special_tokens == backbone.pipeline.tokenizer.all_special_tokens
    assert read.text_encoder.config.to_dict().get("rope_parameters") == encoder.to_dict().get("rope_parameters")
