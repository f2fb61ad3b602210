"""Which device networks compute on: of a CUDA GPU the process's own, Apple's in one process alone, else the CPU."""

import pytest
import torch

from scott.device import best_device, use_own_device
from scott.errors import UserError
from scott.training.optimization import optimizer_class


@pytest.fixture
def mac(monkeypatch):
    """A machine with Apple's GPU and no other."""
    for name in ("RANK", "WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("environment", "device"),
    [
        ({}, "mps"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "mps"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "cpu"),  # as accelerate has them
        ({"ACCELERATE_USE_CPU": "False"}, "mps"),
        ({"ACCELERATE_USE_CPU": "true"}, "cpu"),
        ({"ACCELERATE_USE_CPU": "1"}, "cpu"),
    ],
)
def test_apples_gpu_is_for_one_process_that_is_not_told_otherwise(mac, monkeypatch, environment, device):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert best_device().type == device


def test_no_gpu_is_touched_where_the_cpu_is_asked_for(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", None)
    use_own_device()
    assert best_device().type == "cpu"


def test_eight_bit_optimizers_are_refused_where_they_have_no_kernels(mac):
    with pytest.raises(UserError, match="got --optimizer adamw8bit on MPS"):
        optimizer_class("adamw8bit")
