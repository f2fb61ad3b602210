"""`scott export` of a run folder: its newest checkpoint's target, in every form; an older export is never lost."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import onnx
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors.torch import load_file, save_file
from tests.export.conftest import SMALL as FEW_BLOCKS
from tests.teachers.published import write_configs

from scott.commands import export as module
from scott.commands.export import export, export_finished, is_exported, load_run
from scott.commands.sample import find_student, load_student
from scott.diffusion.tensors import DTYPES
from scott.errors import UserError
from scott.export import pipeline
from scott.export.card import write_cards
from scott.export.onnx import SMALL
from scott.export.trained import difference, draw_latents
from scott.measured import Measured
from scott.recipes import RECIPES
from scott.targets import target_of
from scott.teacher_source import TeacherSource
from scott.teachers import load_backbone
from scott.teachers.fingerprint import identity
from scott.training.checkpoint import Best, save_checkpoint
from scott.training.config import DistillConfig


@pytest.fixture
def make_run(make_backbone, teacher_folders, perturb, tmp_path):
    """`make_run(train, teacher=None, **changes)`: (run folder as training leaves it, the backbone in memory)."""

    def make(train="lora", teacher=None, **changes):
        backbone = load_backbone(teacher) if teacher else make_backbone(train)
        if teacher:
            torch.manual_seed(1)
            backbone.add_student(train, rank=4, alpha=4.0)
        perturb(backbone.target_parameters())
        out = tmp_path / "run"
        config = DistillConfig(
            teacher=str(teacher or teacher_folders["sd1"]), data="mini", out=out, train=train, lora_rank=4, **changes
        )
        for step, parts in ((1, backbone.student_parameters()), (2, backbone.target_parameters())):
            save_checkpoint(out / "checkpoints", step, {"target": parts}, {})
        (out / "config.json").write_text(config.to_json())
        return out, backbone

    return make


def test_the_newest_checkpoints_target_is_what_is_exported(make_run):
    run, backbone = make_run("full")
    trained = load_run(run)
    assert trained.updates == 2
    expected = draw_latents(backbone, trained.grid, 3.0)
    assert torch.equal(trained.latents(), expected)
    folder = export(run, "diffusers")
    assert folder == run / "student"
    loaded = load_student(str(run))
    assert difference(expected, draw_latents(loaded.backbone, loaded.grid, 3.0)) < 1e-4
    assert json.loads((folder / "scott.json").read_text())["updates"] == 2
    assert (folder / "card.md").read_text() == (run / "card.md").read_text()


def test_a_student_on_the_hub_says_what_it_was_made_for(make_run, tmp_path, monkeypatch):
    """As its folder does: the guidance and the steps it draws at, and its size."""
    run, _ = make_run("full", times="needed", jump=24, substeps=1, resolution=128)
    folder = export(run, "diffusers")
    monkeypatch.setattr("scott.students.hf_hub_download", lambda name, file: str(folder / file))
    monkeypatch.setattr("scott.students.load_backbone", lambda name, dtype: load_backbone(folder, dtype))
    here, there = load_student(str(run)), load_student("me/student")
    assert there.info == here.info
    assert there.backbone.resolution == 128
    assert there.guidance(None) == here.guidance(None)
    for wrong in (lambda: there.guidance(77.0), lambda: there.sampler(3, 3.0)):
        with pytest.raises(UserError, match="student was trained for"):
            wrong()


@pytest.mark.parametrize("offline", [True, False])
def test_a_student_on_the_hub_of_which_nothing_can_be_read(make_run, monkeypatch, capfd, offline):
    """Where it is not known whether scott says something of it, that is said."""
    folder = export(make_run()[0], "diffusers")
    answer = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))
    error = LocalEntryNotFoundError("offline") if offline else RemoteEntryNotFoundError("none", response=answer)

    def download(name, file):
        raise error

    monkeypatch.setattr("scott.students.hf_hub_download", download)
    monkeypatch.setattr("scott.students.load_backbone", lambda name, dtype: load_backbone(folder, dtype))
    assert load_student("me/student").info is None
    assert ("what me/student was made for cannot be read: offline" in capfd.readouterr().out) == offline


def test_a_file_of_weights_beside_a_pipelines_folders_makes_it_no_lora(make_run, tmp_path):
    """Repositories of the hub have both."""
    run, _ = make_run()
    folder = export(run, "diffusers")
    save_file({"a": torch.zeros(1)}, folder / "another.safetensors")
    assert load_student(str(folder)).info is not None
    assert target_of(str(folder), (1,), Measured(), torch.float32).stored is None


def test_the_best_checkpoint_is_exported_when_asked_for(make_run):
    run, _ = make_run()
    with pytest.raises(UserError, match="no best checkpoint yet; train with --validate-every"):
        export(run, "diffusers", best=True)
    assert not (run / "best").exists()
    Best(1, "fid", 1.0).write(run / "checkpoints")
    assert load_run(run, best=True).updates == 1
    export(run, "diffusers")
    folder = export(run, "diffusers", best=True)
    assert folder == run / "best" / "student"
    updates = [json.loads((place / "scott.json").read_text())["updates"] for place in (folder, run / "student")]
    assert updates == [1, 2], "the newest one stays"
    assert (run / "best" / "card.md").is_file()


@pytest.mark.parametrize("kind", ["lora", "kohya"])
def test_a_lora_is_drawn_on_its_teacher(make_run, teacher_folders, kind):
    run, _ = make_run("lora")
    folder = export(run, kind)
    student = find_student(None, str(teacher_folders["sd1"]), str(folder), "torch")
    ours = student.sampler(2, 3.0).latents(["a cat"], 0)
    assert difference(load_run(run).latents(), ours) < 1e-4
    assert 'load_lora_weights("' + kind in (folder / "card.md").read_text()


def test_a_finished_run_leaves_its_exports(make_run):
    run, backbone = make_run("lora")
    config = replace(DistillConfig.load(run / "config.json"), max_steps=2)
    export_finished(config, identity(backbone))
    assert {"student", "lora", "card.md"} <= {path.name for path in run.iterdir()}
    assert not list(run.glob(".*"))
    assert is_exported(config)
    for name in ("student", "lora"):  # either of which may have been deleted
        (run / name).rename(run / "elsewhere")
        assert not is_exported(config)
        (run / "elsewhere").rename(run / name)


def test_a_run_of_fewer_bits_is_exported_in_fp32(make_run):
    """Merged in bf16, the LoRA's small updates would be rounded away, and no comparison would hold."""
    run, backbone = make_run("lora", precision="bf16")
    export_finished(DistillConfig.load(run / "config.json"), identity(backbone))
    student = load_student(str(run))
    assert difference(load_run(run).latents(), draw_latents(student.backbone, student.grid, 3.0)) < 1e-4


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_teacher_that_changed_under_the_run_is_found_out(make_run, teacher_folders, tmp_path, part):
    """Its file rewritten in place, which changes the network that is mapped from it."""
    run, _ = make_run("lora")
    teacher = tmp_path / "teacher"
    shutil.copytree(teacher_folders["sd1"], teacher)
    config = replace(DistillConfig.load(run / "config.json"), teacher=str(teacher))
    (run / "config.json").write_text(config.to_json())
    before = identity(load_backbone(teacher))
    (file,) = (teacher / part).glob("*.safetensors")
    save_file({name: -value for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(UserError, match=f"has another {part} than when the run began; put back"):
        export_finished(config, before)
    assert not (run / "student").exists()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kind", ["lora", "checkpoint"])
def test_a_teacher_that_was_moved_is_named_and_another_refused(make_run, teacher_folders, tmp_path, kind, precision):
    run, _ = make_run("lora")
    here, other = tmp_path / "here", tmp_path / "other"
    shutil.copytree(teacher_folders["sd1"], here)
    config = replace(DistillConfig.load(run / "config.json"), teacher=str(tmp_path / "gone"), precision=precision)
    (run / "config.json").write_text(config.to_json())
    state = run / "checkpoints" / "step-00000002" / "state.json"
    version = load_backbone(here, config.dtype).version
    state.write_text(json.dumps(json.loads(state.read_text()) | {"teacher": version}))
    with pytest.raises(UserError, match=r"no teacher at .*gone.*if the teacher of .*run was moved, give --teacher"):
        export(run, kind)
    shutil.copytree(here, other)
    (file,) = (other / "unet").glob("*.safetensors")
    save_file({name: 1.1 * value for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"other is not the teacher that .*run distilled"):
        export(run, kind, place=str(other))
    if precision == "bf16":  # reads back and compares, which takes its time
        (here / "README.md").write_text("---\nlicense: openrail\n---\n")
        folder = export(run, kind, place=str(here))
        moved = DistillConfig.load(run / "config.json")
        assert moved == replace(config, teacher=str(here))
        write_cards(run, moved)  # as what measures the run does
        page = (folder / "README.md").read_text()
        assert "gone" not in page
        assert 'license: "openrail"' in page
    else:
        assert load_run(run, place=str(here)).updates == 2


@pytest.mark.parametrize("harm", ["weights", "schedule"])
def test_another_teacher_of_a_run_with_a_lora_merged_in_is_refused(
    make_run, teacher_folders, style_lora, tmp_path, monkeypatch, harm
):
    run, _ = make_run("lora")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher_folders["sd1"], "here/it")
    config = replace(DistillConfig.load(run / "config.json"), teacher="here/it", teacher_lora=(str(style_lora("sd1")),))
    (run / "config.json").write_text(config.to_json())
    state = run / "checkpoints" / "step-00000002" / "state.json"
    teacher = load_backbone(TeacherSource.of(config))
    said = {"teacher": "as another machine rounds", "signs": teacher.signs, "schedule": repr(teacher.schedule)}
    state.write_text(json.dumps(json.loads(state.read_text()) | said))
    assert load_run(run, place="here/it").config.teacher == "./here/it", "no place on the hub"
    (file,) = Path("here/it/unet").glob("*.safetensors")
    if harm == "weights":
        save_file({name: -value for name, value in load_file(file).items()}, file, {"format": "pt"})
    else:
        settings = Path("here/it/scheduler/scheduler_config.json")
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"beta_end": 0.02}))
    with pytest.raises(
        UserError, match={"weights": "is not the teacher that", "schedule": "has another schedule"}[harm]
    ):
        load_run(run)


