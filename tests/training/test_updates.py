"""What one update does to the weights, by Adam's closed form: rates, clipping, weight decay, and whose draws it took.

AdamW's first step moves a parameter by −lr (g / |g| + decay · θ), and its first moment is then 0.1 of the clipped g.
"""

import pytest
import torch
from tests.training.runs import final, metrics, source

from scott.rng import generator_for
from scott.training.config import DistillConfig
from scott.training.draws import Draws
from scott.training.step import Distillation

ONE = {"max_steps": 1, "warmup_steps": 0}


def test_weights_decay_in_proportion_to_themselves(start, make_backbone, tmp_path):
    """Two runs alike but for it differ by lr · decay · θ."""
    for decay in (0.0, 0.5):
        start(tmp_path / str(decay), "full", weight_decay=decay, adversarial_weight=0.0, **ONE)
    plain, decayed = (final(tmp_path / str(decay))[0]["student"] for decay in (0.0, 0.5))
    for name, begin in make_backbone("full").student_parameters().items():
        torch.testing.assert_close(plain[name] - decayed[name], 1e-3 * 0.5 * begin.detach(), rtol=1e-2, atol=1e-6)


def test_gradients_are_clipped_to_their_norm(start, tmp_path):
    """Each model's by itself; the log has the norm before."""
    start(tmp_path, "full", clip_norm=1e-3, **ONE)
    for model in ("student", "critic"):
        moments = [v for name, v in final(tmp_path)[0][f"{model}_optimizer"].items() if name.endswith(".exp_avg")]
        norm = torch.cat([moment.flatten() for moment in moments]).norm().item()
        assert norm == pytest.approx(0.1 * 1e-3, rel=1e-3)
        assert metrics(tmp_path)[0][f"{model}_gradient_norm"] > 2e-3


def test_each_model_has_its_own_rate(start, make_backbone, tmp_path):
    start(tmp_path, "full", learning_rate=1e-3, critic_learning_rate=4e-3, **ONE)
    begin = make_backbone("full", critic_rank=2)
    for model, rate in (("student", 1e-3), ("critic", 4e-3)):
        after, before = final(tmp_path)[0][model], getattr(begin, f"{model}_parameters")()
        moved = torch.cat([(after[name] - before[name].detach()).abs().flatten() for name in after])
        assert moved.max() == pytest.approx(rate, rel=0.01)


def test_the_critics_adapter_has_the_critics_rate(start, tmp_path):
    """Behind a head of zeros B has no gradient before the second step, which moves it by lr √(1 + β₂) / (1 + β₁)."""
    start(tmp_path, learning_rate=1e-3, critic_learning_rate=4e-3, max_steps=2, warmup_steps=0)
    moved = [value.abs().flatten() for name, value in final(tmp_path)[0]["critic"].items() if "lora_B" in name]
    assert torch.cat(moved).max() == pytest.approx(4e-3 * 1.999**0.5 / 1.9, rel=0.01)


def test_the_draws_of_a_step_are_those_of_its_number(start, make_backbone, tmp_path):
    """The first step's loss is that of the generator (seed, 0)."""
    start(tmp_path, seed=3, **ONE)
    backbone = make_backbone("lora", critic_rank=2)
    config = DistillConfig.load(tmp_path / "config.json")
    distillation, batch = Distillation.of(backbone, config), source(backbone).batch(0, config.batch_size)
    made = distillation.step(batch, Draws.make(batch.mean.shape, distillation.grid, config, generator_for(3, 0)))
    assert metrics(tmp_path)[0]["consistency"] == pytest.approx(made["consistency"].item(), rel=1e-6)
