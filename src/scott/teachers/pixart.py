"""PixArt-α and PixArt-Σ: a transformer with cross-attention to T5's text, and one adaptive norm for all blocks."""

from collections.abc import Sequence

import torch
from diffusers import ModelMixin, PixArtSigmaPipeline
from torch import Tensor

from scott.errors import UserError
from scott.teachers import Cond, lora
from scott.teachers.network import LatentBackbone


class PixArtBackbone(LatentBackbone):
    """A `PixArtAlphaPipeline` or `PixArtSigmaPipeline`; the learned variance is dropped."""

    student_layers = lora.ATTENTION + lora.FEED_FORWARD
    fixed_size = True

    def check_resolution(self, resolution: int) -> None:
        """Refused: positions are computed from the size in the config, so another one there is another network."""
        if resolution != self.resolution:
            raise UserError(
                f"got resolution {resolution} for a PixArt teacher of {self.resolution}, whose positions are of that "
                "size; prepare its data without --resolution, or take its edition of another size"
            )

    @torch.no_grad()
    def _encode_prompts(self, prompts: Sequence[str], truncate: bool) -> Cond:
        """{"text": (B, L, D), "mask": (B, L)}, mask 1 on the prompt's own tokens; L = 120 for α, 300 for Σ."""
        limit = 300 if isinstance(self.pipeline, PixArtSigmaPipeline) else 120
        if not truncate:
            self._check_length(prompts, self.pipeline.tokenizer, limit, special=1)
        text, mask, _, _ = self._encoded(prompts, limit)
        return {"text": text.to(self.device), "mask": mask.to(self.device, text.dtype)}

    def predict(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        return network(
            x_t,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"],
            timestep=timestep,
            added_cond_kwargs=self._added(network, x_t),
        ).sample

    def _added(self, network: ModelMixin, x_t: Tensor) -> dict[str, Tensor | None]:
        if not network.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self.factor for side in x_t.shape[-2:])
        sizes = {"resolution": [height, width], "aspect_ratio": [height / width]}
        return {name: x_t.new_tensor(size).repeat(len(x_t), 1) for name, size in sizes.items()}
