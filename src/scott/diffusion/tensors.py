"""Bringing coefficients, times and noise to a state tensor: the only place that broadcasts, casts or draws.

Coefficients live as float64 tensors of shape (B,) on the CPU, where every device can compute them; each is
cast once, when it meets the state.
"""

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions by the names that options have for them."""


def expand_like(coef: Tensor, x: Tensor) -> Tensor:
    """A coefficient (B,) or () as a tensor of x's dtype and device that broadcasts over x (B, ...)."""
    # Cast before moving: some devices have no float64.
    coef = coef.to(x.dtype).to(x.device)
    return coef.reshape(coef.shape + (1,) * (x.ndim - coef.ndim)) if coef.ndim else coef


def time_like(t: Tensor, x: Tensor) -> Tensor:
    """Times for a network, on x's device: integers as they are, floats at x's precision, float32 at least."""
    return (t.to(torch.promote_types(x.dtype, torch.float32)) if t.is_floating_point() else t).to(x.device)


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """w ~ N(0, I) like x, drawn on the generator's device: a CPU generator gives every device one noise."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
