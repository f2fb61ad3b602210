"""A run that starts as another student, or goes on from another run under new rates."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.runs import STEPS, final

from scott.commands.initial import check_start, initial_lora, start_as
from scott.errors import UserError
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
        tensors = {}
        for key, value in load_file(file).items():
            layer, _, end = key.removeprefix("unet.").rpartition(".lora_")
            name = f"lora_unet_{layer.replace('.', '_')}"
            tensors[f"{name}.lora_{'down' if end[0] == 'A' else 'up'}.weight"] = value
            tensors[f"{name}.alpha"] = torch.tensor(4.0)
        file = tmp_path / "kohya.safetensors"
        save_file(tensors, file)
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
        initial_lora(make_backbone(), replace(config, lora_rank=1), print)
    with pytest.raises(UserError, match=r"is a LoRA of another kind of teacher|names no layer of this teacher"):
        initial_lora(make_backbone(family="sd3"), config, print)


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


BAD = {
    "nothing there": ({"init": "nowhere"}, "nothing at nowhere"),
    "both": ({"init": "a", "continue_from": "b"}, "leave one out"),
    "no run": ({"continue_from": "FOLDER"}, "is no run; expected one as --continue-from"),
    "another rank": ({"init": "RUN", "lora_rank": 8}, "has lora_rank 4 and not 8, alpha 4.0 and not 8.0"),
    "another critic": ({"continue_from": "RUN", "critic": "none"}, "has critic lora and not none"),
    "no checkpoint": ({"init": "EMPTY"}, "has no checkpoint yet"),
    "no LoRA": ({"init": "FOLDER"}, "no LoRA file at"),
    "no student": ({"init": "FOLDER", "train": "full"}, "is no student's folder"),
    "another teacher": ({"continue_from": "OTHER"}, "was distilled from another teacher"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD.keys())
def test_what_a_run_cannot_start_as(make_backbone, config, tmp_path, changes, said):
    backbone = make_backbone("lora")
    for name in ("RUN", "EMPTY", "OTHER"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config.to_json())
    (tmp_path / "FOLDER").mkdir()
    for name, state in (("RUN", {}), ("OTHER", {"teacher": "another"})):
        save_checkpoint(tmp_path / name / "checkpoints", 1, {"target": backbone.target_parameters()}, state)
    places = {name: str(tmp_path / value) for name, value in changes.items() if str(value).isupper()}
    with pytest.raises(UserError, match=said):
        check_start(backbone, replace(config, **({"lora_alpha": None} | changes | places)))
