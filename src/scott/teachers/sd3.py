"""Stable Diffusion 3: a transformer over text and image tokens together, trained as a rectified flow."""

from collections.abc import Sequence

import torch
from diffusers import ModelMixin
from torch import Tensor

from scott.teachers import Cond, lora
from scott.teachers.network import LatentBackbone

TEXT_ATTENTION = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
TEXT_FEED_FORWARD = ("ff_context.net.0.proj", "ff_context.net.2")
T5_TOKENS = 256  # the stock pipeline's default


class SD3Backbone(LatentBackbone):
    """A `StableDiffusion3Pipeline`, with or without its T5."""

    student_layers = lora.ATTENTION + lora.FEED_FORWARD + TEXT_ATTENTION + TEXT_FEED_FORWARD

    @torch.no_grad()
    def _encode_prompts(self, prompts: Sequence[str], truncate: bool) -> Cond:
        """{"text": (B, L, D), "pooled": (B, D2)}. With T5 a prompt may have 256 tokens; the CLIPs see the first 77."""
        pipeline = self.pipeline
        if not truncate and pipeline.text_encoder_3 is not None:
            self._check_length(prompts, pipeline.tokenizer_3, T5_TOKENS, special=1)
        elif not truncate:
            self._check_length(prompts, pipeline.tokenizer, pipeline.tokenizer.model_max_length, special=2)
        text, _, pooled, _ = self._encoded(prompts, T5_TOKENS, prompt_2=None, prompt_3=None)
        return {"text": text.to(self.device), "pooled": pooled.to(self.device)}

    def predict(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        return network(x_t, cond["text"], cond["pooled"], timestep).sample
