"""A run that starts as another student, or goes on from another run under new rates."""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.tiny.stable import tiny_sd
from tests.training.runs import STEPS, final

from scott.commands.initial import check_start, doubt_of_seed, initial_lora, start_as
from scott.errors import UserError
from scott.export.info import STUDENT_INFO
from scott.export.lora import save_lora
from scott.export.pipeline import save_student
from scott.export.trained import Trained
from scott.teacher_source import TeacherSource
from scott.teachers import load_backbone
from scott.training.checkpoint import save_checkpoint
from scott.training.config import DistillConfig


@pytest.fixture
def config(teacher_folders, tmp_path):
    return DistillConfig(
        teacher=str(teacher_folders["sd1"]), data="mini", out=tmp_path / "new", lora_rank=4, lora_alpha=4.0
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_continues_another_by_its_draws_is_told(tmp_path, seed):
    config = DistillConfig(teacher="t", data="d", out=tmp_path, guidance_min=4.0, guidance_max=4.0)
    (tmp_path / "config.json").write_text(config.to_json())
    doubt = doubt_of_seed(replace(config, continue_from=str(tmp_path), seed=seed))
    assert ("had the seed 0 too" in (doubt or "")) == (seed == 0)
    assert doubt_of_seed(config) is None


def test_another_run_goes_on_with_its_optimizers_and_another_rate(start, tmp_path):
    start(tmp_path / "old", train="lora")
    start(tmp_path / "new", train="lora", continue_from=str(tmp_path / "old"), max_steps=1, learning_rate=1e-30)
    (old, _), (new, _) = final(tmp_path / "old"), final(tmp_path / "new")
    for name, value in old["student"].items():
        torch.testing.assert_close(new["student"][name], value, rtol=0, atol=1e-12)
    assert any((new["critic"][name] - value).abs().max() > 1e-6 for name, value in old["critic"].items())
    steps = {int(value) for name, value in new["student_optimizer"].items() if name.endswith(".step")}
    assert steps == {STEPS + 1}


@pytest.mark.parametrize("kind", ["run", "lora", "full run", "folder"])
def test_a_student_starts_as_another(make_backbone, config, perturb, tmp_path, kind):
    train = "lora" if kind in ("run", "lora") else "full"
    old, new = make_backbone(train), make_backbone()
    perturb(old.target_parameters())
    place, config = tmp_path / "old", replace(config, train=train, init=str(tmp_path / "old"))
    trained = Trained(old, replace(config, lora_alpha=4.0), 7)
    if kind.endswith("run"):
        save_checkpoint(place / "checkpoints", 7, {"target": old.target_parameters()}, {})
        (place / "config.json").write_text(replace(config, init=None).to_json())
    else:
        place.mkdir()
        (save_lora(trained, place, "lora") if kind == "lora" else save_student(old, place, trained.grid))
    check_start(new, config)
    lora = initial_lora(new, config, print)
    new.add_student(train, rank=4, alpha=4.0)
    start_as(new, config, lora)
    for parameters in (new.student_parameters(), new.target_parameters()):
        for name, value in old.target_parameters().items():
            assert torch.equal(parameters[name], value), name
    if kind.endswith("run"):
        file = place / "checkpoints" / "step-00000007" / "target.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\xff")
        with pytest.raises(UserError, match="is not what was written, by its SHA-256"):
            start_as(new, config, lora)


@pytest.mark.parametrize("form", ["plain beside fp16", "fp16", "shards", "shards of fp16"])
def test_of_a_students_folder_the_network_alone_is_read(make_backbone, config, perturb, tmp_path, form):
    """Once, whole or in shards; what other variant lies beside it counts for nothing."""
    old, new, place = make_backbone("full"), make_backbone(), tmp_path / "student"
    perturb(old.target_parameters())
    save_student(old, place, Trained(old, replace(config, train="full"), 7).grid)
    folder, half = place / "unet", form.endswith("fp16")
    network = type(old.network).from_pretrained(folder)
    if form == "plain beside fp16":
        new.network.half().save_pretrained(folder, variant="fp16")  # the teacher's, without an input for ω
    else:
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        shards = {"max_shard_size": "200KB"} if form.startswith("shards") else {}
        (network.half() if half else network).save_pretrained(folder, variant="fp16" if half else None, **shards)
    assert len([*folder.glob("*-of-*.safetensors")]) > 1 or not form.startswith("shards")
    for name in ("vae", "text_encoder", "tokenizer"):
        shutil.rmtree(place / name)
    config, new = replace(config, train="full", init=str(place)), make_backbone()
    check_start(new, config)
    new.add_student("full")
    start_as(new, config, {})
    for parameters in (new.student_parameters(), new.target_parameters()):
        for name, value in old.target_parameters().items():
            expected = value if form in ("plain beside fp16", "shards") else value.half().float()
            assert torch.equal(parameters[name], expected), name