def test_a_run_whose_checkpoints_are_gone_is_not_said_to_have_none_yet(make_run):
    run, _ = make_run()
    export(run, "diffusers")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="its checkpoints are gone, of which exports are made; put them back"):
        export(run, "checkpoint")


@pytest.fixture(scope="module")
def small_teacher(teacher_folders, tmp_path_factory):
    """SD1.5's pipeline with a block a side, but with attention: to trace a graph takes by its depth."""
    pipe, folder = DiffusionPipeline.from_pretrained(teacher_folders["sd1"]), tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    for name, options in (FEW_BLOCKS | {"unet": FEW_BLOCKS["unet"] | blocks}).items():
        if name in pipe.components:
            setattr(pipe, name, type(pipe.components[name]).from_config({**pipe.components[name].config, **options}))
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("precision", "train"), [("fp16", "full"), ("bf16", "lora")])
def test_half_precision_is_what_is_on_disk(make_run, small_teacher, monkeypatch, precision, train):
    """And what is read back is the student with these very weights: far closer to it than to the one in fp32."""
    run, _ = make_run(train, small_teacher)
    off, of_pair = [], pipeline.difference
    monkeypatch.setattr(pipeline, "difference", lambda *pair: off.append(of_pair(*pair)) or off[-1])
    folder = export(run, "diffusers", precision=precision)
    rounded = load_student(str(run))
    assert max(off) < 1e-4 < difference(load_run(run).latents(), draw_latents(rounded.backbone, rounded.grid, 3.0)) / 5
    for file in folder.rglob("*.safetensors"):
        kinds = {value.dtype for value in load_file(file).values() if value.is_floating_point()}
        assert kinds == {DTYPES[precision]}
    kind = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    before = {file: file.stat().st_ino for file in folder.rglob("*.safetensors")}
    files = [*export(run, "onnx", precision=precision).rglob("*.onnx")]  # it reads back what they draw
    assert {file: file.stat().st_ino for file in before} == before, "it is made of a pipeline of its own"
    assert not list((run / "onnx").rglob("*.safetensors"))
    graphs = [onnx.load(file, load_external_data=False).graph for file in files]
    weights = [weight for graph in graphs for weight in graph.initializer if math.prod(weight.dims) >= SMALL]
    assert {weight.data_type for weight in weights} == {kind}
    takes = {node.op_type for graph in graphs for node in graph.node for name in node.input if name.endswith(".stored")}
    assert takes == {"Cast"}


