"""Steps whose networks are recorded: on a GPU as graphs, and on a CPU as functions that are called when a graph would
be replayed, which checks all but the graphs themselves."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from experiments import graphs

from scott.commands.distill import add_models
from scott.data.batch import Batch
from scott.recipes.configs import mini
from scott.rng import generator_for
from scott.students import teacher_of
from scott.training.jumps import Jumps
from scott.training.optimization import Optimization
from scott.training.step import Distillation

CUDA = torch.cuda.is_available()
CONFIG = replace(mini(out=Path("unused")), max_steps=7, critic_start=0.5, critic_warmup=1, adversarial_ramp=1)


class Called:
    """What `_Recorded` is on a GPU."""

    def __init__(self, function, inputs, trained):
        graded = torch.is_grad_enabled()
        self.inputs = [x.detach().clone().requires_grad_(x.requires_grad and graded) for x in inputs]

        def forward():
            with torch.set_grad_enabled(graded):
                self.output = function(*self.inputs)
            self.grad_output = torch.empty_like(self.output)

        def backward():
            given = [*self.inputs, *trained]
            towards = [x for x in given if x.requires_grad]
            made = iter(
                torch.autograd.grad(self.output, towards, self.grad_output, allow_unused=True, retain_graph=True)
            )
            self.grads = [next(made) if x.requires_grad else None for x in given]

        self.forward, self.backward = SimpleNamespace(replay=forward), SimpleNamespace(replay=backward)


def losses(*, recorded):
    """Terms and norms of a run's steps, the first half of which have no critic."""
    backbone = teacher_of("mini")
    add_models(backbone, CONFIG)
    backbone.to("cuda" if CUDA else "cpu")
    if recorded:
        graphs.record(backbone)
    distillation, trained = Distillation.of(backbone, CONFIG), Optimization(backbone, CONFIG)
    jumps, shape, found = Jumps(CONFIG), torch.Size((CONFIG.batch_size, *backbone.latent_shape)), []
    for step in range(CONFIG.max_steps):
        noise = generator_for(1, step)
        cond = {"text": torch.randn(CONFIG.batch_size, *distillation.uncond["text"].shape[1:], generator=noise)}
        batch = Batch(torch.randn(shape, generator=noise), torch.zeros(shape), cond).to(backbone.device)
        draws = jumps.draws(step, shape, distillation.grid).to(backbone.device)
        terms = distillation.step(batch, draws, trained.engine(step), distillation.walk(batch, draws))
        found.append({k: v.item() for k, v in (terms | trained.update(step)).items() if not v.ndim})
    return found


def test_recorded_networks_train_as_plain_ones(monkeypatch):
    if not CUDA:
        monkeypatch.setattr(graphs, "_Recorded", Called)
    plain, recorded = losses(recorded=False), losses(recorded=True)
    assert "critic" in plain[-1]
    assert "critic" not in plain[0]
    for expected, step in zip(plain, recorded, strict=True):
        assert step == pytest.approx(expected, rel=0.02 if CUDA else 1e-5, abs=1e-3 if CUDA else 0)
