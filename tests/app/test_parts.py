"""What stands behind the page, without a browser: which runs it finds, what it draws first, and what it gives up."""

import functools
import json
import os
import shutil
import sys
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler
from PIL import Image
from safetensors import SafetensorError

from scott.app import watch_view
from scott.app.draw_view import _draw, _remember
from scott.app.drawing import Column, Drawer, Order, Picture, _omega, _teacher_name
from scott.app.figures import problem, varieties
from scott.app.models import Models, Stock, _pipeline_and_lora, teacher_source
from scott.app.page import build
from scott.app.plan_view import plan_view
from scott.app.watch_view import _summary, validation_grids
from scott.commands.app import found_runs
from scott.commands.plan import planned
from scott.errors import UserError
from scott.evaluation.stock import PipelineSampler, load_pipeline
from scott.export.snippet import pipeline_snippet, teacher_snippet
from scott.recipes.configs import mini
from scott.samplers import TeacherSampler
from scott.teacher_source import TeacherSource
from scott.teachers import load_backbone

ORDER = Order(1.0, "a fox", [3], [], [], [25, 50])


@dataclass(frozen=True)
class Sampler:
    """Draws its number of steps as grey."""

    steps: int
    guidance: float = 3.0
    network_calls: int = 1

    def __call__(self, prompts, seed):
        return torch.full((1, 3, 2, 2), self.steps / 255)


@pytest.fixture
def drawer(monkeypatch):
    """A drawer of two columns, of 1 and 2 steps."""
    columns = [Column("teacher", "teacher", Sampler(n)) for n in (1, 2)]
    monkeypatch.setattr(Drawer, "columns", lambda self, order: iter(columns))
    return Drawer(Models([]))


def test_a_newer_order_has_the_older_one_given_up(drawer):
    older = drawer.draw(ORDER, "reader")
    assert next(older).image.getpixel((0, 0)) == (1, 1, 1)
    assert next(drawer.draw(ORDER, "another reader")).seed == 3
    newer = drawer.draw(replace(ORDER, time=2.0), "reader")
    assert next(newer).steps == 1
    assert list(older) == []
    early = replace(ORDER, prompt="a fish")
    assert list(drawer.draw(early, "reader")) == [], "it was asked for earlier and arrived later"
    assert [picture.steps for picture in newer] == [2]


def test_draw_is_not_given_up_for_the_typing_that_its_new_seed_is(drawer):
    """Which may arrive before it, and leaves what is slow undrawn."""
    drawer.seconds["teacher", 2] = 60.0
    assert [bool(picture.image) for picture in drawer.draw(replace(ORDER, time=2.0), "reader", live=True)] == [
        True,
        False,
    ]
    assert all(picture.image for picture in drawer.draw(ORDER, "reader"))
    between = replace(ORDER, time=1.5, prompt="a fish")
    assert list(drawer.draw(between, "reader", live=True)) == []


def test_while_typing_nothing_is_drawn_twice_and_nothing_slow(drawer):
    assert len(list(drawer.draw(ORDER, "reader", live=True))) == 2
    assert list(drawer.draw(replace(ORDER, time=2.0), "reader", live=True)) == []
    drawer.seconds["teacher", 2] = 60.0
    fast, slow = drawer.draw(replace(ORDER, time=3.0, prompt="a fish"), "reader", live=True)
    assert fast.image is not None
    assert (slow.image, slow.seconds) == (None, 60.0)
    assert all(picture.image for picture in drawer.draw(replace(ORDER, time=4.0), "reader"))


def test_an_order_that_draws_nothing_or_was_given_up_leaves_the_page_as_it_is(drawer):
    """gradio says an event's last word again as it ends, and empties the output of one that said none."""

    def draws(time):
        values = (time, "a fox", 3, 1, [], [], [25], True, 0.0)
        return _draw(drawer, SimpleNamespace(session_hash="reader"), *values, live=True)

    older = draws(1.0)
    assert "1 picture drawn" in next(older)
    assert list(draws(2.0)) == [gr.skip()], "it was drawn already"
    assert len(list(drawer.draw(replace(ORDER, time=3.0), "reader"))) == 2
    assert list(older) == [gr.skip()], "given up"


@pytest.mark.parametrize("teacher_steps", [[], [25]])
def test_what_is_chosen_and_cannot_draw_is_said(monkeypatch, teacher_steps):
    """A pipeline of many steps, and steps of students alone: the pictures of an older prompt would stay."""
    drawer, values = Drawer(Models([])), (1.0, "a fox", 3, 1, ["many-step"], [1, 2, 4], teacher_steps, True, 0.0)
    monkeypatch.setattr(
        Drawer, "columns", lambda self, order: iter([Column("p", "pipeline", Sampler(n)) for n in order.teacher_steps])
    )
    first, *_ = _draw(drawer, SimpleNamespace(session_hash="reader"), *values)
    assert ("nothing is chosen that could draw" in first) == (not teacher_steps)


