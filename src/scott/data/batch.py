"""What a training step is given: latents as mean and standard deviation, and their text conditioning."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


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
