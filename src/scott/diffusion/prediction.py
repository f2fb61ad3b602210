"""What a network's output means: epsilon, v, x0 or flow, and the way from each to x0.

A state is x_t = α_t x0 + σ_t ε, and each kind of output is another weighted sum of the same two unknowns:

    output = p x0 + q ε        epsilon: (p, q) = (0, 1)      v: (−σ_t, α_t)      x0: (1, 0)      flow: (−1, 1)

Two equations in two unknowns, solved by Cramer's rule:

    x0 = (q x_t − σ_t output) / Δ,    Δ = α_t q − σ_t p
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scott.choices import unknown
from scott.diffusion.tensors import expand_like
from scott.errors import UserError

Denoiser = Callable[[Tensor, Tensor, Any], Tensor]
"""(x_t (B, ...), t (B,) in the schedule's own units, cond) → x0 like x_t."""

_WEIGHTS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "epsilon": lambda alpha_t, sigma_t: (torch.zeros_like(alpha_t), torch.ones_like(alpha_t)),
    "v": lambda alpha_t, sigma_t: (-sigma_t, alpha_t),
    "x0": lambda alpha_t, sigma_t: (torch.ones_like(alpha_t), torch.zeros_like(alpha_t)),
    "flow": lambda alpha_t, sigma_t: (-torch.ones_like(alpha_t), torch.ones_like(alpha_t)),
}
_DIFFUSERS_NAMES = {"v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}


def prediction_name(prediction: str) -> str:
    """The short name (epsilon, v, x0, flow) of a prediction, which may be spelled as diffusers does.

    Raises:
        UserError: the name is neither; the message lists all that are known.
    """
    name = _DIFFUSERS_NAMES.get(prediction, prediction)
    if name not in _WEIGHTS:
        raise unknown("prediction", prediction, [*_WEIGHTS, *_DIFFUSERS_NAMES])
    return name


def to_x0(prediction: str, output: Tensor, x_t: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """The clean data that a network's output stands for, x0 = (q x_t − σ_t output) / Δ.

    Args:
        prediction: epsilon | v | x0 | flow, or diffusers' v_prediction | sample | flow_prediction.
        output: what the network returned, (B, ...).
        x_t: the state it was given, (B, ...).
        alpha_t, sigma_t: float64, (B,).

    Raises:
        UserError: Δ = 0, so the output says nothing of x0: epsilon where α_t = 0.
    """
    if (name := prediction_name(prediction)) == "x0":
        return output
    p, q = _WEIGHTS[name](alpha_t, sigma_t)
    delta = alpha_t * q - sigma_t * p
    if bool((delta == 0).any()):
        raise UserError(
            f"got prediction {prediction!r} where alpha = {float(alpha_t[delta == 0].min()):g}; expected a time where "
            "it fixes x0. An epsilon network cannot start from zero terminal SNR: use v, x0 or flow."
        )
    return expand_like(q / delta, x_t) * x_t - expand_like(sigma_t / delta, x_t) * output