@pytest.mark.parametrize("family", ["flux", "chroma", "flux2-klein", "qwen-image", "sana", "z-image"])
def test_onnx_of_what_cannot_be_exported_is_refused_before_any_work(family, tmp_path):
    folder = write_configs(family, tmp_path / "teacher")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(RECIPES[family](teacher=str(folder), data="d", out=run).to_json())
    with pytest.raises(UserError, match=r"got --to onnx for a \w+, which cannot be exported; use --to diffusers"):
        export(run, "onnx")
    assert [file.name for file in run.iterdir()] == ["config.json"]


def test_an_export_that_differs_leaves_the_older_one(make_run, monkeypatch):
    run, _ = make_run("full")
    before = (export(run, "diffusers") / "model_index.json").stat().st_mtime_ns
    monkeypatch.setattr(pipeline, "difference", lambda expected, got: 0.5)
    with pytest.raises(UserError, match="of a spread off"):
        export(run, "diffusers")
    assert (run / "student" / "model_index.json").stat().st_mtime_ns == before


def test_what_cannot_be_exported_is_said_before_anything_is_loaded(make_run, tmp_path, monkeypatch):
    run, _ = make_run("full")
    monkeypatch.setattr(module, "load_backbone", None)
    for kind in ("lora", "kohya"):
        with pytest.raises(UserError, match="use --to diffusers"):
            export(run, kind)
    with pytest.raises(UserError, match="expected one of"):
        export(run, "gguf")
    with pytest.raises(UserError, match="expected the run folder"):
        export(tmp_path / "nowhere", "diffusers")
    assert {path.name for path in run.iterdir()} == {"checkpoints", "config.json"}


def test_a_run_without_a_checkpoint_or_with_anothers(make_run, tmp_path):
    run, _ = make_run("full")
    config = DistillConfig.load(run / "config.json")
    (run / "config.json").write_text(replace(config, train="lora").to_json())
    with pytest.raises(UserError, match="does not fit"):
        load_run(run)
    file = run / "checkpoints" / "step-00000002" / "target.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match="is not what was written, by its SHA-256"):
        load_run(run)
    file.write_bytes(b"half")
    with pytest.raises(UserError, match="cannot be read"):
        load_run(run)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text(config.to_json())
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_run(tmp_path / "new")
