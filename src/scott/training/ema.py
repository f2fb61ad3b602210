"""Exponential moving average of parameters: θ⁻ ← μ θ⁻ + (1 − μ) θ."""

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def ema_update(target: Iterable[Tensor], source: Iterable[Tensor], decay: float) -> None:
    """θ⁻ ← decay · θ⁻ + (1 − decay) · θ, in place, pairwise (SCott and LCM, the target network)."""
    targets, sources = list(target), list(source)
    if len(targets) != len(sources):
        raise ValueError(f"got {len(targets)} target and {len(sources)} source tensors; they must pair up")
    torch._foreach_lerp_(targets, sources, 1.0 - decay)
