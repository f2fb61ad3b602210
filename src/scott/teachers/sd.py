"""SD1.x, SD2.x (`StableDiffusionPipeline`) and their fine-tunes, and what all U-Nets have in common.

The down and middle blocks are the encoder, the up blocks the decoder. A full student takes ω through
`time_cond_proj_dim`, as stock pipelines feed it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from scott.errors import UserError
from scott.teachers import Cond, lora
from scott.teachers.family import shortened
from scott.teachers.network import LatentBackbone

GUIDANCE_EMBEDDING = 256  # width of the ω embedding, as in LCM


class UNetBackbone(LatentBackbone):
    """SD1.x and SD2.x."""

    part = "unet"
    block_lists = ("down_blocks", "up_blocks")
    output_layer = "conv_out"
    student_layers = lora.ATTENTION + lora.CONVOLUTIONS + lora.FEED_FORWARD
    critic_layers = lora.ATTENTION + lora.CONVOLUTIONS
    decoder_prefixes = ("up_blocks.",)
    takes_guidance = True

    @property
    def block_names(self) -> list[str]:
        names, down = super().block_names, len(self.network.down_blocks)
        middle = ["mid_block"] if self.network.mid_block is not None else []  # small SDs have none
        return [*names[:down], *middle, *names[down:]]

    @property
    def feature_layers(self) -> dict[str, int]:
        """The last layer of each of the first two down blocks before it goes down, and any middle block."""
        channels, layers = self.network.config.block_out_channels, {}
        for index, block in enumerate(self.network.down_blocks[:2]):
            kind = "attentions" if getattr(block, "attentions", None) else "resnets"
            layers[f"down_blocks.{index}.{kind}.{len(block.resnets) - 1}"] = channels[index]
        return layers if self.network.mid_block is None else layers | {"mid_block": channels[-1]}

    def cut_network(self) -> ModelMixin:
        """The down blocks and the middle one, whose output it returns."""
        return shortened(self.network, up_blocks=nn.ModuleList(), conv_norm_out=None, conv_out=nn.Identity())

    @torch.no_grad()
    def _encode_prompts(self, prompts: Sequence[str], truncate: bool) -> Cond:
        """{"text": (B, L, D)}: the last hidden state, as the stock pipeline takes it."""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        limit = tokenizer.model_max_length
        tokens = tokenizer(list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        if not truncate:
            self._check_length(prompts, tokenizer, limit, special=2)
        return {"text": encoder(tokens.input_ids.to(encoder.device))[0].to(self.device)}

    def added(self, cond: Cond) -> dict[str, Tensor] | None:
        """`added_cond_kwargs` of the network."""
        return None

    def predict(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        omega = self.guidance_input(network, cond)
        return network(x_t, timestep, cond["text"], timestep_cond=omega, added_cond_kwargs=self.added(cond)).sample

    @property
    def student_config(self) -> dict[str, Any]:
        return {"time_cond_proj_dim": GUIDANCE_EMBEDDING}

    def student_copy(self) -> ModelMixin:
        """A copy that takes an ω embedding; its projection starts at zero, so ω changes nothing yet."""
        new = "time_embedding.cond_proj"
        copy = self.copy_network(self.student_config, new)
        if self.network.config.time_cond_proj_dim is None:
            nn.init.zeros_(copy.time_embedding.cond_proj.weight)
        return copy

    def guidance_input(self, network: ModelMixin, cond: Cond) -> Tensor | None:
        width = network.config.time_cond_proj_dim
        if not width:
            return None
        if "guidance" not in cond:
            raise UserError("got a condition without guidance for a student that takes ω; give cond['guidance'], (B,)")
        # stock pipelines embed ω − 1 ("cond + w (cond − uncond)", w = ω − 1): this line is where the forms meet.
        # They do it on the CPU and in float32, whatever the network's.
        embedding = self.pipeline.get_guidance_scale_embedding(cond["guidance"].cpu() - 1, width)
        return embedding.to(self.device, cond["text"].dtype)
