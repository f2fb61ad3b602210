"""Stable Diffusion 3: a transformer over text and image tokens together, trained as a rectified flow.

The first half of the blocks is the encoder, the second half the decoder.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from scott.teachers import lora
from scott.teachers.base import Cond
from scott.teachers.latent import LatentBackbone
from scott.teachers.transformer import decoder_names, run_block

TEXT_ATTENTION = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
TEXT_FEED_FORWARD = ("ff_context.net.0.proj", "ff_context.net.2")
T5_TOKENS = 256  # the stock pipeline's default


class Features(NamedTuple):
    """Image and text tokens after the first half, and the embedding of time and pooled text."""

    tokens: Tensor
    text: Tensor | None
    time: Tensor


class SD3Backbone(LatentBackbone):
    """A `StableDiffusion3Pipeline`, with or without its T5."""

    part = "transformer"
    output_layer = "proj_out"
    student_layers = lora.ATTENTION + lora.FEED_FORWARD + TEXT_ATTENTION + TEXT_FEED_FORWARD
    critic_layers = student_layers

    @property
    def decoder_prefixes(self) -> tuple[str, ...]:
        return decoder_names(self.network)

    @property
    def feature_channels(self) -> int:
        return self.network.config.num_attention_heads * self.network.config.attention_head_dim

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], *, truncate: bool = False) -> Cond:
        """{"text": (B, L, D), "pooled": (B, D2)}. With T5 a prompt may have 256 tokens; the CLIPs see the first 77."""
        pipeline = self.pipeline
        if not truncate and pipeline.text_encoder_3 is not None:
            self._check_length(prompts, pipeline.tokenizer_3, T5_TOKENS, special=1)
        elif not truncate:
            self._check_length(prompts, pipeline.tokenizer, pipeline.tokenizer.model_max_length, special=2)
        text, _, pooled, _ = pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=T5_TOKENS,
        )
        return {"text": text.to(self.device), "pooled": pooled.to(self.device)}

    def predict(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        return network(x_t, cond["text"], cond["pooled"], timestep).sample

    def encode(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Features:
        time = network.time_text_embed(timestep, cond["pooled"])
        features = Features(network.pos_embed(x_t).contiguous(), network.context_embedder(cond["text"]), time)
        return self._blocks(network, network.transformer_blocks[: len(network.transformer_blocks) // 2], features)

    def decode_features(self, network: ModelMixin, features: Features) -> Tensor:
        """The second half and the final norm: (B, tokens, channels)."""
        features = self._blocks(network, network.transformer_blocks[len(network.transformer_blocks) // 2 :], features)
        return network.norm_out(features.tokens, features.time)

    def _blocks(self, network: ModelMixin, blocks: nn.ModuleList, features: Features) -> Features:
        tokens, text, time = features
        for block in blocks:
            text, tokens = run_block(network, block, tokens, text, time, None)
        return Features(tokens, text, time)
