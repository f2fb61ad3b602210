"""Jumps that are trained on more than once."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from tests.training.by_hand import make_config
from tests.training.runs import final, metrics

from scott.diffusion import DiscreteSchedule
from scott.training.jumps import Jumps, batches_read, jumps_of_steps
from scott.training.step import Distillation


@pytest.mark.parametrize(("reuse", "size"), [(2, 5), (3, 8)])
def test_each_jump_is_used_as_often_as_is_said_and_few_are_kept(reuse, size):
    config = make_config(jump_reuse=reuse, jump_store=4 * size, batch_size=4)
    steps = [*islice(jumps_of_steps(config), 400)]
    uses, kept = Counter(), set()
    for jump, last in steps:
        uses[jump] += 1
        kept = kept - {jump} if last else kept | {jump}
        assert (uses[jump] == reuse) == last
        assert len(kept) <= size
    assert set(uses) == set(range(len(uses))) == set(range(batches_read(replace(config, max_steps=400))))
    assert len(uses) == pytest.approx(400 / reuse, abs=size)
    assert sorted(uses) == list(dict.fromkeys(jump for jump, _ in steps)), "new ones come in order"
    later = [jump for jump, _ in steps[2 * size :]]
    assert later != sorted(later)


@pytest.mark.parametrize("reuse", [1, 2, 3, 6])
def test_walks_are_a_part_of_the_steps_and_half_the_store(reuse):
    """K until the store is full; then jumps of 1, 2, .., N − 1 uses left are as many each, which is N/2 in the mean."""
    config, size = make_config(jump_reuse=reuse, jump_store=4 * 64, batch_size=4), 64
    assert batches_read(replace(config, max_steps=size)) == size
    for steps in (1000, 2750):
        walks = steps if reuse == 1 else steps / reuse + size / 2
        assert batches_read(replace(config, max_steps=steps)) == pytest.approx(walks, abs=4)


def test_without_reuse_each_step_has_its_own():
    assert [*islice(jumps_of_steps(make_config()), 4)] == [(n, True) for n in range(4)]


def test_a_jump_that_is_used_again_has_its_draws_and_the_critic_new_ones():
    config = make_config(jump_reuse=3, jump_store=2, batch_size=2, max_steps=9)
    jumps, grid = Jumps(config), config.make_grid(DiscreteSchedule.stable_diffusion())
    assert [jump for jump, _ in jumps.of_steps] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    first, second, other = (jumps.draws(step, torch.Size((2, 1, 2, 2)), grid) for step in (0, 1, 3))
    for name in ("t_n", "omega", "latent", "noise"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.noise, other.noise)
    assert not torch.equal(first.critic_noise[0], second.critic_noise[0])


def test_a_used_jump_is_not_walked_again_and_trains_the_same(start, tmp_path, monkeypatch):
    """With all of a run's walks made anew, the run is the same, and walks as often as it has steps."""
    settings = {"adversarial_weight": 0.0, "jump_reuse": 3, "jump_store": 4, "sample_every": 1000}
    walks, walk = [], Distillation.walk

    def counted(*inputs):
        walks.append(inputs)
        return walk(*inputs)

    monkeypatch.setattr(Distillation, "walk", counted)
    start(tmp_path / "kept", **settings)
    assert len(walks) == len({jump for jump, _ in Jumps(make_config(**settings, batch_size=2, max_steps=6)).of_steps})
    assert len(walks) < 6
    monkeypatch.setattr(Jumps, "end", lambda self, step, part, walk: walk())
    start(tmp_path / "anew", **settings)
    kept, anew = (metrics(tmp_path / name) for name in ("kept", "anew"))
    assert kept == anew
    students = [final(tmp_path / name)[0]["student"] for name in ("kept", "anew")]
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())