@pytest.mark.parametrize(("was", "now"), [("bf16", "fp16"), ("fp16", "fp32"), ("fp32", "bf16")])
def test_a_student_starts_as_one_trained_in_another_precision(
    make_backbone, teacher_folders, config, tmp_path, was, now
):
    """Which rounds the same teacher's weights otherwise."""
    before, config = replace(config, precision=was), replace(config, precision=now, init=str(tmp_path / "old"))
    version = load_backbone(teacher_folders["sd1"], before.dtype).version
    target = make_backbone("lora").target_parameters()
    save_checkpoint(tmp_path / "old" / "checkpoints", 7, {"target": target}, {"teacher": version})
    (tmp_path / "old" / "config.json").write_text(before.to_json())
    check_start(load_backbone(teacher_folders["sd1"], config.dtype), config)


def test_a_loras_update_is_kept_under_another_scale(make_backbone, config, perturb, tmp_path):
    old, new = make_backbone(), make_backbone()
    old.add_student("lora", rank=4, alpha=8.0)
    perturb(old.target_parameters())
    save_lora(Trained(old, replace(config, lora_alpha=8.0), 7), tmp_path, "lora")
    config = replace(config, lora_alpha=2.0, init=str(tmp_path))
    lora = initial_lora(new, config, print)
    new.add_student("lora", rank=4, alpha=2.0)
    start_as(new, config, lora)
    pairs = zip(old.adapters.merged_state("target"), new.adapters.merged_state("student"), strict=True)
    for (name, mine), (_, theirs) in pairs:
        torch.testing.assert_close(mine, theirs, msg=name)


@pytest.mark.parametrize(("style", "scale"), [("diffusers", 1), ("kohya", 2)])
def test_a_lora_of_another_program_is_a_start(make_backbone, config, style_lora, tmp_path, style, scale):
    """Of rank 2 on attention, in diffusers' names, which tell no α, and in kohya's with an α of 4."""
    file, new = style_lora("sd1"), make_backbone()
    if style == "kohya":
        file = kohya(file, tmp_path / "kohya.safetensors")
    config = replace(config, init=str(file), lora_alpha=8.0)
    check_start(new, config)
    before = {name: value.clone() for name, value in new.network.state_dict().items()}
    lora = initial_lora(new, config, print)
    after = new.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    new.add_student("lora", rank=4, alpha=8.0)
    start_as(new, config, lora)
    merged = load_backbone(TeacherSource(teacher=config.teacher, teacher_lora=(f"{style_lora('sd1')}:{scale}",)))
    for model in ("student", "target"):
        mine = dict(new.adapters.merged_state(model))
        for name, value in merged.network.state_dict().items():
            torch.testing.assert_close(mine[name], value, msg=name)
    with pytest.raises(UserError, match="has rank 2 on 16 of the student's layers; give --lora-rank 2"):
        check_start(make_backbone(), replace(config, lora_rank=1))
    for check in (check_start, lambda *given: initial_lora(*given, print)):
        with pytest.raises(UserError, match=r"is a LoRA of another kind of teacher|names no layer of this teacher"):
            check(make_backbone(family="sd3"), config)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_teacher_takes_a_lora_as_a_start(teacher_folders, config, style_lora, kind):
    """Its weights have other shapes than the layers that they are of."""
    backbone = load_backbone(teacher_folders["sd3"], quantized=kind)
    config = replace(config, teacher=str(teacher_folders["sd3"]), init=str(style_lora("sd3")))
    check_start(backbone, config)
    lora = initial_lora(backbone, config, print)
    backbone.add_student("lora", rank=4, alpha=4.0)
    start_as(backbone, config, lora)
    assert len(lora) == len(load_file(config.init)) == 16, "two tensors a layer"
    for name, value in lora.items():
        assert torch.equal(backbone.student_parameters()[name][tuple(map(slice, value.shape))].data, value), name


