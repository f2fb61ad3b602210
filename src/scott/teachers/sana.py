"""Sana: a rectified flow with linear attention, over latents of 32 pixels a place of a deterministic VAE (DC-AE)."""

import inspect
from collections.abc import Sequence

import torch
from diffusers import ModelMixin, SanaPipeline
from torch import Tensor

from scott.errors import UserError
from scott.teachers import Cond, lora
from scott.teachers.network import LatentBackbone

TOKENS = 300  # of a prompt, the stock pipeline's default
INSTRUCTION: list[str] = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
"""What the stock pipeline writes before a prompt."""


class SanaBackbone(LatentBackbone):
    """A `SanaPipeline`."""

    student_layers = (*lora.ATTENTION, "conv_inverted", "conv_point")
    own_size, exports_onnx = True, False

    def check_resolution(self, resolution: int) -> None:
        """Of an edition with positions, which scale with the size in its config, its own alone."""
        if self.network.config.get("interpolation_scale") is not None and resolution != self.resolution:
            raise UserError(
                f"got resolution {resolution} for a Sana teacher of {self.resolution}, whose positions are of that "
                "size; prepare its data without --resolution, or take its edition of another size"
            )
        super().check_resolution(resolution)

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        z = self.vae.encode(pixels).latent
        return z, torch.zeros_like(z)

    def _encode_prompts(self, prompts: Sequence[str], truncate: bool) -> Cond:
        """{"text": (B, L, D), "mask": (B, L)}: states of the prompt's own tokens, behind the instruction; L = 300."""
        return self._states(prompts, INSTRUCTION, truncate)

    def _unconditional(self, prompt: str | None) -> Cond:
        """Without the instruction."""
        return self._states([prompt or ""], None)

    @torch.no_grad()
    def _states(self, prompts: Sequence[str], instruction: list[str] | None, truncate: bool = False) -> Cond:
        if self.device.type == "meta":
            return self.blank(len(prompts), text=(TOKENS, self.network.config.caption_channels), mask=(TOKENS,))
        if not truncate:
            self._check_length(prompts, self.pipeline.tokenizer, TOKENS - 1, special=1)
        text, mask, _, _ = self._encoded(prompts, TOKENS, complex_human_instruction=instruction)
        return {"text": text.to(self.device), "mask": mask.to(self.device, text.dtype)}

    def network_time(self, t: Tensor) -> Tensor:
        return self.schedule.timestep(t) * self.network.config.timestep_scale

    def predict(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        return network(x_t, cond["text"], timestep, encoder_attention_mask=cond["mask"]).sample
