"""A small source of batches, and what a run left in its folder."""

import pytest
import torch

from scott.data.batch import Batch
from scott.training.checkpoint import latest_checkpoint, load_checkpoint
from scott.training.metrics import read_metrics

STEPS = 6
SPREAD_STEPS = 10
"""Of the runs that are compared over processes."""
MEASURED = ("seconds_", "images_per_second", "memory_gb")
"""Figures that differ from run to run."""


class InMemory:
    """Samples in turn, over and over."""

    version, varied = "memory", False

    def __init__(self, samples):
        self.samples = samples

    def batch(self, step, size, part=slice(None)):
        return self.samples[torch.arange(step * size, (step + 1) * size)[part] % len(self.samples)]


def source(backbone, mean=None):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(5, *backbone.latent_shape, generator=generator) if mean is None else mean
    cond = backbone.encode_prompts(["a", "b", "c", "a cat", ""])
    return InMemory(Batch(mean, torch.full_like(mean, 0.1), cond))


def final(out):
    return load_checkpoint(latest_checkpoint(out / "checkpoints"))


def metrics(out):
    """The records, those of one step as one."""
    by_step = {}
    for record in read_metrics(out / "metrics.jsonl"):
        by_step[record["step"]] = by_step.get(record["step"], {}) | record
    records = by_step.values()
    return [{k: v for k, v in record.items() if not k.startswith(MEASURED)} for record in records]


def assert_same_run(one, other):
    assert_same_run_but(one, other, set())


def assert_same_run_but(one, other, figures):
    """The same checkpoints, and the same log but for some figures."""
    (parts, state), (theirs, their_state) = final(one), final(other)
    assert state == their_state
    assert parts.keys() == theirs.keys()
    for part in parts:
        assert parts[part].keys() == theirs[part].keys()
        for name, value in parts[part].items():
            assert torch.equal(value, theirs[part][name]), f"{part} {name}"
    logs = ([{k: v for k, v in r.items() if k not in figures} for r in metrics(out)] for out in (one, other))
    assert next(logs) == next(logs)


def assert_same_up_to_sums(one, other):
    """Losses within 1e-4 and weights within a hundredth of what they moved: Adam turns rounding into steps."""
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        assert theirs.keys() == mine.keys()
        for loss in {"consistency", "critic"} & mine.keys():  # the critic comes later
            assert theirs[loss] == pytest.approx(mine[loss], rel=1e-4)
        assert theirs["student_gradient_norm"] == pytest.approx(mine["student_gradient_norm"], rel=1e-3)
    (parts, state), (their_parts, their_state) = final(one), final(other)
    spread, their_spread = (torch.tensor(s.pop("spread")) for s in (state, their_state))
    assert torch.allclose(spread, their_spread, rtol=1e-3, atol=1e-4)
    assert their_state.pop("balance") == pytest.approx(state.pop("balance"), rel=1e-3)  # of the gradients' norms
    assert state == their_state
    for part, tensors in parts.items():
        assert tensors.keys() == their_parts[part].keys()
        mine, theirs = (torch.cat([p[part][name].flatten() for name in tensors]) for p in (parts, their_parts))
        assert (mine - theirs).norm() < 1e-3 * mine.norm(), part
