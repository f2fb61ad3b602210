"""PixArt-α and PixArt-Σ: a transformer with cross-attention to T5's text, and one adaptive norm for all blocks.

The first half of the blocks is the encoder, the second half the decoder.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import ModelMixin, PixArtSigmaPipeline
from torch import Tensor, nn

from scott.teachers import lora
from scott.teachers.base import Cond
from scott.teachers.latent import LatentBackbone
from scott.teachers.transformer import decoder_names, run_block


class Features(NamedTuple):
    """Tokens after the first half, and what the second half is told besides."""

    tokens: Tensor
    text: Tensor
    mask: Tensor
    time: Tensor
    embedded_time: Tensor


class PixArtBackbone(LatentBackbone):
    """A `PixArtAlphaPipeline` or `PixArtSigmaPipeline`; the learned variance is dropped."""

    part = "transformer"
    output_layer = "proj_out"
    student_layers = lora.ATTENTION + lora.FEED_FORWARD
    critic_layers = lora.ATTENTION + lora.FEED_FORWARD

    @property
    def decoder_prefixes(self) -> tuple[str, ...]:
        return decoder_names(self.network)

    @property
    def feature_channels(self) -> int:
        return self.network.config.num_attention_heads * self.network.config.attention_head_dim

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], *, truncate: bool = False) -> Cond:
        """{"text": (B, L, D), "mask": (B, L)}, mask 1 on the prompt's own tokens; L = 120 for α, 300 for Σ."""
        limit = 300 if isinstance(self.pipeline, PixArtSigmaPipeline) else 120
        if not truncate:
            self._check_length(prompts, self.pipeline.tokenizer, limit, special=1)
        text, mask, _, _ = self.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=self.pipeline.text_encoder.device,
            max_sequence_length=limit,
        )
        return {"text": text.to(self.device), "mask": mask.to(self.device, text.dtype)}

    def predict(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        output = network(
            x_t,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"],
            timestep=timestep,
            added_cond_kwargs=self._added(network, x_t),
        ).sample
        return output[:, : x_t.shape[1]]

    def encode(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Features:
        time, embedded = network.adaln_single(
            timestep, self._added(network, x_t), batch_size=len(x_t), hidden_dtype=x_t.dtype
        )
        text = cond["text"] if network.caption_projection is None else network.caption_projection(cond["text"])
        # a bias on the attention's scores, as the network makes of a mask
        mask = ((1 - cond["mask"]) * -10000.0)[:, None]
        features = Features(network.pos_embed(x_t), text, mask, time, embedded)
        return self._blocks(network, network.transformer_blocks[: len(network.transformer_blocks) // 2], features)

    def decode_features(self, network: ModelMixin, features: Features) -> Tensor:
        """The second half and the final norm: (B, tokens, channels)."""
        features = self._blocks(network, network.transformer_blocks[len(network.transformer_blocks) // 2 :], features)
        shift, scale = (network.scale_shift_table[None] + features.embedded_time[:, None]).chunk(2, dim=1)
        return network.norm_out(features.tokens) * (1 + scale) + shift

    def _blocks(self, network: ModelMixin, blocks: nn.ModuleList, features: Features) -> Features:
        tokens, text, mask, time, _ = features
        for block in blocks:
            tokens = run_block(network, block, tokens, None, text, mask, time, None, None)
        return features._replace(tokens=tokens)

    def _added(self, network: ModelMixin, x_t: Tensor) -> dict[str, Tensor | None]:
        if not network.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        factor = self.resolution / self.latent_shape[-1]
        height, width = (side * factor for side in x_t.shape[-2:])
        sizes = {"resolution": [height, width], "aspect_ratio": [height / width]}
        return {name: x_t.new_tensor(size).repeat(len(x_t), 1) for name, size in sizes.items()}
