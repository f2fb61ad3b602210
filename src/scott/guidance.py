"""Classifier-free guidance: a denoiser that wraps a denoiser (Ho & Salimans 2022).

    x̂0 = x̂0(uncond) + scale (x̂0(cond) − x̂0(uncond))

At one state and time x0 and ε are affine in each other, so guiding x0 and guiding ε are the same. Scale 1 is
off. The other common form, cond + ω (cond − uncond), has ω = scale − 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scott.diffusion import Denoiser, expand_like
from scott.errors import UserError


@dataclass(frozen=True)
class GuidedDenoiser:
    """The guided x̂0 of `predict`, in one call on the batch [uncond, cond].

    Attributes:
        predict: the unguided denoiser.
        uncond: the empty condition, built like cond; a leaf with batch 1 serves the whole batch.
        scale: a number, or (B,) for one per sample. Where it is 1 throughout, predict is called with cond
            alone.
        low_memory: two calls of batch B instead of one of 2B.
        rescale: what is made of the guided and the conditional one, each like x_t; the guided one as it is by default.
    """

    predict: Denoiser
    uncond: Any
    scale: float | Tensor
    low_memory: bool = False
    rescale: Callable[[Tensor, Tensor], Tensor] = lambda guided, conditional: guided

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        scale = torch.as_tensor(self.scale).detach().cpu().double()
        if bool((scale == 1).all()):
            return self.predict(x_t, t, cond)
        if self.low_memory:
            x0_uncond = self.predict(x_t, t, expand_cond(self.uncond, len(x_t)))
            x0_cond = self.predict(x_t, t, cond)
        else:
            both = cat_cond(expand_cond(self.uncond, len(x_t)), cond)
            x0_uncond, x0_cond = self.predict(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return self.rescale(x0_uncond + expand_like(scale, x_t) * (x0_cond - x0_uncond), x0_cond)


def cat_cond(first: Any, second: Any) -> Any:
    """Two conditions as one batch. A condition is None, a tensor (B, ...), or a mapping of names to them.

    Raises:
        UserError: the two are not built alike.
    """
    if first is None and second is None:
        return None
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    if isinstance(first, Mapping) and isinstance(second, Mapping) and first.keys() == second.keys():
        return {name: cat_cond(first[name], second[name]) for name in first}
    raise UserError(
        f"got conditions {_built(first)} and {_built(second)}; expected both None, both tensors, or mappings "
        "with the same names. Encode the empty prompt the way the prompts were encoded."
    )


def expand_cond(cond: Any, batch: int) -> Any:
    """A condition whose leaves of batch 1 are repeated to `batch`."""
    if isinstance(cond, Tensor):
        return cond.expand(batch, *cond.shape[1:])
    if isinstance(cond, Mapping):
        return {name: expand_cond(leaf, batch) for name, leaf in cond.items()}
    return cond


def _built(cond: Any) -> str:
    return f"{{{', '.join(sorted(cond))}}}" if isinstance(cond, Mapping) else type(cond).__name__
