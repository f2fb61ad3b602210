"""Chroma: FLUX's packed latents and blocks under classifier-free guidance, with text of one encoder that is masked."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor

from scott.teachers import Cond
from scott.teachers.flux import T5_TOKENS, FluxLike, exact_times, image_ids


class ChromaBackbone(FluxLike):
    """A `ChromaPipeline`."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__(pipeline)
        self._mask: Tensor | None = None  # of the call that runs

    @torch.no_grad()
    def _encode_prompts(self, prompts: Sequence[str], truncate: bool) -> Cond:
        """{"text": (B, L, D), "mask": (B, L)}, mask 1 on the prompt's tokens and the first of padding; L = 512."""
        if not truncate:
            self._check_length(prompts, self.pipeline.tokenizer, T5_TOKENS, special=1)
        text, _, mask, *_ = self._encoded(prompts, T5_TOKENS)
        return {"text": text.to(self.device), "mask": mask.to(self.device)}

    def predict(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        tokens = self.pack(x_t)
        self._mask = torch.cat([cond["mask"], cond["mask"].new_ones(tokens.shape[:2])], dim=1)
        with exact_times(network.time_text_embed, 1000 * timestep):
            return network(
                tokens,
                encoder_hidden_states=cond["text"],
                timestep=timestep,
                attention_mask=self._mask,
                txt_ids=x_t.new_zeros(cond["text"].shape[1], 3),
                img_ids=image_ids(x_t, self.token_side),
            ).sample

    def cut_network(self) -> ModelMixin:
        """The whole network, which finds a block's modulation by how many blocks there are."""
        return self.network

    def _checkpointing(self, checkpointed: Callable[..., Any]) -> Callable[..., Any]:
        """With the mask, which diffusers leaves out where it recomputes a single block."""
        single = {*self.network.single_transformer_blocks}
        for copy in self.copies.values():
            single |= {*copy.single_transformer_blocks}

        def masked(block: Any, *inputs: Any) -> Any:
            return checkpointed(partial(block, attention_mask=self._mask) if block in single else block, *inputs)

        return masked
