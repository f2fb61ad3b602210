"""A student some of whose steps its teacher walks (experiments.steps)."""

from dataclasses import fields

import pytest
import torch
from experiments.measuring import reference_by
from experiments.results import read_lines
from experiments.steps.__main__ import CAPTIONS, HERE, Steps, WalkedSampler, markdown

from scott.diffusion import JumpGrid
from scott.errors import UserError
from scott.mini import embedded
from scott.mini.scenes import Scenes, unseen_backgrounds
from scott.samplers import StudentSampler, TeacherSampler

PROMPTS = ["a red apple on a white background", "a small dog on the left, on blue"]


@pytest.fixture(scope="module")
def embedded_teacher():
    return embedded.load_teacher()


@pytest.fixture(scope="module")
def made(embedded_teacher):
    """(steps, walked) → a sampler whose student is the teacher itself, at ω = 1, on jumps of half the schedule."""
    grid = JumpGrid(embedded_teacher.schedule, 500, 1)

    def make(steps, walked=None):
        plain = StudentSampler(embedded_teacher, embedded_teacher.teacher, grid, steps, 1.0)
        if walked is None:
            return plain
        given = {field.name: getattr(plain, field.name) for field in fields(plain)}
        return WalkedSampler(**given, walked=walked)

    return make


def test_without_a_walk_it_is_the_student(made):
    assert torch.equal(made(2, ()).latents(PROMPTS, 1), made(2).latents(PROMPTS, 1))


def test_a_walk_of_one_jump_is_the_teachers_own_guess(made):
    torch.testing.assert_close(made(2, (1,)).latents(PROMPTS, 1), made(2).latents(PROMPTS, 1), rtol=1e-5, atol=1e-5)


def test_one_walked_step_is_ddim_in_the_grids_jumps(made, embedded_teacher):
    walked = made(1, (0,)).latents(PROMPTS, 1)
    ddim = TeacherSampler(embedded_teacher, 2, 1.0).latents(PROMPTS, 1)
    assert torch.equal(walked, ddim)
    assert not torch.allclose(walked, made(1).latents(PROMPTS, 1), atol=1e-2)


def test_captions_are_those_that_training_shows_or_of_others():
    asked = {captions: reference_by("mini", 64, *CAPTIONS[captions]).scenes for captions in CAPTIONS}
    assert asked["shown"] == Scenes(64).scenes()
    unseen = unseen_backgrounds()
    off = {captions: [unseen[scene.subject] == scene.background for scene in asked[captions]] for captions in asked}
    assert all(off["validation"])
    assert not any(off["train"] + off["shown"])


def test_the_page_shows_its_rows():
    assert markdown(read_lines(HERE / "results.jsonl")) in (HERE / "README.md").read_text()


def test_what_is_no_run_of_a_plain_student_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.steps.__main__.reference_by", lambda *args: None)
    (tmp_path / "README.md").write_text((HERE / "README.md").read_text())
    with pytest.raises(UserError, match="no run folder"):
        Steps((tmp_path / "none",), folder=tmp_path).run(lambda *args: None)
