"""The U-Net family: SD1.x, SD2.x (`StableDiffusionPipeline`), SDXL (`StableDiffusionXLPipeline`) and their fine-tunes.

A full student takes ω through `time_cond_proj_dim`, as stock pipelines feed it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from scott.teachers import lora
from scott.teachers.base import Cond
from scott.teachers.latent import LatentBackbone

GUIDANCE_EMBEDDING = 256  # width of the ω embedding, as in LCM


class Features(NamedTuple):
    """What the decoder needs of the encoder: the middle, the skips, the time embedding and the text."""

    middle: Tensor
    skips: tuple[Tensor, ...]
    time: Tensor
    text: Tensor


class UNetBackbone(LatentBackbone):
    """SD1.x and SD2.x. The encoder is the down and middle blocks, the decoder the up blocks."""

    part = "unet"
    output_layer = "conv_out"
    student_layers = lora.ATTENTION + lora.CONVOLUTIONS + lora.FEED_FORWARD
    critic_layers = lora.ATTENTION + lora.CONVOLUTIONS
    decoder_prefixes = ("up_blocks.",)
    takes_guidance = True

    @property
    def feature_channels(self) -> int:
        return self.network.config.block_out_channels[0]

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.network.down_blocks, self.network.mid_block, *self.network.up_blocks]

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], *, truncate: bool = False) -> Cond:
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
        omega = self._guidance_embedding(network, cond)
        return network(x_t, timestep, cond["text"], timestep_cond=omega, added_cond_kwargs=self.added(cond)).sample

    def encode(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Features:
        """Down and middle blocks on x_t (B, C, H, W) at the network's timestep (B,)."""
        text, omega = cond["text"], self._guidance_embedding(network, cond)
        time = network.time_embedding(network.get_time_embed(sample=x_t, timestep=timestep), omega)
        more = network.get_aug_embed(emb=time, encoder_hidden_states=text, added_cond_kwargs=self.added(cond) or {})
        time = time if more is None else time + more
        sample = network.conv_in(x_t)
        skips: tuple[Tensor, ...] = (sample,)
        for block in network.down_blocks:
            sample, new = block(sample, time, encoder_hidden_states=text) if _attends(block) else block(sample, time)
            skips += new
        middle = network.mid_block
        sample = middle(sample, time, encoder_hidden_states=text) if _attends(middle) else middle(sample, time)
        return Features(sample, skips, time, text)

    def decode_features(self, network: ModelMixin, features: Features) -> Tensor:
        """Up blocks and the final norm: (B, H, W, block_out_channels[0])."""
        sample, skips = features.middle, features.skips
        for block in network.up_blocks:
            count = len(block.resnets)
            taken, skips = skips[-count:], skips[:-count]
            # an odd size cannot be doubled back: the block is told the size of the skip it has to meet
            size = tuple(skips[-1].shape[-2:]) if skips else None
            more = {"encoder_hidden_states": features.text} if _attends(block) else {}
            sample = block(sample, temb=features.time, res_hidden_states_tuple=taken, upsample_size=size, **more)
        return network.conv_act(network.conv_norm_out(sample)).permute(0, 2, 3, 1)

    def student_copy(self) -> ModelMixin:
        """A copy that takes an ω embedding; its projection starts at zero, so ω changes nothing yet."""
        new = "time_embedding.cond_proj"
        copy = self.copy_network({"time_cond_proj_dim": GUIDANCE_EMBEDDING}, new)
        if self.network.config.time_cond_proj_dim is None:
            nn.init.zeros_(copy.time_embedding.cond_proj.weight)
        return copy

    def _guidance_embedding(self, network: ModelMixin, cond: Cond) -> Tensor | None:
        width = network.config.time_cond_proj_dim
        if not width:
            return None
        # stock pipelines embed ω − 1 ("cond + w (cond − uncond)", w = ω − 1): this line is where the forms meet.
        # They do it on the CPU and in float32, whatever the network's.
        embedding = self.pipeline.get_guidance_scale_embedding(cond["guidance"].cpu() - 1, width)
        return embedding.to(self.device, cond["text"].dtype)


class SDXLBackbone(UNetBackbone):
    """SDXL: two text encoders, the second one's pooled embedding, and the picture's size and crop as `time_ids`."""

    size_names = ("time_ids",)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], *, truncate: bool = False) -> Cond:
        """{"text": (B, L, D1 + D2), "pooled": (B, D2), "time_ids": (B, 6)}, for an uncropped picture of full size."""
        if not truncate:
            limit = self.pipeline.tokenizer.model_max_length
            self._check_length(prompts, self.pipeline.tokenizer, limit, special=2)
        text, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.pipeline.text_encoder.device, do_classifier_free_guidance=False
        )
        size = self.size_cond(self.resolution, self.resolution)
        time_ids = size["time_ids"].repeat(len(prompts), 1)
        return {"text": text.to(self.device), "pooled": pooled.to(self.device), "time_ids": time_ids}

    def size_cond(self, height: int, width: int) -> Cond:
        """{"time_ids": (1, 6)}: original size, crop and target size, as the stock pipeline gives them."""
        return {"time_ids": torch.tensor([[height, width, 0.0, 0.0, height, width]], device=self.device)}

    def unconditional(self) -> Cond:
        """The empty prompt, or zeros where the pipeline is configured so, as SDXL's base model is."""
        cond = self.encode_prompts([""])
        if self.pipeline.config.force_zeros_for_empty_prompt:
            cond |= {name: torch.zeros_like(cond[name]) for name in ("text", "pooled")}
        return cond

    def added(self, cond: Cond) -> dict[str, Tensor]:
        return {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}


def _attends(block: nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))
