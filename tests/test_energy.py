"""`experiments.energy`: a student of pictures that is given noise, and the score that it learns by."""

import json
from dataclasses import replace

import pytest
import torch
from experiments.energy import EnergyDistillation, with_noise
from experiments.runs import Training, exit_code
from experiments.trial.__main__ import Trial

from scott.commands import prepare
from scott.data.batch import Batch
from scott.diffusion import ConsistencyFunction
from scott.errors import UserError
from scott.objective import loss_weight
from scott.recipes.configs import mini
from scott.training.config import DistillConfig
from scott.training.draws import Draws
from test_gaussian_distillation import SD, Linear

PLAIN = {"critic": "none", "adversarial_weight": 0.0, "guidance_min": 1.0, "guidance_max": 1.0, "solver": "er-sde"}


def test_noise_is_tokens_beside_the_captions():
    cond = {"text": torch.zeros(2, 3, 4), "guidance": torch.ones(2)}
    z = torch.arange(2 * 9.0).view(2, 9)
    noisy = with_noise(cond, z)
    assert noisy["text"].shape == (2, 5, 4)
    assert noisy["text"][:, :3].equal(cond["text"])
    assert noisy["text"][:, 3:].flatten(1).equal(z[:, :8])
    assert noisy["guidance"] is cond["guidance"]


def test_of_a_student_that_does_not_look_at_its_noise_the_score_is_the_distance_from_its_target():
    config = mini(**PLAIN | {"jump": 300, "substeps": 3, "weighting": "snr+1"})
    grid, solver, s = config.make_grid(SD), config.make_solver(SD), 0.5
    distillation = EnergyDistillation(Linear(s, grid), config, solver, grid, {})
    generator = torch.Generator().manual_seed(0)
    distillation.backbone.a.data.uniform_(generator=generator)
    draws = Draws.make(torch.Size([16, 4]), grid, config, generator)
    batch = Batch(torch.zeros(16, 4), torch.full((16, 4), s), {"text": torch.zeros(16, 1, 1)})
    terms = distillation.step(batch, draws)
    x_n = SD.add_noise(s * draws.latent, draws.noise, draws.t_n)
    x_m = distillation.walk(batch, draws)
    f, y = (ConsistencyFunction(net, SD) for net in (distillation.backbone.student, distillation.backbone.target))
    error = (f(x_n, draws.t_n, {}) - y(x_m, grid.target(draws.t_n), {})).square().mean(1).sqrt()
    w = loss_weight("snr+1", SD, draws.t_n, grid.trained_times)
    assert terms["consistency"].item() == pytest.approx((w.sqrt() * error).mean().item(), rel=1e-3)
    assert terms["moments"].shape[1] == 5


def test_a_critic_is_refused_beside_the_score():
    config = mini()
    grid = config.make_grid(SD)
    with pytest.raises(UserError, match="got an energy score with a critic"):
        EnergyDistillation(Linear(0.5, grid), config, config.make_solver(SD), grid, {})


def test_a_student_that_has_learnt_by_it_draws_by_its_noise(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "MINI_SCENES", 32)
    settings = ("batch_size=4", "warmup_steps=0", "learning_rate=1e-2", "ema_decay=0", "solver=er-sde", "critic=none")
    trial = Trial("noisy", settings, updates=3, samples=12, energy=True, folder=tmp_path, runs=tmp_path / "runs")
    assert exit_code(trial.run) == 0
    (line,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert line["energy"]
    assert exit_code(replace(trial, energy=False).run) == 2, "another trial"
    assert exit_code(replace(trial, phases=2).run) == 2
    config = DistillConfig.load(tmp_path / "runs" / "noisy-0-energy" / "config.json")
    training = Training(config, tmp_path / "runs" / "data", energy=True)
    training.train(lambda *tick: None)
    sampler = training.samplers()[1]
    training.energy = False
    plain = training.samplers()[1]
    captions = ["a small apple on a blue background"] * 2
    drawn = sampler.latents(captions, 1)
    assert drawn.equal(sampler.latents(captions, 1))
    assert not drawn.equal(plain.latents(captions, 1))
