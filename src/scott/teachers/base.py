"""What the rest of scott asks of a teacher, whatever its architecture.

A backbone is one frozen network with its text encoder and VAE. On it stand up to four models: the teacher (the plain
network), the student, its EMA target, and the critic.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from scott.diffusion import JumpGrid, NoiseSchedule

Cond = dict[str, Tensor]
"""Conditioning by name, every value (B, ...). `guidance` (B,) is ω, the classifier-free guidance scale a student
imitates, in the form uncond + ω (cond − uncond); a teacher ignores it."""


class Backbone(Protocol):
    schedule: NoiseSchedule
    prediction: str
    latent_shape: tuple[int, int, int]
    resolution: int
    """Side of the pictures, in pixels, that latents of `latent_shape` stand for."""
    takes_guidance: ClassVar[bool]
    """Whether a full student is told ω; one that is not is trained for a single ω."""
    size_names: ClassVar[tuple[str, ...]]
    """Which of a condition's values tell the network the picture's size."""
    original_inference_steps: int | None
    """Of a consistency student, how many steps its training grid has; None for a teacher."""

    @property
    def device(self) -> torch.device: ...

    def to(self, device: torch.device | str) -> Self: ...

    def add_student(self, train: str, *, rank: int, alpha: float, variant: str = "lora") -> None:
        """Make the student and its EMA target, equal to the teacher: adapters ("lora") or copies ("full")."""

    def add_critic(self, rank: int, kind: str = "lora") -> None:
        """Make the critic: an adapter on the decoder ("lora", "unconditional") or a copy ("full"), and a head."""

    def compile(self) -> None:
        """torch.compile the networks."""

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""

    def shard_network(self) -> None:
        """Split the frozen network over the processes; needs a process group."""

    def park_encoders(self) -> None:
        """Move text encoders and VAE off the device; prompts can still be encoded, latents decoded."""

    def save_student(self, folder: Path, grid: JumpGrid) -> None:
        """Write the EMA student as a stock diffusers pipeline folder."""

    def encode_prompts(self, prompts: Sequence[str], *, truncate: bool = False) -> Cond:
        """Text conditioning of B prompts; one longer than the text encoder takes is cut, or a `UserError`."""

    def size_cond(self, height: int, width: int) -> Cond:
        """The values of `size_names` for an uncropped picture of that many pixels, with batch 1."""

    def unconditional(self) -> Cond:
        """The condition that guidance pushes away from, with batch 1."""

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents (B, C, H, W) of pixels (B, 3, H', W') in [0, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H', W') in [0, 1] of scaled latents."""

    def teacher(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x̂0 of the frozen network, unguided."""

    def student(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x̂0 of the student's network; the boundary is not applied."""

    def target(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x̂0 of the student's EMA."""

    def critic_features(self, x0: Tensor, t: Tensor, cond: Cond) -> Any:
        """The frozen encoder's features of x0, given time t and the text."""

    def critic_logits(self, features: Any) -> Tensor:
        """Logits (B, ...), one a place, of the adapted decoder on those features."""

    def student_parameters(self) -> dict[str, nn.Parameter]: ...

    def target_parameters(self) -> dict[str, nn.Parameter]: ...

    def critic_parameters(self) -> dict[str, nn.Parameter]: ...
