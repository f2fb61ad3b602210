"""Classifier-free guidance: a denoiser that wraps a denoiser (Ho & Salimans 2022).

    x̂0 = x̂0(uncond) + scale (x̂0(cond) − x̂0(uncond))

At one state and time x0 and ε are affine in each other, so guiding x0 and guiding ε are the same. Scale 1 is
off. The other common form, cond + ω (cond − uncond), has ω = scale − 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scott.diffusion import Denoiser, expand_like


@dataclass(frozen=True)
class GuidedDenoiser:
    """The guided x̂0 of `predict`, in one call on the batch [uncond, cond].

    Attributes:
        predict: the unguided denoiser.
        uncond: the empty condition, with cond's names, of which `guidance`, which a teacher ignores, may be left out. A
            leaf with batch 1 serves the whole batch.
        scale: a number, or (B,) for one per sample. Where it is 1 throughout, predict is called with cond
            alone.
        low_memory: two calls of batch B instead of one of 2B.
        rescale: what is made of x_t, the guided x̂0 and the conditional one; the guided one as it is by default.
    """

    predict: Denoiser
    uncond: Mapping[str, Tensor]
    scale: float | Tensor
    low_memory: bool = False
    rescale: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x_t, guided, conditional: guided

    def __call__(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        scale = torch.as_tensor(self.scale).detach().cpu().double()
        if bool((scale == 1).all()):
            return self.predict(x_t, t, cond)
        uncond = expand_cond(self.uncond, len(x_t))
        if self.low_memory:
            x0_uncond, x0_cond = self.predict(x_t, t, uncond), self.predict(x_t, t, cond)
        else:
            given = {name: leaf for name, leaf in cond.items() if name != "guidance" or name in uncond}  # a student's ω
            both = {name: torch.cat([uncond[name], leaf]) for name, leaf in given.items()}
            x0_uncond, x0_cond = self.predict(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return self.rescale(x_t, x0_uncond + expand_like(scale, x_t) * (x0_cond - x0_uncond), x0_cond)


def expand_cond(cond: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
    """A condition whose leaves of batch 1 are repeated to `batch`."""
    return {name: leaf.expand(batch, *leaf.shape[1:]) for name, leaf in cond.items()}
