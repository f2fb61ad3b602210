"""Any flags of any values end in work, or in one line and exit code 2."""

import dataclasses
import sys
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tyro._backends import _tyro_help_formatting

from scott import arguments, cli
from scott.commands import demo, distill, evaluate, plan, prepare, sample
from scott.commands.measuring import Evaluate
from scott.data.settings import Settings
from scott.export.trained import student_grid
from scott.measured import Measured
from scott.recipes.configs import RECIPES
from scott.samplers import StudentSampler
from scott.students import Student
from scott.training.config import DistillConfig

INTEGERS = ["0", "1", "2", "3", "16", "-1", str(2**63), str(2**64 - 1), str(2**64), "9" * 400]
FLOATS = ["0", "0.5", "1", "3.0", "-1", "1e-9", "1e400", "nan", "-inf"]
TEXTS = [
    "",
    " ",
    "-",
    "--",
    "[",
    "[/x]",
    "{",
    "{1,2}",
    "*",
    "%s",
    "\n",
    "é\u2028x",
    "\udcff",
    "a" * 5000,
    "a/" * 500,
    "s3://b/k",
]
PLACES = ["mini", ".", "/dev/null", "owner/name", "x.txt", "PICTURES", "TEACHER", "NEW", "FILE"]
ODD = INTEGERS + FLOATS + TEXTS + PLACES


def flags(*classes):
    """Flag → values of its kind."""
    pools = {}
    for options in classes:
        for name, kind in get_type_hints(options).items():
            kinds = {kind, *get_args(kind)}
            values = next((pool for of, pool in ((int, INTEGERS), (float, FLOATS)) if of in kinds), TEXTS + PLACES)
            words = [str(word) for word in get_args(kind)] if get_origin(kind) is Literal else values
            pools[f"--{name.replace('_', '-')}"] = words
    return pools


@dataclasses.dataclass
class DryRun:
    dry_run: bool
    json: bool
    processes: int


@dataclasses.dataclass
class Elsewhere:
    teacher: str
    out: str


@dataclasses.dataclass
class Page:
    out: str


COMMANDS = {
    **{f"distill {recipe} --data PICTURES": flags(DistillConfig, DryRun) for recipe in RECIPES},
    "distill --teacher TEACHER --data PICTURES --out new": flags(DistillConfig),
    "prepare PICTURES --teacher TEACHER --out new": flags(Settings, Elsewhere),
    "prepare PICTURES --check": flags(Settings, Page),
    "sample RUN --guidance 3": flags(arguments.Sample),
    "evaluate RUN": flags(Evaluate, Measured),
    "export RUN": flags(arguments.Export),
    "demo": flags(arguments.Demo),
}


class Works(Exception):
    """All was checked, and the work would begin."""


def works(*_, **__):
    raise Works


@pytest.fixture(scope="module")
def places(tmp_path_factory, teacher_folders):
    """What a word on a command line stands for."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(folder / "pictures" / "a.png")
    (folder / "pictures" / "a.txt").write_text("a cat")
    (folder / "file").write_bytes(b"\xff\x00")
    return {
        "PICTURES": str(folder / "pictures"),
        "TEACHER": str(teacher_folders["sd1"]),
        "NEW": str(folder / "new"),
        "FILE": str(folder / "file"),
    }


@pytest.fixture
def no_work(make_backbone, monkeypatch, tmp_path):
    """Networks are tiny ones that are there already, and what comes after all checks raises `Works`."""

    class OneProcess:
        is_main_process = True

        def main_process_first(self):
            return torch.no_grad()  # any context

    backbone = make_backbone()
    student = Student("s", backbone, backbone.teacher, student_grid(backbone.schedule, 25), None)
    monkeypatch.chdir(tmp_path)
    # flags like an unknown one, which tyro looks for in the options of all recipes: four fifths of this test's time
    monkeypatch.setattr(_tyro_help_formatting, "recursive_arg_search", lambda **_: ([], False, False))
    monkeypatch.setattr(distill, "start_processes", lambda config: OneProcess())
    monkeypatch.setattr(distill, "load_backbone", lambda *_: make_backbone())
    monkeypatch.setattr(distill, "open_data", works)
    monkeypatch.setattr(plan, "budget_of", works)
    monkeypatch.setattr(prepare, "prepare_source", works)
    monkeypatch.setattr(sample, "load_student", lambda *_: student)
    monkeypatch.setattr(StudentSampler, "__call__", blank)
    monkeypatch.setattr(evaluate, "target_of", works)
    monkeypatch.setattr(demo, "run", works)


def blank(sampler, prompts, seed):
    """A picture that was not drawn, whose noise was."""
    torch.empty(len(prompts), *sampler.backbone.latent_shape[:1], *sampler.size or (8, 8))
    return torch.zeros(len(prompts), 3, 8, 8)


@st.composite
def command_lines(draw):
    command = draw(st.sampled_from(sorted(COMMANDS)))
    line = command.split()
    for flag in draw(st.lists(st.sampled_from(sorted(COMMANDS[command])), max_size=4)):
        line += [
            flag,
            *draw(
                st.lists(st.sampled_from(COMMANDS[command][flag]), min_size=1, max_size=1)
                | st.lists(st.sampled_from(ODD), max_size=2)
            ),
        ]
    return line


@settings(derandomize=True, database=None)
@given(line=command_lines())
def test_any_flags_end_in_work_or_in_one_line(line, places, no_work, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scott", *(places.get(word, word) for word in line)])
    with pytest.raises((SystemExit, Works)) as end:
        sys.exit(cli.main())
    if end.type is SystemExit:
        said = capsys.readouterr().err.strip()
        assert end.value.code == (2 if said else None), said
        assert len(said.split("\n")) == 1, said
