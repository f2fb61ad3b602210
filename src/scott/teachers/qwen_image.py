"""Qwen-Image: a rectified flow over packed latents, under guidance that keeps the length of the conditional output."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor
from torch.nn import functional as F

from scott.teachers import Cond, lora
from scott.teachers.flux import FluxLike, exact_times
from scott.teachers.sd3 import TEXT_ATTENTION

TOKENS = 512  # of a prompt in its template, the stock pipeline's default


class QwenImageBackbone(FluxLike):
    """A `QwenImagePipeline`. Its VAE is one of videos, to which a picture is a frame."""

    block_lists = ("transformer_blocks",)
    student_layers = (*lora.ATTENTION, *TEXT_ATTENTION, "net.0.proj", "net.2")
    has_unused_parameters = True  # of the last block's text stream, which ends there

    @staticmethod
    def guidance_options(omega: float) -> dict[str, Any]:
        """Under another name than others', and with the negative prompt without which it guides nothing."""
        return {"true_cfg_scale": omega} | ({"negative_prompt": ""} if omega > 1 else {})

    @property
    def latent_channels(self) -> int:
        return self.vae.config.z_dim

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(pixels[:, :, None]).latent_dist
        return posterior.mean[:, :, 0], posterior.std[:, :, 0]

    def _decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z[:, :, None]).sample[:, :, 0]

    @torch.no_grad()
    def _encode_prompts(self, prompts: Sequence[str], truncate: bool) -> Cond:
        """{"text": (B, L, D), "mask": (B, L)}, mask 1 on the tokens behind the template's first 34; L = 512."""
        pipeline = self.pipeline
        if self.device.type == "meta":
            return self.blank(len(prompts), text=(TOKENS, self.network.config.joint_attention_dim), mask=(TOKENS,))
        if not truncate:
            written = [pipeline.prompt_template_encode.format(prompt) for prompt in prompts]
            start = pipeline.prompt_template_encode_start_idx
            self._check_length(prompts, pipeline.tokenizer, TOKENS + start, special=start, written=written)
        device = pipeline.text_encoder.device
        text, mask = pipeline.encode_prompt(list(prompts), device=device, max_sequence_length=TOKENS)
        mask = torch.ones(text.shape[:2]) if mask is None else mask  # which it leaves out where it would be all ones
        short = TOKENS - text.shape[1]
        text, mask = F.pad(text, (0, 0, 0, short)), F.pad(mask, (0, short))
        return {"text": text.to(self.device), "mask": mask.to(self.device, text.dtype)}

    def rescale_guided(self, x_t: Tensor, guided: Tensor, conditional: Tensor) -> Tensor:
        """x̂0 of v̂ = g ‖v̂(cond)‖ / ‖g‖ at each token, g the guided velocity; v̂ = (x_t − x̂0) / σ, and σ is cancelled."""
        velocity, wanted = (self.pack(x_t - x0) for x0 in (guided, conditional))
        scale = wanted.norm(dim=-1, keepdim=True) / velocity.norm(dim=-1, keepdim=True)
        return x_t - self.unpack(velocity * scale, x_t)

    def predict(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        rows, columns = (side // self.token_side for side in x_t.shape[-2:])
        with exact_times(network.time_text_embed, timestep):
            return network(
                self.pack(x_t),
                encoder_hidden_states=cond["text"],
                encoder_hidden_states_mask=cond["mask"].bool(),
                timestep=timestep,
                img_shapes=[[(1, rows, columns)]] * len(x_t),
            ).sample
