"""Where networks run, and in which of how many processes."""

import os

import torch

from scott.errors import UserError


def best_device() -> torch.device:
    """Of several processes, each has a GPU of its own that `start_processes` made the current one; where there is but
    Apple's, they compute on the CPU, as everything does with accelerate's `ACCELERATE_USE_CPU=true`."""
    if _cpu_is_asked_for():
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() and processes()[1] == 1 else "cpu")


def use_own_device() -> None:
    """Make this process's GPU, of those that a launcher deals out, the current one."""
    if torch.cuda.is_available() and not _cpu_is_asked_for():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


def _cpu_is_asked_for() -> bool:
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower()
    return asked in ("1", "true", "t", "yes", "y", "on")  # as accelerate reads it


def processes() -> tuple[int, int]:
    """(rank, number of processes), as torchrun and `accelerate launch` tell them. Raises `UserError` for no numbers."""
    given = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        return int(given[0]), int(given[1])
    except ValueError:
        raise UserError(
            f"got RANK {given[0]} and WORLD_SIZE {given[1]} in the environment; expected numbers, as torchrun sets them"
        ) from None