@pytest.mark.parametrize("changes", [{"lora_rank": 8}, {"lora_variant": "rslora"}], ids=str)
def test_a_lora_of_another_kind_is_refused_before_anything_is_written(
    make_backbone, config, tmp_path, changes, command_line
):
    (tmp_path / "old").mkdir()
    save_lora(Trained(make_backbone("lora"), config, 7), tmp_path / "old", "lora")
    given = {"teacher": config.teacher, "data": "mini", "out": config.out, "init": tmp_path / "old"} | changes
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    for more in ([], ["--dry-run"]):
        code, _, said = command_line("distill", "sd15", *flags, *more)
        assert (code, "is a lora of rank 4; give --lora-rank 4" in " ".join(said.split())) == (2, True)
    assert not config.out.exists()


@pytest.fixture
def refused(command_line, tmp_path):
    """`refused(teacher, train, init, *said)`: a run and its dry run say so in a line, and leave no folder."""

    def check(teacher, train, init, *said):
        flags = ["--teacher", teacher, "--data", tmp_path, "--out", tmp_path / "new", "--train", train, "--init", init]
        flags += ["--lora-rank", 4] if train == "lora" else ["--guidance-min", 4, "--guidance-max", 4]
        for more in ([], ["--dry-run"]):
            code, _, error = command_line("distill", *flags, *more)
            error = " ".join(error.split())
            assert (code, [part for part in said if part not in error]) == (2, []), error
        assert not (tmp_path / "new").exists()

    (tmp_path / "picture.txt").write_text("a cat")
    Image.new("RGB", (16, 16)).save(tmp_path / "picture.png")
    return check


def kohya(file, to):
    """A U-Net's LoRA file in kohya's names, with an α of 4."""
    tensors = {}
    for key, value in load_file(file).items():
        layer, _, end = key.removeprefix("unet.").rpartition(".lora_")
        name = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{name}.lora_{'down' if end[0] == 'A' else 'up'}.weight"] = value
        tensors[f"{name}.alpha"] = torch.tensor(4.0)
    save_file(tensors, to)
    return to


@pytest.mark.parametrize("other", ["flux", "sdxl", "kohya of sdxl", "sd3"])
def test_a_lora_of_another_family_is_refused_by_a_dry_run_too(refused, teacher_folders, style_lora, tmp_path, other):
    file = style_lora(other.rpartition(" ")[2])
    file = kohya(file, tmp_path / "kohya.safetensors") if other.startswith("kohya") else file
    refused(teacher_folders["sd1"], "lora", file, str(file), "is a LoRA of another kind of teacher; give one of this")


@pytest.mark.parametrize("family", ["sd1 of wider text", "pixart", "sdxl"])
def test_an_exported_lora_of_other_layers_or_sizes_is_refused_by_a_dry_run_too(
    refused, make_backbone, config, teacher_folders, tmp_path, family
):
    """SD2's layers have SD1's names, and other sizes where they read its wider text."""
    if wider := family.endswith("text"):
        tiny_sd(tmp_path / "wider", cross_attention_dim=48)
    old = load_backbone(tmp_path / "wider") if wider else make_backbone(family=family)
    old.add_student("lora", rank=4, alpha=4.0)
    (tmp_path / "lora").mkdir()
    save_lora(Trained(old, config, 7), tmp_path / "lora", "lora")
    refused(teacher_folders["sd1"], "lora", tmp_path / "lora", "is a LoRA of another kind of teacher")


def test_a_whole_pipeline_is_refused_where_a_lora_is_trained_and_a_loras_where_a_whole_one_is(
    refused, make_backbone, config, teacher_folders, tmp_path
):
    """The pipeline that a LoRA run ends with has the layers of its teacher, and none for ω."""
    old, place = make_backbone("lora"), tmp_path / "student"
    trained = Trained(old, config, 7)
    save_student(old, place, trained.grid)
    (place / STUDENT_INFO).write_text(trained.info.to_json())
    teacher = teacher_folders["sd1"]
    refused(teacher, "lora", place, f"{place} is a whole pipeline; expected --init with a LoRA file")
    refused(teacher, "full", place, "is the pipeline of a LoRA student", "cond_proj", "a LoRA file with --train lora")
    refused(teacher, "full", teacher, "is no full student of this teacher", "cond_proj")
    refused(teacher, "full", teacher_folders["flux"], "is no full student of this teacher")


