"""What a training step is given: latents as mean and standard deviation, and their text conditioning."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from scott.rng import generator_for


@dataclass(frozen=True)
class Batch:
    """B captioned images, encoded. The VAE's posterior is kept so that each visit draws a new latent.

    mean, std: (B, C, H, W), scaled latents; cond: name → (B, ...).
    """

    mean: Tensor
    std: Tensor
    cond: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, rows: Tensor | slice) -> "Batch":
        return Batch(self.mean[rows], self.std[rows], {name: value[rows] for name, value in self.cond.items()})

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "Batch":
        cond = {name: value.to(device, dtype) for name, value in self.cond.items()}
        return replace(self, mean=self.mean.to(device, dtype), std=self.std.to(device, dtype), cond=cond)


class BatchSource(Protocol):
    """Where training batches come from. Batch n is a pure function of the source and n, so a run resumes anywhere."""

    def batch(self, step: int, size: int, part: slice = slice(None)) -> Batch:
        """Those of the `size` samples of step `step` that `part` selects."""


_ORDER = 1  # keeps the stream of an epoch's order apart from those of the steps


class CachedSource:
    """A data set held in memory as one `Batch`, visited in a new order each epoch."""

    def __init__(self, samples: Batch, name: str, seed: int) -> None:
        if len(samples) == 0:
            raise ValueError(f"{name} holds no samples; expected one or more")
        self.samples, self.name, self.seed = samples, name, seed

    def batch(self, step: int, size: int, part: slice = slice(None)) -> Batch:
        """Samples step · size, ..., step · size + size − 1 of the endless sequence of shuffled epochs, or a part."""
        count = len(self.samples)
        positions = torch.arange(step * size, (step + 1) * size)[part]
        rows = torch.cat(
            [self._order(int(e))[positions[positions // count == e] % count] for e in (positions // count).unique()]
        )
        return self.samples[rows]

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.samples), generator=generator_for(self.seed, epoch, _ORDER))