def test_what_could_not_be_drawn_is_not_remembered():
    for asked in ((" ", 5), ("x", -5), ("x", 2**32)):
        assert _remember(["1: a"], asked)[0] == ["1: a"]
    assert _remember(["1: a"], ("x", 5))[0] == ["5: x", "1: a"]


@pytest.mark.parametrize(
    "change", [{"prompt": " "}, {"prompt": "\ud800"}, {"seeds": [-1]}, {"seeds": range(2**32 - 1, 2**32 + 1)}]
)
def test_what_cannot_be_drawn_is_refused(change):
    with pytest.raises(UserError, match=r"got no prompt|not UTF-8|expected 0 to"):
        replace(ORDER, **change)


def test_without_a_student_the_embedded_teacher_draws():
    assert [column.key for column in Drawer(Models([])).columns(ORDER)] == [
        ("teacher mini", 25),
        ("teacher mini", 50),
    ]


@pytest.fixture(scope="module")
def few_step(teacher_folders, tmp_path_factory):
    """A pipeline made elsewhere, with an LCMScheduler and without scott's word on what it is."""
    pipeline = DiffusionPipeline.from_pretrained(teacher_folders["sd1"])
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(folder := tmp_path_factory.mktemp("few-step"))
    return str(folder)


def drawn_by_its_code(picture, folder, monkeypatch):
    """How far the picture is from what its own lines of diffusers draw."""
    monkeypatch.chdir(folder)
    exec(compile(picture.code, "snippet", "exec"), {})
    with Image.open("picture.png") as stock:
        return np.abs(np.asarray(stock).astype(int) - np.asarray(picture.image)).max()


def test_few_step_pipelines_made_elsewhere_are_drawn_and_others_in_a_teachers_steps(
    few_step, teacher_folders, style_lora, tmp_path, monkeypatch
):
    """A LoRA file beside a pipeline too, by its name; each as its own lines draw it in stock diffusers."""
    lora, flow = (f"{teacher_folders[family]}+{style_lora(family)}" for family in ("sd1", "sd3"))
    loras = [tmp_path / f"{family}-lcm-lora.safetensors" for family in ("sd1", "sd3")]
    for family, file in zip(("sd1", "sd3"), loras, strict=True):
        shutil.copy(style_lora(family), file)
    lcm, flow_lcm = (f"{teacher_folders[family]}+{file}" for family, file in zip(("sd1", "sd3"), loras, strict=True))
    names = [few_step, lcm, flow_lcm, lora, flow, str(teacher_folders["sd1"]), str(teacher_folders["sana"])]
    pictures = list(Drawer(Models(names)).draw(Order(1.0, "a cat", [3], names, [2], [3]), "reader"))
    assert [(picture.who, picture.steps, picture.calls) for picture in pictures] == [
        (few_step, 2, 2),
        (lcm, 2, 2),
        (flow_lcm, 2, 2),
        (lora, 3, 6),
        (flow, 3, 6),
        (names[5], 3, 6),
        (names[6], 3, 6),
    ]
    assert [drawn_by_its_code(picture, tmp_path, monkeypatch) for picture in pictures] == [0] * 7


class Called(Exception):
    """A pipeline was, and has drawn nothing."""


@pytest.mark.parametrize("family", ["sd1", "pixart", "sana", "flux", "qwen-image", "z-image"])
@pytest.mark.parametrize("omega", [None, 1.0, 2.5])
def test_a_pipelines_lines_ask_it_for_what_its_sampler_does(family, omega, teacher_folders, monkeypatch):
    folder, calls = str(teacher_folders[family]), []
    pipeline = load_pipeline(folder, None, None, torch.float32, torch.device("cpu"))

    @functools.wraps(type(pipeline).__call__)
    def record(self, **options):
        calls.append(options)
        raise Called

    monkeypatch.setattr(type(pipeline), "__call__", record)
    with pytest.raises(Called):
        PipelineSampler(pipeline, 2, omega)(["a cat"], 3)
    with pytest.raises(Called):
        exec(pipeline_snippet(pipeline, folder, "", prompt="a cat", steps=2, seed=3, guidance=omega), {})
    sampled, own = calls
    assert own | {"prompt": ["a cat"], "output_type": "pt"} == sampled


