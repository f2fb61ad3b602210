"""The measures that go into a run's log."""

import math

import pytest
import torch
from tests.training.by_hand import make_config

from scott.training.metrics import CriticWatch, Spread, StepTimer, memory_gb


def accuracies(real, fake):
    return {"critic": 1.0, "critic_real_accuracy": real, "critic_fake_accuracy": fake}


@pytest.mark.parametrize(
    ("real", "fake", "said"),
    [
        (0.5, 0.5, "tells nothing (accuracy 0.50 over 5 steps); raise"),
        (0.8, 0.2, "tells nothing (accuracy 0.50 over 5 steps); raise"),
        (1.0, 0.0, "says the same of all (accuracy 0.50 over 5 steps); lower"),
        (0.01, 0.98, "says the same of all (accuracy 0.49 over 5 steps); lower"),
        (1.0, 0.99, "always wins (accuracy 0.99 over 5 steps); lower"),
    ],
)
def test_a_critic_at_chance_or_always_right_is_warned_of_once_a_window(real, fake, said):
    watch = CriticWatch(window=5)
    warnings = [watch.see(step, accuracies(real, fake)) for step in range(1, 11)]
    assert [step for step, warning in enumerate(warnings, 1) if warning] == [5, 10]
    assert said in warnings[4]
    assert "step 5" in warnings[4]


def test_a_critic_that_swings_from_one_constant_to_another_says_the_same_of_all():
    watch = CriticWatch(window=6)
    warnings = [watch.see(step, accuracies(step % 2, 1 - step % 2)) for step in range(6)]
    assert "says the same of all" in warnings[-1]


def test_a_critic_that_is_in_the_game_is_left_alone():
    watch = CriticWatch(window=5)
    assert not any(watch.see(step, accuracies(0.8, 0.7)) for step in range(20))
    assert not any(watch.see(step, {"consistency": 1.0}) for step in range(20))


def test_times_are_means_over_steps_and_leave_out_what_is_skipped(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 4.0, 100.0, 103.0, 105.0, 105.5])
    monkeypatch.setattr("scott.training.metrics.time.perf_counter", lambda: next(clock))
    timer = StepTimer(torch.device("cpu"))
    for part in ("data", "teacher", "update"):  # 1, 2 and 1 seconds
        timer.mark(part)
    timer.skip()
    for part in ("data", "teacher", "update"):  # 3, 2 and a half
        timer.mark(part)
    assert timer.read() == {"data": 2.0, "teacher": 2.0, "update": 0.75}


def test_times_are_counted_once(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 10.0, 14.0])
    monkeypatch.setattr("scott.training.metrics.time.perf_counter", lambda: next(clock))
    timer = StepTimer(torch.device("cpu"))
    timer.mark("data"), timer.mark("update")
    assert timer.read() == {"data": 1.0, "update": 2.0}
    timer.mark("data"), timer.mark("update")
    assert timer.read() == {"data": 7.0, "update": 4.0}


def test_memory_is_what_the_process_holds():
    held = torch.ones(2**26)  # 268 MB
    assert memory_gb(torch.device("cpu")) > held.nbytes / 1e9


def moments(scales, count, generator):
    """A batch's, of outputs that are `scales` times as wide as the data, `count` rows of each of both halves."""
    rows = []
    for scale in scales:
        x0 = torch.randn(count, 1000, generator=generator)
        f = 3 + scale * torch.randn(count, 1000, generator=generator)
        each = [torch.ones_like(x0), f, f.square(), x0, x0.square()]
        rows.append(torch.stack([value.mean() for value in each]) * count / 32)
    return torch.stack(rows)


def test_spread_is_that_of_outputs_over_that_of_data_and_follows_a_change():
    config = make_config(batch_size=32, critic_fakes="drawn", drawn_fraction=1.0, critic_input="clean")
    spread, generator = Spread([999, 503, 999], config), torch.Generator().manual_seed(0)
    assert spread.names == ["spread_999", "spread_503", "spread_drawn_999", "spread_drawn_503"]
    values = spread.add(moments([1.0, 0.9, 0.5, 2.0], 8, generator))
    for name, scale in zip(spread.names, [1.0, 0.9, 0.5, 2.0], strict=True):
        assert values[name] == pytest.approx(math.log10(scale), abs=0.01)
    for _ in range(400):  # 3,200 rows: 6 times the window
        values = spread.add(moments([0.95, 1.0, 1.0, 1.0], 8, generator))
    assert [round(10**value, 2) for value in values.values()] == [0.95, 1.0, 1.0, 1.0]

    again = Spread([999, 503], config)
    again.load({"spread": spread.sums.tolist()})
    assert again.add(torch.zeros(4, 5)) == pytest.approx(spread.add(torch.zeros(4, 5)))


def test_a_time_at_which_no_row_was_has_no_spread():
    noised = Spread([0.7, 1.0], make_config())
    assert noised.names == ["spread_1", "spread_0.7"]
    assert noised.add(torch.zeros(2, 5)) == {}


@pytest.mark.parametrize(
    ("off", "said"),
    [(0.95, "less noise or more"), (1.05, "if guidance does not ask for it, less of the critic"), (0.99, None)],
)
def test_a_spread_out_of_balance_is_warned_of(off, said):
    spread, generator = Spread([999, 503], make_config(batch_size=32)), torch.Generator().manual_seed(0)
    for _ in range(100):
        values = spread.add(moments([1.0, off], 8, generator))
    assert spread.warning(100, {"critic": 1.0} | values) is None, "not yet time"
    assert spread.warning(200, values) is None, "there is no critic to balance it with"
    warning = spread.warning(200, {"critic": 1.0} | values)
    assert (warning is None) == (said is None)
    if said:
        assert f"step 200: spread_503: the student's spread is {off:.2f} of the data's; {said}" in warning
