"""FLUX.1: a rectified flow over packed latents, whose network was distilled to take the guidance scale as an input."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor

from scott.diffusion import Denoiser
from scott.errors import UserError
from scott.teachers import Cond
from scott.teachers.network import LatentBackbone
from scott.teachers.sd3 import SD3Backbone

T5_TOKENS = 512  # the stock pipeline's default


class FluxLike(LatentBackbone):
    """What the networks of FLUX.1, Chroma, FLUX.2 and Qwen-Image have in common."""

    block_lists: ClassVar[tuple[str, ...]] = ("transformer_blocks", "single_transformer_blocks")
    student_layers: ClassVar[tuple[str, ...]] = (*SD3Backbone.student_layers, "proj_mlp")
    token_side, packed = 2, True
    shifts_evenly = True
    own_size, exports_onnx = True, False

    def network_time(self, t: Tensor) -> Tensor:
        """σ_t, which the network itself multiplies by 1000."""
        return self.schedule.timestep(t) / 1000

    def image_part(self, features: Tensor, x_t: Tensor) -> Tensor:
        """The last tokens: single blocks of Chroma and FLUX.2 give out the text's before them."""
        return features[:, -x_t.shape[-2] * x_t.shape[-1] // self.token_side**2 :]


class FluxBackbone(FluxLike):
    """A `FluxPipeline` whose network embeds ω (FLUX.1-dev), so that a guided teacher costs one call.

    Raises:
        UserError: the network embeds no ω: FLUX.1-schnell, a few-step student already, and editions without guidance.
    """

    takes_guidance = True
    teacher_calls = 1

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__(pipeline)
        if not self.network.config.guidance_embeds:
            raise UserError("a FLUX without guidance_embeds (schnell) is not supported; distil FLUX.1-dev")

    @torch.no_grad()
    def _encode_prompts(self, prompts: Sequence[str], truncate: bool) -> Cond:
        """{"text": (B, L, D), "pooled": (B, D2)}: T5's states of 512 tokens, padding too, and CLIP's pooled one."""
        pipeline = self.pipeline
        if not truncate:
            self._check_length(prompts, pipeline.tokenizer_2, T5_TOKENS, special=1)
        text, pooled, _ = pipeline.encode_prompt(
            list(prompts), device=self.encoding_device, max_sequence_length=T5_TOKENS
        )
        return {"text": text.to(self.device), "pooled": pooled.to(self.device)}

    def guided_teacher(self, uncond: Cond, omega: float | Tensor, low_memory: bool = False) -> Denoiser:
        """The teacher fed ω: one call, and no unconditional one."""

        def guided(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
            scale = torch.as_tensor(omega, dtype=torch.float32, device=x_t.device)
            return self.teacher(x_t, t, cond | {"guidance": scale.expand(len(x_t))})

        return guided

    def guidance_input(self, network: ModelMixin, cond: Cond) -> Tensor:
        """ω itself; 1 where a condition has none, as that of a critic may."""
        return cond.get("guidance", cond["text"].new_ones(len(cond["text"]), dtype=torch.float32))

    def predict(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        with exact_times(network.time_text_embed, 1000 * timestep):
            return network(
                self.pack(x_t),
                encoder_hidden_states=cond["text"],
                pooled_projections=cond["pooled"],
                timestep=timestep,
                guidance=self.guidance_input(network, cond).to(x_t.device),
                txt_ids=x_t.new_zeros(cond["text"].shape[1], 3),
                img_ids=image_ids(x_t, self.token_side),
            ).sample


def image_ids(x_t: Tensor, token_side: int) -> Tensor:
    """(N, 3): 0, row and column of each token of packed latents (B, C, H, W)."""
    rows, columns = (torch.arange(side // token_side, device=x_t.device) for side in x_t.shape[-2:])
    return torch.cartesian_prod(rows.new_zeros(1), rows, columns).to(x_t.dtype)


@contextmanager
def exact_times(embedder: Any, times: Tensor) -> Iterator[None]:
    """Within it the first that `embedder.time_proj` embeds are these: the network rounds what it is given to its dtype,
    and near 1 bf16 has numbers .004 apart, which is more than a jump where the schedule is shifted."""
    embedding = embedder.time_proj
    if not hasattr(embedding, "exact"):
        embedding.register_forward_pre_hook(_with_exact)
    embedding.exact = times
    try:
        yield
    finally:
        embedding.exact = None


def _with_exact(embedding: Any, given: tuple[Tensor]) -> tuple[Tensor]:
    """FLUX.1 embeds ω by the same, after the times."""
    exact, embedding.exact = embedding.exact, None
    return given if exact is None else (exact,)
