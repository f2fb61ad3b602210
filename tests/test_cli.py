"""The command line as a user meets it: a run from nothing to pictures, and what bad input gets."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from tests.training.launch import here
from torch import OutOfMemoryError

from scott.arguments import COMMANDS, Prepare
from scott.cli import _what_holds_less, parse
from scott.commands.measuring import Evaluate
from scott.commands.options import lists_of
from scott.errors import UserError, one_line
from scott.export.info import StudentInfo
from scott.measured import Measured
from scott.mini.embedded import TEACHER
from scott.mini.scenes import Scenes
from scott.targets import made_by, target_of
from scott.training import checkpoint
from scott.training.config import DistillConfig
from scott.training.metrics import read_metrics

SMALL = ["--max-steps", "2", "--batch-size", "2", "--checkpoint-every", "1", "--sample-every", "2", "--log-every", "1"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    scenes = Scenes(6)
    for index in range(len(scenes)):
        image, caption = scenes[index]
        image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, pictures):
    out = tmp_path_factory.mktemp("runs") / "run"
    here("distill", "mini", "--data", pictures, "--out", out, *SMALL)
    return out


def test_distill_leaves_a_complete_run(run_folder):
    names = {path.name for path in run_folder.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "checkpoints", "samples", "student"}
    steps = [json.loads(line)["step"] for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2], "the last step is drawn too"
    assert (run_folder / "student" / "model_index.json").is_file()


def test_the_same_command_resumes_and_another_is_refused(run_folder, pictures, scott):
    before = (run_folder / "metrics.jsonl").read_text()
    exported = (run_folder / "student" / "scott.json").stat().st_mtime_ns
    common = ["distill", "mini", "--data", pictures, "--out", run_folder]
    assert scott(*common, *SMALL)[0] == 0
    assert (run_folder / "metrics.jsonl").read_text() == before
    assert (run_folder / "student" / "scott.json").stat().st_mtime_ns == exported, "there is nothing to export anew"
    assert scott(*common, *SMALL, "--guidance", "1.5")[0] == 0
    assert StudentInfo.read(run_folder / "student").guidance == 1.5
    assert scott(*common, *SMALL)[0] == 0
    assert StudentInfo.read(run_folder / "student").guidance == 2
    code, said = scott(*common, *SMALL, "--ema-decay", "0.5")
    assert code == 2
    assert "ema_decay: 0.98 → 0.5" in said


@pytest.mark.parametrize(
    ("line", "got", "way_out"),
    [
        ("distill sd15 --nope 3", "Unrecognized options: --nope 3", "Missing from scott distill sd15: --data"),
        ("distill nope", "Unrecognized options: nope", "Available subcommands: mini, sd15"),
        ("sample r --prompts a --guidance x", "error got 'x' for --guidance; expected", "expected a number\n"),
        ("sample r --prompts a --steps x", "error got 'x' for --steps; expected", "expected a whole number\n"),
        ("evaluate r --steps 1 x", "error got '1', 'x' for --steps; expected", "expected whole numbers\n"),
        ("distill sd15 --data d --learning-rate it's", 'got "it\'s" for --learning-rate', "expected a number\n"),
        ("distill sd15 --data d --critic-betas a b", "got 'a', 'b' for --critic-betas", "expected numbers\n"),
        ("sample r --prompts a --size", "error Unrecognized options: --size; see", "see scott sample --help\n"),
        ("evaluate r --dry-run", "error Unrecognized options: --dry-run; see", "see scott evaluate --help\n"),
        (
            "distill mini --steps 3",
            "options: --steps, 3; perhaps --drawn-timesteps, --max-steps, --substeps; see",
            "distill",
        ),
        ("prepare d --chek", "options: --chek; perhaps --check; see", "see scott prepare --help\n"),
        ("distill sd15 --data d --critic-fakes x", "invalid choice 'x'", "('noised', 'drawn')"),
        ("distill sd15 --dry-run", "error Missing from scott distill sd15: --data; see", "distill sd15 --help\n"),
        ("sample r --prompts a --steps 9", "error got 9 steps; expected", "expected 1 to 8\n"),
        ("sample r1 --prompts cat --height 0", "error got --height 0; expected", "a number of pixels, 1 or more\n"),
        (f"sample r1 --prompts cat --width {2**62}", f"got --width {2**62}; expected", "8,192 pixels at most\n"),
        ("prepare . --check --limit 0", "error got limit 0, expected", "expected 1 or more, below 2**63\n"),
        ("frob", "frob", "Available subcommands: demo, prepare"),
        ("", "Expected one of {demo", "; see scott --help\n"),
    ],
)
def test_a_command_line_that_is_none_gets_one_line(line, got, way_out, command_line):
    code, out, err = command_line(*line.split())
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert got in err
    assert way_out in err
    assert not set(err) & set("│─╭")


def test_an_option_of_several_values_may_be_given_several_times():
    line = "distill sd15 --data a --teacher-lora f:.5 --data b c --max-steps 3 --teacher-lora=g --max-steps 4"
    recipe = parse(line.split()).recipe
    given = {name: value for group in recipe.groups for name, value in getattr(recipe, group).items()}
    assert given == {"data": ("a", "b", "c"), "teacher_lora": ("f:.5", "g"), "max_steps": 4}
    assert parse(["sample", "r", "--prompts", "a", "--steps", "2", "--prompts", "b", "c"]).prompts == ("a", "b", "c")
    measured = parse(
        [
            "evaluate",
            "r",
            "--steps",
            "1",
            "--metrics",
            "fid",
            "--steps=2",
            "--teacher_steps",
            "25",
            "--teacher-steps",
            "50",
        ]
    )
    assert (measured.steps, measured.measured.teacher_steps) == ((1, 2), (25, 50))


def test_options_of_any_number_of_values_are_found_wherever_they_stand():
    assert lists_of(Prepare) == {"caption_column", "teacher_lora"}
    lists = {"caption_column", "teacher_lora", "data", "weights", "drawn_timesteps"}
    assert lists_of(DistillConfig) == lists  # and not critic_betas
    assert {"steps", "metrics", "seeds", "teacher_steps", "teacher_solvers"} <= lists_of(Evaluate)


def test_sample_writes_pictures_with_their_parameters(run_folder, tmp_path, scott):
    code, _ = scott("sample", run_folder, "--prompts", "a small red apple", "a fox", "--steps", "4", "--out", tmp_path)
    assert code == 0
    assert {file.name for file in tmp_path.iterdir()} == {
        "a-small-red-apple-4-steps-seed-0.png",
        "a-fox-4-steps-seed-1.png",
    }
    image = Image.open(tmp_path / "a-small-red-apple-4-steps-seed-0.png")
    assert image.size == (64, 64)
    assert json.loads(image.info["parameters"])["prompt"] == "a small red apple"


def test_evaluate_writes_results(run_folder, tmp_path, scott):
    file = tmp_path / "results.json"
    code, _ = scott("evaluate", run_folder, "--steps", "1", "2", "--samples", "20", "--out", file)
    assert code == 0
    assert json.loads(file.read_text())["meta"]["updates"] == 2
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    assert {"student-1", "student-2", "real-vs-real"} <= rows.keys()
    assert rows["student-2"]["network_calls"] == 2
    assert (rows["student-2"]["method"], rows["real-vs-real"]["method"]) == ("scott", "")
    assert target_of(f"{run_folder}/student", [1], Measured(), torch.float32).methods == {"student-1": "scott"}
    assert rows["student-2"]["fid"] > rows["real-vs-real"]["fid"]
    found = target_of(f"{run_folder}/student", [1], Measured(timesteps=(999.0, 599.0)), torch.float32).samplers
    assert {name: sampler.times for name, sampler in found.items()} == {
        "student-1": [999],
        "student-at-999-599-2": [999, 599],
    }
    with pytest.raises(UserError, match="got --timesteps for mini, which is no student of scott's"):
        target_of("mini", [1], Measured(timesteps=(999.0, 599.0), scheduler="DDIMScheduler"), torch.float32)
    kept = Measured(timesteps=(999.0, 599.0), gamma=0)
    found = target_of(f"{run_folder}/student", [1], kept, torch.float32).samplers
    assert {name: sampler.gamma for name, sampler in found.items()} == {
        "student-1": 1,
        "student-at-999-599-gamma-0-2": 0,
    }
    made = made_by(found["student-at-999-599-gamma-0-2"], kept)
    assert made["gamma"] == 0
    with pytest.raises(UserError, match="got --gamma for mini, which is no student of scott's"):
        target_of("mini", [1], Measured(gamma=0), torch.float32)
    code, err = scott("evaluate", run_folder, "--gamma", "1.5", "--out", file)
    assert (code, "got gamma 1.5; expected 0" in err) == (2, True)


@pytest.fixture
def unknown_pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unknown")
    (folder / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    return folder


RESULTS = Path(__file__).parents[1] / "experiments" / "recorded_run" / "scott.json"
BAD = {
    "unknown command": (["distil"], "distill"),
    "unknown recipe": (["distill", "minni"], "mini"),
    "unknown flag": (["distill", "mini", "--max-step", "3"], "--max-steps"),
    "unknown solver": (["distill", "mini", "--solver", "heun"], "er-sde"),
    "a flag the solver does not have": (["distill", "mini", "--solver", "ddim", "--order", "3"], "does not have"),
    "η of a solver that has none, though LCM's": (
        ["distill", "mini", "--method", "paper", "--eta", "0"],
        "does not have",
    ),
    "a rank of a critic that has none": (
        ["distill", "mini", "--critic-rank", "8"],
        "got critic_rank 8, which critic heads does not have; leave it out, or name another critic",
    ),
    "a share of samples where none are drawn": (
        ["distill", "mini", "--critic-fakes", "noised", "--drawn-fraction", "0.5"],
        "got drawn_fraction 0.5, which critic_fakes noised does not have",
    ),
    "a critic's start where there is none": (
        ["distill", "mini", "--method", "lcm", "--critic-start", "0.1"],
        "got critic_start 0.1, which adversarial_weight 0.0 does not have",
    ),
    "a critic where there is none": (
        ["distill", "mini", "--method", "lcm", "--critic", "heads"],
        "got critic heads, which adversarial_weight 0.0 does not have",
    ),
    "a warm-up of none": (
        ["distill", "sd15", "--data", "d", "--critic", "none", "--critic-warmup", "9"],
        "got critic_warmup 9, which critic none does not have",
    ),
    "a store of jumps that are used once": (
        ["distill", "mini", "--method", "paper", "--jump-store", "64"],
        "got jump_store 64, which jump_reuse 1 does not have",
    ),
    "a fixed weight where a share sets it": (
        ["distill", "mini", "--adversarial-weight", "0.4"],
        "which adversarial_share 0.6 does not have; leave it out, or add --adversarial-share 0 for a fixed weight",
    ),
    "a share of no critic": (
        ["distill", "mini", "--critic", "none", "--adversarial-share", "0.5"],
        "got adversarial_share 0.5, which critic none does not have",
    ),
    "samples of no validation": (
        ["distill", "mini", "--validation-samples", "7"],
        "got validation_samples 7, which validate_every 0 does not have",
    ),
    "configs of a teacher that has its own": (
        ["distill", "--teacher", str(TEACHER), "--teacher-config", "nowhere", "--data", "d", "--dry-run"],
        "which has configs of its own; leave it out",
    ),
    "a rank of a student that is no LoRA": (
        ["distill", "mini", "--lora-rank", "64"],
        "got lora_rank 64 for a full student; leave it out, or add --train lora",
    ),
    "two rates of the same heads": (
        ["distill", "mini", "--critic-learning-rate", "1e-3", "--critic-head-rate", "1e-4"],
        "of which all is heads; give one of them",
    ),
    "a grid of too few times": (["distill", "mini", "--jump", "500", "--substeps", "1"], "a grid of 2 times"),
    "an order the solver does not have": (
        ["distill", "mini", "--solver", "dpmpp-sde", "--order", "3"],
        "order 3 with the solver dpmpp-sde; expected",
    ),
    "a jump that one sub-step cannot make": (["distill", "mini", "--jump", "300"], "Use jump=250"),
    "too few samples": (["demo", "--samples", "5"], "10 or more"),
    "guidance the student was not trained for": (
        ["sample", "RUN", "--prompts", "a", "--guidance", "50"],
        "trained for",
    ),
    "unknown phi": (["distill", "mini", "--solver", "er-sde", "--phi", "7"], "ode"),
    "value of the wrong kind": (["distill", "mini", "--max-steps", "many"], "max-steps"),
    "substeps that do not divide": (["distill", "mini", "--substeps", "7"], "multiple"),
    "t_m below zero": (["distill", "mini", "--jump", "1200"], "below clean data"),
    "guidance the wrong way round": (["distill", "mini", "--guidance-min", "9"], "guidance_max"),
    "guidance range for LoRA": (
        ["distill", "mini", "--train", "lora", "--guidance-max", "4"],
        "guidance_min = guidance_max",
    ),
    "neither recipe nor teacher": (["distill", "--data", "x"], "neither a recipe nor --teacher"),
    "no data": (["distill", "sd15"], "--data"),
    "no data for a teacher without a recipe": (["distill", "--teacher", "SDXL"], "got no --data"),
    "a recipe of another family": (["distill", "sd15", "--teacher", "SDXL", "--data", "x"], "is not for; use sdxl"),
    "a family that has no recipe": (
        ["distill", "--teacher", "OTHER", "--data", "x"],
        "is a KandinskyPipeline; expected",
    ),
    "missing teacher": (["distill", "mini", "--teacher", "/nowhere/teacher"], "/nowhere/teacher"),
    "missing data": (["distill", "mini", "--data", "/nowhere/data"], "/nowhere/data"),
    "data of no name": (["distill", "mini", "--data", ""], "expected the name of a source"),
    "a port that is none": (["app", "RUN", "--port", "99999"], "expected one from 1 to 65535"),
    "a host that is none": (["app", "RUN", "--host", "a..b"], "got --host a..b, which cannot be served at"),
    "a host of others": (["app", "RUN", "--host", "203.0.113.1"], "got --host 203.0.113.1, which cannot be served at"),
    "results into no folder": (["evaluate", "RUN", "--out", "nowhere/results.json"], "folder does not exist"),
    "results over another file": (
        ["evaluate", "RUN", "--out", "RUN/config.json"],
        "config.json is not what `scott evaluate` wrote",
    ),
    "evaluation in no steps": (["evaluate", "RUN", "--steps", "0"], "got steps 0; expected 1 to 1,000 of each"),
    "evaluation at no ω": (["evaluate", "RUN", "--guidance", "nan"], "got guidance nan; expected a finite number"),
    "a teacher in no steps": (["evaluate", "RUN", "--teacher-steps", "0"], "expected 1 to 1,000"),
    "a teacher in more steps than it knows": (["evaluate", "RUN", "--teacher-steps", "2000"], "expected 1 to 1,000"),
    "a page that is not there": (["compare", "--update", "no.md"], "no.md: No such file or directory; name one that"),
    "a comparison in a file's place": (
        ["compare", str(RESULTS), "--out", "RUN/config.json"],
        "config.json: File exists; a file is in the way: name another place, or move it",
    ),
    "pictures below a file": (
        ["sample", "RUN", "--prompts", "a", "--out", "RUN/config.json/x"],
        "config.json/x: Not a directory; a file is in the way: name another place, or move it",
    ),
    "evaluation of no samples": (["evaluate", "RUN", "--samples", "0"], "10 or more"),
    "a demo of no steps": (["demo", "--max-steps", "0"], "max_steps 0; expected a positive number"),
    "a seed below 0": (["distill", "mini", "--seed", "-1"], "seed -1; expected 0 to 2**64 - 1"),
    "a seed that torch cannot hold": (["distill", "mini", "--seed", str(2**64)], "expected 0 to 2**64 - 1"),
    "such a seed in a dry run": (["distill", "mini", "--seed", str(2**64), "--dry-run"], "expected 0 to 2**64 - 1"),
    "such a seed in a demo": (["demo", "--seed", str(2**64)], "expected 0 to 2**64 - 1"),
    "such a seed of a picture": (
        ["sample", "RUN", "--prompts", "a", "b", "--seed", str(2**64 - 1)],
        f"expected 0 to {2**64 - 2}",
    ),
    "a prompt that is not UTF-8": (["sample", "RUN", "--prompts", "caf\udce9"], "'caf\\udce9', which is not UTF-8"),
    "missing student": (
        ["sample", "/nowhere/student", "--prompts", "a"],
        "no student at /nowhere/student; expected a run folder, an export's folder, or a hub id (owner/name)",
    ),
    "a student of no name": (["sample", "nope", "--prompts", "a"], "no student at nope; expected a run folder"),
    "a folder without a student": (["sample", "RUN/samples", "--prompts", "a"], "samples; expected a run folder"),
    "a teacher as a student": (
        ["sample", "mini", "--prompts", "a"],
        "mini is a teacher, not a student; draw with it in `scott app`, or distil it",
    ),
    "evaluation of no name": (["evaluate", "nope"], "nothing at nope; expected a run folder, a pipeline's folder"),
    "an export of no name": (["export", "nope", "--to", "onnx"], "no run at nope; expected the run folder"),
    "a run as a teacher": (["distill", "mini", "--teacher", "RUN"], "is a run of scott, not a teacher; its teacher is"),
    "a run as a teacher of shards": (
        ["prepare", "RUN", "--teacher", "RUN", "--out", "shards"],
        "is a run of scott, not a teacher; its teacher is",
    ),
    "pictures where nobody makes folders": (
        ["sample", "RUN", "--prompts", "a", "--out", "/proc/x"],
        "/proc/x cannot be made: [Errno 2] No such file or directory: '/proc/x'; give another --out",
    ),
    "a comparison with nothing": (["compare", "no.json"], "there is no no.json; name a file that `scott evaluate`"),
    "a comparison with a folder": (
        ["compare", "RUN/samples"],
        "samples is a folder; name a file that `scott evaluate`",
    ),
    "a comparison with a config": (["compare", "RUN/config.json"], "config.json is not what `scott evaluate` wrote"),
    "results in a folder's place": (["evaluate", "RUN", "--out", "RUN"], "which is a folder; name a file in it"),
}


@pytest.mark.parametrize(("arguments", "names"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_message_and_exit_code_2(
    arguments, names, run_folder, teacher_folders, unknown_pipeline, tmp_path, monkeypatch, scott
):
    monkeypatch.chdir(tmp_path)
    folders = {"SDXL": teacher_folders["sdxl"], "OTHER": unknown_pipeline}
    code, said = scott(*(str(folders.get(word, word)).replace("RUN", str(run_folder)) for word in arguments))
    assert code == 2
    assert names in " ".join(said.replace("│", " ").split()), said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir()), "nothing may be written"


@pytest.mark.parametrize(
    "line",
    [
        ("distill", "sd15", "--data", "/nowhere/pictures"),
        ("distill", "sd15", "--data", "/nowhere/*.tar"),
        ("prepare", "./nowhere", "--teacher", "some/teacher", "--out", "out"),
        ("evaluate", "some/student", "--data", "/nowhere/pictures"),
        ("evaluate", "some/student", "--data", ".", "--floor-data", "./nowhere"),
    ],
    ids=" ".join,
)
def test_data_that_are_not_there_are_known_before_a_network_is_read(line, command_line, monkeypatch, tmp_path):
    """Of FLUX that would be tens of gigabytes."""
    monkeypatch.chdir(tmp_path)
    for place in ("scott.commands.distill.load_backbone", "scott.teachers.load_backbone"):
        monkeypatch.setattr(place, None)
    monkeypatch.setattr("scott.commands.evaluate.target_of", None)
    code, _, said = command_line(*line)
    assert code == 2
    assert "no data at" in said
    assert not [*tmp_path.iterdir()]


def test_a_prompt_too_long_is_refused_before_anything_is_written(run_folder, tmp_path, scott):
    code, said = scott("sample", run_folder, "--prompts", "apple " * 40, "--out", tmp_path / "out")
    assert code == 2
    assert "40 tokens" in said
    assert not (tmp_path / "out").exists()


def test_an_out_folder_that_is_not_a_run_is_left_alone(tmp_path, pictures, scott):
    (tmp_path / "mine.txt").write_text("mine")
    code, said = scott("distill", "mini", "--data", pictures, "--out", tmp_path, *SMALL)
    assert code == 2
    assert "not a run" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_shards_and_a_run_inside_the_data_go_on_by_the_same_command(scott, teacher_folders, pictures, tmp_path):
    data = shutil.copytree(pictures, tmp_path / "data")
    teacher = ["--teacher", teacher_folders["sd1"]]
    for _ in range(2):
        assert scott("prepare", data, *teacher, "--out", data / "shards")[0] == 0
        code, said = scott("distill", *teacher, "--data", data, "--out", data / "run", *SMALL, "--precision", "fp32")
        assert code == 0, said


def test_a_student_that_diverged_in_its_last_step_is_called_that(scott, teacher_folders, pictures, tmp_path):
    command = ["distill", "--teacher", teacher_folders["sd1"], "--data", pictures, "--out", tmp_path / "run", *SMALL]
    code, said = scott(
        *command, "--precision", "fp32", "--critic", "none", "--learning-rate", "1e9", "--max-steps", "1"
    )
    assert code == 2
    assert "draws what is not finite: its training diverged; begin anew" in " ".join(said.split())


def test_a_folder_that_cannot_be_made(scott, teacher_folders, pictures, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "no" / "where")
    command = ["distill", "--teacher", teacher_folders["sd1"], "--data", pictures, "--out", tmp_path / "link", *SMALL]
    code, said = scott(*command, "--precision", "fp32")
    assert code == 2
    assert "cannot be made" in said


def test_a_teacher_is_no_student(scott):
    from scott.mini.embedded import TEACHER

    code, said = scott("sample", TEACHER, "--prompts", "a")
    assert code == 2
    assert "no few-step student" in said


def test_without_a_recipe_the_teacher_says_which(scott, teacher_folders, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("scott.commands.plan.show", lambda *run, **how: asked.append(run))
    for family, recipe in {"sd1": "sd15", "sdxl": "sdxl", "pixart": "pixart", "sd3": "sd3"}.items():
        flags = ("--teacher", teacher_folders[family], "--data", "x", "--dry-run")
        assert scott("distill", *flags) == (0, "")
        assert scott("distill", recipe, *flags) == (0, "")
        assert asked[-2] == asked[-1]
        assert asked[-1][0] == recipe
    code, said = scott("distill", "--teacher", tmp_path, "--data", "x")
    assert code == 2
    assert "has no model_index.json" in " ".join(said.split())


def test_a_student_of_needed_times_draws_in_those_steps_alone(scott, pictures, tmp_path):
    out = tmp_path / "run"
    assert scott("distill", "mini", "--data", pictures, "--out", out, "--times", "needed", *SMALL)[0] == 0
    assert "at the needed times" in (out / "card.md").read_text()
    assert scott("sample", out, "--prompts", "a fox", "--steps", "4", "--out", tmp_path / "four")[0] == 0
    code, said = scott("sample", out, "--prompts", "a fox", "--steps", "3", "--out", tmp_path / "three")
    assert code == 2
    assert "trained for 1, 2, 4, 8 (--times needed)" in " ".join(said.split())
    assert not (tmp_path / "three").exists()


def test_metrics_that_are_no_text_are_one_message(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\n')
    with pytest.raises(UserError, match="is not UTF-8 text, as a run writes it"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_full_disk_in_training_loses_nothing(scott, teacher_folders, pictures, tmp_path, monkeypatch):
    """And the same command goes on from the checkpoint before."""

    def full(tensors, file):
        if "step-00000002" in str(file):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, file)

    monkeypatch.setattr(checkpoint, "save_file", full)
    command = ["distill", "--teacher", teacher_folders["sd1"], "--data", pictures, "--out", tmp_path / "run", *SMALL]
    command += ["--critic", "none", "--precision", "fp32"]
    code, said = scott(*command)
    assert (code, "No space left on device" in said.splitlines()[-1]) == (2, True), said
    assert f"no room at {tmp_path / 'run' / 'checkpoints'} (" in said.splitlines()[-1]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    assert "Traceback" not in said
    monkeypatch.setattr(checkpoint, "save_file", save_file)
    assert scott(*command)[0] == 0
    assert [record["step"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 2]


@pytest.mark.parametrize("command", [*sorted(COMMANDS.keys() - {"distill"}), "distill mini", ""])
def test_help_is_in_columns_and_names_no_empty_default(command, monkeypatch, scott):
    """A line ends only where the next word would not have fitted."""
    monkeypatch.setenv("COLUMNS", "80")
    code, said = scott(*command.split(), "--help")
    assert code == 0
    assert not re.search(r"default:\s*(None|''|)\)", said.replace("│", ""))
    assert len(said.splitlines()[2]) <= 80, "nothing wraps what is above the columns"
    boxed = [line[1:-1] for line in said.splitlines() if line.startswith("│")]
    (width,) = {len(line) for line in boxed}
    assert width <= 78
    for above, below in pairwise(boxed):
        indent = len(below) - len(below.lstrip())
        continued = indent > 4 and above[:indent].isspace() and not above[indent].isspace()
        if continued and not below.lstrip().startswith("("):
            assert len(above.rstrip()) + 1 + len(below.split()[0]) >= width, (above, below)
    if not command:
        assert "scott --version" in said


FULL = {
    "disk": (OSError(28, "No space left on device"), "No space left on device"),
    "disk, says safetensors": (SafetensorError("No space left on device"), "No space left on device"),
    "GPU": (
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore."),
        "2 GiB; close what else holds memory",
    ),
    "memory": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes."),
        "9 bytes; close what else holds memory",
    ),
}


@pytest.mark.parametrize(("error", "message"), FULL.values(), ids=FULL)
def test_what_is_full_is_one_message(error, message, monkeypatch, tmp_path, scott):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("scott.commands.demo.demo", full)
    code, said = scott("demo", "--out", tmp_path)
    assert code == 2
    assert message in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("distill", "--dry-run says what a run holds: lower --batch-size"),
        ("sample", "try --precision bf16"),
        ("evaluate", "lower --batch-size, or try --precision bf16"),
        ("prepare", "or --low-memory"),
    ],
)
def test_what_is_said_to_hold_less_are_options_of_the_command(command, said, command_line, monkeypatch):
    assert said in _what_holds_less([command])
    _, options, _ = command_line(command, *(["mini"] if command == "distill" else []), "--help")
    for option in re.findall(r"--[a-z-]+", _what_holds_less([command])):
        assert option in options, option


def test_a_fault_of_ours_is_no_message(monkeypatch, tmp_path, scott):
    def faulty(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("scott.commands.demo.demo", faulty)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        scott("demo", "--out", tmp_path)


def test_what_a_report_of_a_fault_needs(scott):
    code, out = scott("env")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert lines["torch"] == torch.__version__
    assert "gradio" in lines["[app]"]
    assert scott("--version") == (0, f"{lines['scott']}\n")


def test_a_message_repeats_no_more_than_a_screen_of_what_was_given():
    text = one_line("got " + "x" * 200_000 + "\n; expected less")
    assert len(text) < 5000
    assert text.startswith("got x")
    assert text.endswith("\\n; expected less")
