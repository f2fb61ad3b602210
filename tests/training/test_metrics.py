"""The measures that go into a run's log."""

import pytest
import torch

from scott.training.metrics import CriticWatch, StepTimer, memory_gb


def accuracies(real, fake):
    return {"critic": 1.0, "critic_real_accuracy": real, "critic_fake_accuracy": fake}


@pytest.mark.parametrize(
    ("real", "fake", "said"), [(0.5, 0.5, "tells nothing"), (1.0, 0.0, "tells nothing"), (1.0, 0.99, "always wins")]
)
def test_a_critic_at_chance_or_always_right_is_warned_of_once_a_window(real, fake, said):
    watch = CriticWatch(window=5)
    warnings = [watch.see(step, accuracies(real, fake)) for step in range(1, 11)]
    assert [step for step, warning in enumerate(warnings, 1) if warning] == [5, 10]
    assert said in warnings[4]
    assert "step 5" in warnings[4]


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