def test_a_full_student_that_was_cut_short_is_refused(refused, make_backbone, config, teacher_folders, tmp_path):
    old, place = make_backbone("full"), tmp_path / "student"
    save_student(old, place, Trained(old, replace(config, train="full"), 7).grid)
    (file,) = (place / "unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    refused(teacher_folders["sd1"], "full", place, f"{file} cannot be read")
    file.rename(file.with_suffix(".bin"))
    refused(teacher_folders["sd1"], "full", place, f"{place} has no unet in .safetensors")


def test_parts_of_a_checkpoint_and_critics_are_no_start(
    refused, make_backbone, config, teacher_folders, tmp_path, monkeypatch
):
    backbone = make_backbone("lora", critic_rank=4)
    parts = {"target": backbone.target_parameters(), "critic": backbone.critic_parameters()}
    saved = save_checkpoint(tmp_path / "old" / "checkpoints", 7, parts, {})
    (tmp_path / "old" / "config.json").write_text(config.to_json())
    teacher = teacher_folders["sd1"]
    monkeypatch.chdir(saved)
    refused(teacher, "lora", "target.safetensors", f"give the run that it is of, {tmp_path / 'old'}, as --init")
    refused(teacher, "lora", saved / "target.safetensors", f"give the run that it is of, {tmp_path / 'old'}, as --init")
    shutil.copy(saved / "critic.safetensors", tmp_path / "critic.safetensors")
    refused(teacher, "lora", tmp_path / "critic.safetensors", "so it is a critic's; give the LoRA of a student")
    for train in ("lora", "full"):
        other, run = make_backbone(train, family="sd3"), tmp_path / train
        save_checkpoint(run / "checkpoints", 7, {"target": other.target_parameters()}, {})
        changes = {"precision": "bf16"} | ({"lora_rank": 64, "lora_alpha": None} if train == "full" else {})
        (run / "config.json").write_text(replace(config, train=train, **changes).to_json())
        refused(teacher, train, run, f"{run} was distilled from another kind of teacher")


BAD = {
    "nothing there": ({"init": "nowhere"}, "nothing at nowhere"),
    "both": ({"init": "a", "continue_from": "b"}, "leave one out"),
    "no run": ({"continue_from": "FOLDER"}, "is no run; expected one as --continue-from"),
    "another rank": ({"init": "RUN", "lora_rank": 8}, "has lora_rank 4 and not 8, alpha 4.0 and not 8.0"),
    "another critic": ({"continue_from": "RUN", "critic": "none"}, "has critic lora and not none"),
    "no checkpoint": ({"init": "EMPTY"}, "has no checkpoint yet"),
    "no LoRA": ({"init": "FOLDER"}, "no LoRA file at"),
    "no student": ({"init": "FOLDER", "train": "full"}, "is no student's folder"),
    "two LoRAs": ({"init": "TWO"}, "has 2 .safetensors files; expected one"),
    "another teacher": ({"continue_from": "OTHER"}, "was distilled from another teacher"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD.keys())
def test_what_a_run_cannot_start_as(make_backbone, config, tmp_path, changes, said):
    backbone = make_backbone("lora")
    for name in ("RUN", "EMPTY", "OTHER"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config.to_json())
    for name in ("FOLDER", "TWO"):
        (tmp_path / name).mkdir()
    for name in "ab":
        save_file({"x": torch.zeros(1)}, tmp_path / "TWO" / f"{name}.safetensors")
    for name, state in (("RUN", {}), ("OTHER", {"teacher": "another"})):
        save_checkpoint(tmp_path / name / "checkpoints", 1, {"target": backbone.target_parameters()}, state)
    places = {name: str(tmp_path / value) for name, value in changes.items() if str(value).isupper()}
    with pytest.raises(UserError, match=said):
        check_start(backbone, replace(config, **({"lora_alpha": None} | changes | places)))
