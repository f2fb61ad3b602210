"""`experiments.phases`: a student that is consistent within phases, against closed forms and the usual one."""

import dataclasses

import pytest
import torch
from experiments.phases import PhasedDistillation
from experiments.runs import exit_code
from experiments.trial.__main__ import Trial

from scott.commands import prepare
from scott.data.batch import Batch
from scott.errors import UserError
from scott.recipes.configs import mini
from scott.solvers import make
from scott.training.draws import Draws
from scott.training.step import Distillation
from test_gaussian_distillation import SD, Linear, mean_factor

PLAIN = {"critic": "none", "adversarial_weight": 0.0, "guidance_min": 1.0, "guidance_max": 1.0, "solver": "ddim"}


def made(kind, s=0.5, substeps=1, **options):
    config = mini(**PLAIN | {"eta": 0.0, "jump": 100, "substeps": substeps})
    grid, solver = config.make_grid(SD), config.make_solver(SD)
    return kind(Linear(s, grid), config, solver, grid, {}, **options), grid


@pytest.mark.parametrize("phases", [1, 2, 4, 5])
def test_the_fixed_point_goes_where_the_teachers_walk_goes_in_each_phase(phases):
    """On N(0, s²) a step of DDIM is x → m x. The student's from t to its phase's edge is the product of the m on the
    way, and what it draws in as many steps as phases that of all, however many these are."""
    s = 0.5
    distillation, grid = made(PhasedDistillation, s, phases=phases)
    linear, times = distillation.backbone, grid.times
    generator = torch.Generator().manual_seed(0)
    for index, time in enumerate(times.tolist()[1:], start=1):
        draws = Draws.make(torch.Size([64, 1]), grid, distillation.config, generator)
        draws = dataclasses.replace(draws, t_n=torch.full((64,), time))
        batch, slopes = Batch(torch.zeros(64, 1), torch.full((64, 1), s), {}), []
        for value in (0.0, 1.0):  # the loss is a parabola in a_i: two slopes give its minimum
            linear.a.data[index], linear.a.grad = value, None
            distillation.step(batch, draws)
            slopes.append(linear.a.grad[index].item())
        linear.a.data[index] = slopes[0] / (slopes[0] - slopes[1])
    stops = [torch.full((1,), stop, dtype=SD.time_dtype) for stop in distillation.stops]
    x = torch.ones(1, 1, dtype=torch.float64)
    drawn = make("ddim", SD, eta=0.0).walk(linear.student, x, stops, {}, generator)
    exact = mean_factor("ddim-0", s, times[1:], times[:-1]).prod().item()
    assert drawn.item() == pytest.approx(exact, rel=1e-4)


def test_one_phase_is_the_usual_loss():
    losses = []
    for kind, options in ((Distillation, {}), (PhasedDistillation, {"phases": 1})):
        distillation, grid = made(kind, **options)
        generator = torch.Generator().manual_seed(0)
        distillation.backbone.a.data.uniform_(generator=generator)
        draws = Draws.make(torch.Size([64, 1]), grid, distillation.config, generator)
        batch = Batch(torch.zeros(64, 1), torch.full((64, 1), 0.5), {})
        losses.append(distillation.step(batch, draws)["consistency"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_a_jump_out_of_its_phase_is_refused():
    with pytest.raises(UserError, match=r"3 phases and a jump of 100 from t = 399, which leaves its phase at 349"):
        made(PhasedDistillation, substeps=2, phases=3)


def test_a_trial_of_phases_is_drawn_from_in_as_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "MINI_SCENES", 32)
    settings = ("batch_size=4", "warmup_steps=0", "critic_start=0", "critic_warmup=1")
    trial = Trial(
        "phased", settings, updates=3, samples=12, phases=4, other="efficientnet", folder=tmp_path, runs=tmp_path
    )
    assert exit_code(trial.run) == 0
    (tmp_path / "README.md").write_text("<!-- trials -->\n<!-- end of trials -->\n")
    assert exit_code(Trial(table=True, folder=tmp_path).run) == 0
    assert "| phases 4" in " ".join((tmp_path / "README.md").read_text().replace(", ", "| ").split())
    assert '"steps": {"4": {"fid"' in (tmp_path / "results.jsonl").read_text()
