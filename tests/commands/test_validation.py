"""What a run draws and measures on its way."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from scott.commands import validation as module
from scott.commands.distill import _hooks
from scott.commands.prepare import open_data
from scott.commands.validation import Validation
from scott.diffusion import JumpGrid
from scott.errors import NotFinite, UserError
from scott.evaluation import batch_seed, frechet_distance
from scott.mini import embedded
from scott.recipes.configs import mini, sd15
from scott.samplers import StudentSampler
from scott.training.config import FEW_STEPS, PROMPTS


@pytest.fixture(autouse=True)
def as_many_as_a_user_gets(monkeypatch):
    for name, value in {"PROMPTS": PROMPTS, "FEW_STEPS": FEW_STEPS}.items():
        monkeypatch.setattr(module, name, value)


CAPTIONS = ["a cat", "dog", "red", "cat dog", "a"] * 4


@pytest.fixture
def validation(make_backbone, tmp_path):
    """`validation(**changes)`: it, its backbone (a LoRA student off its start) and the warnings it gives."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, caption in enumerate(CAPTIONS):
        Image.effect_noise((64, 64), 40.0 + index).convert("RGB").save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(caption)

    def make(**changes):
        backbone, warnings = make_backbone("lora"), []
        settings = {"data": str(folder), "out": tmp_path / "run", "validation_samples": 16} | changes
        config = sd15(**{"validation_features": "mini"} | settings)
        data = open_data([str(folder)], backbone, tmp_path / "data", 0, lambda *_: None)
        return Validation(backbone, JumpGrid(backbone.schedule), config, data, warnings.append), backbone, warnings

    return make


def test_captions_longer_than_the_encoder_reads_are_cut(validation, monkeypatch):
    monkeypatch.setitem(globals(), "CAPTIONS", [f"a {'cat ' * 40}{index}" for index in range(20)])
    checked, _, _ = validation(validate_every=1)
    checked.make_ready()
    assert checked.draw(1)[1].keys() == {"student_change"}
    assert checked.measure().keys() == {"fid", "clip_score", "coverage"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"validation_samples": 5}, "expected 6 or more"), ({"validation_features": "/nowhere"}, "not a CLIP model")],
)
def test_what_cannot_be_measured_is_found_before_the_first_step(validation, changes, said):
    checked, _, _ = validation(validate_every=1, **changes)
    with pytest.raises(UserError, match=said):
        checked.make_ready()


def test_the_fewest_samples_are_measured(validation):
    checked, _, _ = validation(validate_every=1, validation_samples=6)
    checked.make_ready()
    assert checked.measure().keys() == {"fid", "clip_score", "coverage"}


def test_an_untrained_student_is_noticed_and_a_moved_one_is_not(validation, perturb):
    checked, backbone, warnings = validation()
    assert checked.draw(500) == checked.draw(500)
    assert not warnings, "in the warm-up a student may stand where it began"
    _, figures = checked.draw(1000)
    assert figures == {"student_change": 0.0}
    assert len(warnings) == 1
    assert "step 1000" in warnings[0]
    perturb(backbone.target_parameters())
    _, figures = checked.draw(2000)
    assert figures["student_change"] > 0.01
    assert len(warnings) == 1
    drawn, before = (
        StudentSampler(backbone, network, checked.grid, 2, 3.0).latents(checked.prompts, 0)
        for network in (backbone.target, backbone.teacher)
    )
    assert figures["student_change"] == pytest.approx(((drawn - before).norm() / before.norm()).item())


def test_the_grid_has_a_row_for_each_number_of_steps_and_the_teacher(validation):
    checked, backbone, _ = validation()
    picture, _ = checked.draw(1)
    assert checked.prompts == CAPTIONS[:8]
    rows = len(FEW_STEPS) + 1
    assert rows * backbone.resolution < picture.height < (rows + 2) * backbone.resolution
    assert checked.draw(2)[0].tobytes() == picture.tobytes(), "fixed seeds"


def test_each_row_is_drawn_once(validation, monkeypatch):
    """And the untrained student's one time a run, in two steps."""
    drawn, latents = [], StudentSampler.latents

    def counting(sampler, prompts, seed):
        drawn.append((sampler.steps, sampler.network))
        return latents(sampler, prompts, seed)

    monkeypatch.setattr(StudentSampler, "latents", counting)
    checked, backbone, _ = validation()
    rows = [(steps, backbone.target) for steps in FEW_STEPS]
    checked.draw(1)
    assert drawn == [*rows, (2, backbone.teacher)]
    checked.draw(2)
    assert drawn[len(rows) + 1 :] == rows


def test_figures_are_those_of_the_samples_drawn_again(validation, perturb):
    checked, backbone, _ = validation()
    perturb(backbone.target_parameters())
    figures = checked.measure()
    assert figures.keys() == {"fid", "clip_score", "coverage"}
    assert checked.measure() == figures
    features = embedded.load_features()
    latents, captions = checked.data.examples(16)
    assert captions == CAPTIONS[:16]
    real = features.images(backbone.decode(latents.float()))
    # one batch of 16, with the seed of the first batch
    drawn = StudentSampler(backbone, backbone.target, checked.grid, 2, 3.0)(captions, batch_seed(0, 0))
    fake = features.images((255 * drawn).round() / 255)
    assert figures["fid"] == pytest.approx(frechet_distance(real, fake), rel=1e-3)


def test_pictures_that_are_not_finite_are_said_and_do_not_end_a_run(validation):
    """Nor are they a file that is black."""
    checked, backbone, warnings = validation()
    for parameter in backbone.target_parameters().values():
        parameter.data.fill_(torch.inf)
    with pytest.raises(NotFinite, match="give --precision bf16 or fp32"):
        StudentSampler(backbone, backbone.target, checked.grid, 1, 3.0)(["a cat"], 0)
    assert checked.measure() == {}
    assert "validation has no figures: got pictures that are not finite" in warnings[-1]


def test_a_full_student_is_measured_at_the_guidance_it_is_drawn_at(validation, monkeypatch):
    """Not in the middle of its range, which is 9."""
    asked = []

    class Asked(StudentSampler):
        def latents(self, prompts, seed):
            asked.append(self.guidance)
            return super().latents(prompts, seed)

    monkeypatch.setattr("scott.commands.validation.StudentSampler", Asked)
    checked, _, _ = validation(train="full")
    checked.draw(1)
    checked.measure()
    assert set(asked) == {3.0}


def test_there_may_be_fewer_samples_than_asked_for(validation):
    checked, _, warnings = validation(validation_samples=1000)
    checked.make_ready()
    assert warnings == ["validation measures on the 20 samples there are, not on 1000"]
    assert checked.measure().keys() == {"fid", "clip_score", "coverage"}


def test_a_grid_is_whole_or_not_there(tmp_path):
    """Who watches the run may read it at any time."""

    class Half:
        def save(self, file, form):
            file.write_bytes(b"half")
            assert list((tmp_path / "samples").glob("*.png")) == []
            raise OSError("the disk is full")

    (tmp_path / "samples").mkdir()
    hooks = _hooks(mini(out=tmp_path), SimpleNamespace(draw=lambda step: (Half(), {})), print, print, first=True)
    with pytest.raises(OSError, match="the disk is full"):
        hooks.sample(1)
    assert list((tmp_path / "samples").iterdir()) == []
