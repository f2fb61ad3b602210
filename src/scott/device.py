"""Where networks run."""

import torch


def best_device() -> torch.device:
    """Of several processes, each has a GPU of its own that `start_processes` made the current one."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