@pytest.mark.parametrize(("family", "omega"), [("sd3", 1.0), ("flux", None)])
def test_a_few_step_network_that_takes_omega_is_drawn_at_its_pipelines_own(family, omega, teacher_folders):
    """FLUX's call has 3.5; where a network takes none, it is built in."""
    made = load_pipeline(
        str(teacher_folders[family]), "FlowMatchLCMScheduler", None, torch.float32, torch.device("cpu")
    )
    assert Stock(family, "", made).sampler(2).guidance == omega


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("te+st", ("te+st", "")),
        ("te+st+style.safetensors", ("te+st", "style.safetensors")),
        ("te+st+owner/a+b", ("te+st", "owner/a+b")),
        ("te+style", ("te", "style")),
        ("owner/model+owner/a+b", ("owner/model", "owner/a+b")),
        ("owner/model", ("owner/model", "")),
    ],
)
def test_a_plus_in_a_folders_name_is_part_of_it(tmp_path, monkeypatch, name, expected):
    monkeypatch.chdir(tmp_path)
    for folder in ("te", "te+st"):
        (tmp_path / folder).mkdir()
    assert _pipeline_and_lora(name) == expected


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        *(("sd1", {}), ("sdxl", {}), ("pixart", {}), ("sd3", {})),
        *(("sd1", {"thresholding": True}), ("sd3", {"use_exponential_sigmas": True})),
        ("chroma", {"use_beta_sigmas": True}),
        *(("flux", {"use_karras_sigmas": True}), ("flux", {"stochastic_sampling": True})),
    ],
)
def test_a_teachers_lines_draw_its_picture(family, scheduler, teacher_folders, tmp_path, monkeypatch):
    """Whatever its own scheduler would make of its times, which the teacher's sampler spaces evenly."""
    folder = shutil.copytree(teacher_folders[family], tmp_path / "teacher")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | scheduler))
    teacher = TeacherSource(teacher=str(folder))
    backbone = load_backbone(teacher)
    if backbone.own_size:  # which its lines say, and is 1,024 pixels elsewhere
        backbone.resize(64)
    code = partial(teacher_snippet, teacher, backbone)
    column = Column("teacher", "teacher", TeacherSampler(backbone, 3, 2.5), code)
    monkeypatch.setattr(Drawer, "columns", lambda self, order: iter([column]))
    (picture,) = Drawer(Models([])).draw(replace(ORDER, prompt="a cat"), "reader")
    assert drawn_by_its_code(picture, tmp_path, monkeypatch) <= 1


def test_only_the_newest_networks_stay(monkeypatch):
    loaded = []
    monkeypatch.setattr(Models, "_load", lambda self, name, made: loaded.append(name) or name)
    models = Models(["a", "b", "c"], kept=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        models.student(name)
    assert loaded == ["a", "b", "c", "b"]


def made_run(folder, **info):
    """A run with what says that it has a student."""
    (folder / "student").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(mini(out=folder).to_json())
    (folder / "student" / "scott.json").write_text(json.dumps(info))
    return str(folder)


def test_a_student_is_loaded_again_once_its_run_was_trained_on(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(Models, "_load", lambda self, name, made: loaded.append(made))
    models = Models([name := made_run(tmp_path / "run", updates=1)])
    models.student(name)
    models.student(name)
    made_run(tmp_path / "run", updates=2)
    os.utime(tmp_path / "run" / "student" / "scott.json", ns=(0, 0))
    models.student(name)
    assert len(loaded) == 2


def test_runs_that_come_and_go_while_the_page_is_open(tmp_path):
    """Where none was named, those that are found; of a name that is gone the hub is not asked."""
    found, named = Models(lambda: found_runs(tmp_path)), Models([str(tmp_path / "run"), "owner/student"])
    assert (found.students, named.students) == ([], [str(tmp_path / "run"), "owner/student"])
    name = made_run(tmp_path / "run")
    assert (found.students, named.students) == ([name], [name, "owner/student"])
    shutil.rmtree(tmp_path / "run")
    assert (found.students, named.students) == ([], ["owner/student"])
    with pytest.raises(UserError, match="is there no more"):
        named.student(name)


@pytest.mark.parametrize("omegas", [None, (3.0, 3.0), (1.0, 3.0)])
def test_a_page_is_built_whatever_its_students_take(monkeypatch, omegas):
    """gradio refuses a slider without a range, be it hidden."""
    found = omegas and (*omegas, omegas[0])
    monkeypatch.setattr("scott.app.draw_view.omega_range", lambda students: found)
    build(Models([]), planned).close()


def test_seeds_of_teachers_at_other_omegas_or_sizes_are_apart():
    picture = Picture("teacher mini", "teacher", 2, 2.0, 4, 0.1, "a cat", 0, Image.new("RGB", (2, 2)))
    text = varieties([replace(picture, omega=omega, seed=seed) for seed in (0, 1) for omega in (2.0, 3.0)])
    assert text.count("<h2>teacher mini, 2 steps, ω 2: 0.20 s for 2</h2>") == 1
    assert text.count("<h2>teacher mini, 2 steps, ω 3: 0.20 s for 2</h2>") == 1
    plain = TeacherSource(teacher="mini")
    others = [(plain, 32), (replace(plain, teacher_lora=("a/ink.safetensors",)), None)]
    assert [_teacher_name(*other) for other in [(plain, None), *others]] == [
        "teacher mini",
        "teacher mini at 32 pixels",
        "teacher mini + ink",
    ]


def test_an_exports_teacher_is_its_runs_or_the_one_its_card_names(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for folder in (run / "student", elsewhere):
        folder.mkdir(parents=True)
    (run / "config.json").write_text(mini(out=run, teacher_lora=("style.safetensors",)).to_json())
    (elsewhere / "README.md").write_text("---\nbase_model: someone/a-teacher\n---\n\n# A student\n")
    for name in (run, run / "student"):
        assert teacher_source(str(name)) == (TeacherSource(teacher="mini", teacher_lora=("style.safetensors",)), None)
    assert teacher_source(str(elsewhere)) == (TeacherSource(teacher="someone/a-teacher"), None)
    assert teacher_source("someone/a-student") is None
    (elsewhere / "README.md").write_text("---\nbase_model: [\n---\n")
    assert teacher_source(str(elsewhere)) is None, "of a page that is not to be read"


def test_each_student_has_its_own_omega_unless_one_is_chosen():
    class Info:
        takes_guidance, guidance_min, guidance_max = True, 2.0, 4.0

    class Made:
        info = Info()

        def guidance(self, wanted):
            return 3.0

    assert [_omega(Made(), wanted) for wanted in (None, 2.5, 1.0, 9.0)] == [3.0, 2.5, 2.0, 4.0]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
            "start scott app with --precision fp16",
        ),
        (SafetensorError("Error while deserializing header: header too small"), "header too small"),
        (UserError("got no prompt"), "got no prompt"),
    ],
)
def test_what_goes_wrong_is_a_sentence(error, said):
    assert said in problem(error)
    with pytest.raises(KeyError):
        problem(KeyError("a fault of scott's"))


