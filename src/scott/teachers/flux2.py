"""FLUX.2 [klein] base: a rectified flow over folded latents, which a batch norm of the VAE's normalises."""

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor

from scott.errors import UserError
from scott.teachers import Cond, lora
from scott.teachers.flux import FluxLike, exact_times
from scott.teachers.sd3 import TEXT_ATTENTION

TOKENS = 512  # of a prompt in its chat template, the stock pipeline's default
TEACHER_STEPS = 50
"""What its shift is taken for, which its pipeline makes a function of the number of steps too: the model card's."""


class Flux2KleinBackbone(FluxLike):
    """A `Flux2KleinPipeline`.

    Raises:
        UserError: an edition that is distilled already.
    """

    student_layers = (*lora.ATTENTION, *TEXT_ATTENTION, "linear_in", "linear_out", "to_qkv_mlp_proj", "attn.to_out")
    token_side = 1
    shifts_by_steps = True

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__(pipeline)
        if pipeline.config.is_distilled:
            raise UserError("this FLUX.2 [klein] is a few-step student already; distil its base edition")

    def size_shift(self, tokens: int) -> float:
        """The pipeline's μ of a picture of so many tokens in `TEACHER_STEPS` steps."""
        at_200 = 0.00016927 * tokens + 0.45666666
        if tokens > 4300:
            return at_200
        at_10 = 8.73809524e-05 * tokens + 1.89833333
        return at_200 + (at_200 - at_10) * (TEACHER_STEPS - 200) / 190

    @torch.no_grad()
    def _encode_prompts(self, prompts: Sequence[str], truncate: bool) -> Cond:
        """{"text": (B, 512, 3 D)}: states of three of the language model's layers, those of padding too."""
        pipeline = self.pipeline
        if self.device.type == "meta":
            return self.blank(len(prompts), text=(TOKENS, self.network.config.joint_attention_dim))
        if not truncate:
            self._check_chat(prompts, TOKENS, thinking=False)
        text, _ = pipeline.encode_prompt(list(prompts), pipeline.text_encoder.device, max_sequence_length=TOKENS)
        return {"text": text.to(self.device)}

    def predict(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        rows, columns, words = (torch.arange(n, device=x_t.device) for n in (*x_t.shape[-2:], cond["text"].shape[1]))
        zero = rows.new_zeros(1)
        with exact_times(network.time_guidance_embed, 1000 * timestep):
            return network(
                self.pack(x_t),
                encoder_hidden_states=cond["text"],
                timestep=timestep,
                img_ids=torch.cartesian_prod(zero, rows, columns, zero),
                txt_ids=torch.cartesian_prod(zero, zero, zero, words),
                guidance=None,
            ).sample

    def from_pipeline(self, latents: Tensor) -> Tensor:
        """The pipeline has unfolded its latents and undone the normalisation."""
        return self.normaliser.normalise(latents)
