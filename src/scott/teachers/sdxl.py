"""SDXL: two text encoders, the second one's pooled embedding, and the picture's size and crop as `time_ids`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scott.teachers import Cond
from scott.teachers.sd import UNetBackbone


class SDXLBackbone(UNetBackbone):
    """A `StableDiffusionXLPipeline`."""

    size_names = ("time_ids",)

    @torch.no_grad()
    def _encode_prompts(self, prompts: Sequence[str], truncate: bool) -> Cond:
        """{"text": (B, L, D1 + D2), "pooled": (B, D2), "time_ids": (B, 6)}, for an uncropped picture of full size."""
        if not truncate:
            limit = self.pipeline.tokenizer.model_max_length
            self._check_length(prompts, self.pipeline.tokenizer, limit, special=2)
        text, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.encoding_device, do_classifier_free_guidance=False
        )
        size = self.size_cond(self.resolution, self.resolution)
        time_ids = size["time_ids"].repeat(len(prompts), 1)
        return {"text": text.to(self.device), "pooled": pooled.to(self.device), "time_ids": time_ids}

    def size_cond(self, height: int, width: int) -> Cond:
        """{"time_ids": (1, 6)}: original size, crop and target size, as the stock pipeline gives them."""
        return {"time_ids": torch.tensor([[height, width, 0.0, 0.0, height, width]], device=self.device)}

    def _unconditional(self, prompt: str | None) -> Cond:
        """Without a negative prompt the empty one, or zeros where the pipeline is configured so, as SDXL's base is."""
        cond = super()._unconditional(prompt)
        if prompt is None and self.pipeline.config.force_zeros_for_empty_prompt:
            cond |= {name: torch.zeros_like(cond[name]) for name in ("text", "pooled")}
        return cond

    def added(self, cond: Cond) -> dict[str, Tensor]:
        return {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}