def test_runs_are_found_the_newest_first_and_read_before_their_first_step(tmp_path):
    for age, name in enumerate(("new", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(mini(out=tmp_path / name, max_steps=7).to_json())
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "other").mkdir()
    found = found_runs(tmp_path)
    assert found == [str(tmp_path / "new"), str(tmp_path / "old")]
    assert (Models(found).runs, Models(found).students) == (found, [])
    said = _summary(tmp_path / "new")
    assert all(text in said for text in ("<td>0</td>", "of 7", "unknown"))
    assert "<svg" not in said
    assert validation_grids(tmp_path / "new") == []
    (tmp_path / "new" / "samples").mkdir()
    (tmp_path / "new" / "samples" / "step-best.png").touch()
    (tmp_path / "new" / "warnings.txt").write_bytes(b"\xff odd\n")
    (tmp_path / "new" / "metrics.jsonl").write_text('{"step": 9, "seconds_per_step": 5.0}\n')
    assert validation_grids(tmp_path / "new") == []
    said = _summary(tmp_path / "new")
    assert "0:00:00" in said, "of a run that is made shorter"
    assert "odd" in said


def test_curves_are_drawn_again_once_there_is_more_to_show(tmp_path, monkeypatch):
    """Not each time that the page asks: of thousands of records that takes a second."""
    calls = []
    monkeypatch.setattr(watch_view, "curves_svg", lambda records: calls.append(len(records)))
    (tmp_path / "config.json").write_text(mini(out=tmp_path).to_json())
    for count in (1, 2):
        with (tmp_path / "metrics.jsonl").open("a") as log:
            log.write('{"step": 1, "consistency": 1.0}\n')
        for _ in range(3):
            assert "consistency loss" in _summary(tmp_path)
        assert calls == [1, 2][:count]


def test_a_name_that_is_nothing_is_one_message(command_line):
    code, _, said = command_line("app", "/nowhere/student")
    assert code == 2
    assert "/nowhere/student" in said
    assert "Traceback" not in said


def test_without_gradio_the_extra_is_named(command_line, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, said = command_line("app")
    assert code == 2
    assert "pip install gradio" in said


def test_a_plan_of_no_number_of_cards_is_one_of_one(teacher_folders):
    with gr.Blocks() as page:
        plan_view(planned)
    (shown,) = {block.fn for block in page.fns.values()}
    assert "Each card holds" in shown("sd15", str(teacher_folders["sd1"]), "lora", 0, None, "RTX 4090", 30)
