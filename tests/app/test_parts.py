"""What stands behind the page, without a browser: which runs it finds, what it draws first, and what it gives up."""

import importlib.util
import os
from dataclasses import dataclass, replace

import pytest
import torch

from scott.app.drawing import Column, Drawer, Order, Settings
from scott.app.models import Models
from scott.app.watching import RunState, validation_grids
from scott.commands.app import found_runs
from scott.errors import UserError
from scott.recipes.configs import mini

ORDER = Order(1.0, "a fox", [3], Settings([], [], [25, 50]))


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
    monkeypatch.setattr(Drawer, "columns", lambda self, settings: (Column("teacher", Sampler(n)) for n in (1, 2)))
    return Drawer(Models([]))


def test_a_newer_order_has_the_older_one_given_up(drawer):
    older = drawer.draw(ORDER, "reader")
    assert next(older).image.getpixel((0, 0)) == (1, 1, 1)
    assert next(drawer.draw(ORDER, "another reader")).seed == 3
    newer = drawer.draw(replace(ORDER, time=2.0), "reader")
    assert next(newer).column.sampler.steps == 1
    assert list(older) == []
    assert list(drawer.draw(ORDER, "reader")) == [], "it was asked for earlier and arrived later"
    assert [picture.column.sampler.steps for picture in newer] == [2]


def test_while_typing_nothing_is_drawn_twice_and_nothing_slow(drawer):
    assert len(list(drawer.draw(ORDER, "reader", live=True))) == 2
    assert list(drawer.draw(replace(ORDER, time=2.0), "reader", live=True)) == []
    drawer.seconds["teacher", 2] = 60.0
    fast, slow = drawer.draw(replace(ORDER, time=3.0, prompt="a fish"), "reader", live=True)
    assert fast.image is not None
    assert (slow.image, slow.seconds) == (None, 60.0)
    assert all(picture.image for picture in drawer.draw(replace(ORDER, time=4.0), "reader"))


@pytest.mark.parametrize("change", [{"prompt": " "}, {"seeds": [-1]}, {"seeds": range(2**32 - 1, 2**32 + 1)}])
def test_what_cannot_be_drawn_is_refused(change):
    with pytest.raises(UserError, match=r"got no prompt|expected 0 to"):
        replace(ORDER, **change)


def test_without_a_student_the_embedded_teacher_draws():
    assert [column.key for column in Drawer(Models([])).columns(ORDER.settings)] == [
        ("teacher mini", 25),
        ("teacher mini", 50),
    ]


def test_runs_are_found_the_newest_first_and_read_before_their_first_step(tmp_path):
    for age, name in enumerate(("new", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(mini(out=tmp_path / name, max_steps=7).to_json())
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "other").mkdir()
    found = found_runs(tmp_path)
    assert found == [str(tmp_path / "new"), str(tmp_path / "old")]
    assert (Models(found).runs, Models(found).students) == (found, [])
    state = RunState.read(tmp_path / "new")
    assert (state.step, state.max_steps, state.seconds_left, state.curves) == (0, 7, None, None)
    assert validation_grids(tmp_path / "new") == []


def test_a_name_that_is_nothing_is_one_message(command_line):
    code, _, said = command_line("app", "/nowhere/student")
    assert code == 2
    assert "/nowhere/student" in said
    assert "Traceback" not in said


def test_without_gradio_the_extra_is_named(command_line, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, said = command_line("app")
    assert code == 2
    assert "pip install 'scott-diffusion[app]'" in said
