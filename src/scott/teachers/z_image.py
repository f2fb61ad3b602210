"""Z-Image: a rectified flow whose network takes lists and time that starts at noise, and gives out x0 − ε."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from scott.teachers import Cond, lora
from scott.teachers.network import LatentBackbone

TOKENS = 512  # of a prompt in its chat template, the stock pipeline's default


class ZImageBackbone(LatentBackbone):
    """A `ZImagePipeline`, which writes guidance as cond + s (cond − uncond): ω = 1 + s."""

    block_lists = ("layers",)
    output_layer = "all_final_layer.2-1.linear"
    student_layers = (*lora.ATTENTION, "w1", "w2", "w3")
    token_side = 2
    shifts_evenly = True
    own_size, exports_onnx = True, False

    @staticmethod
    def guidance_options(omega: float) -> dict[str, Any]:
        """s = ω − 1."""
        return {"guidance_scale": omega - 1}

    @property
    def width(self) -> int:
        return self.network.config.dim

    @torch.no_grad()
    def _encode_prompts(self, prompts: Sequence[str], truncate: bool) -> Cond:
        """{"text": (B, L, D), "mask": (B, L)}, mask 1 on the tokens of the prompt and its template; L = 512."""
        pipeline = self.pipeline
        if self.device.type == "meta":
            return self.blank(len(prompts), text=(TOKENS, self.network.config.cap_feat_dim), mask=(TOKENS,))
        if not truncate:
            self._check_chat(prompts, TOKENS, thinking=True)
        device = pipeline.text_encoder.device
        states, _ = pipeline.encode_prompt(list(prompts), device, False, max_sequence_length=TOKENS)
        full = states[0].new_zeros(TOKENS, states[0].shape[-1])
        text = pad_sequence([*states, full], batch_first=True)[:-1]
        mask = pad_sequence([*(state.new_ones(len(state)) for state in states), full[:, 0]], batch_first=True)[:-1]
        return {"text": text.to(self.device), "mask": mask.to(self.device)}

    def network_time(self, t: Tensor) -> Tensor:
        """1 − σ_t, which the network itself multiplies by 1000."""
        return 1 - self.schedule.timestep(t) / 1000

    def predict(self, network: ModelMixin, x_t: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        text, mask = cond["text"], cond["mask"]
        lengths = [mask.shape[1]] * len(mask) if mask.is_meta else mask.bool().sum(1).tolist()
        states = [state[:length] for state, length in zip(text, lengths, strict=True)]
        return torch.stack(network([*x_t[:, :, None]], timestep, states).sample)

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """Without the frame axis, and from noise to data turned round."""
        return -output[:, :, 0]

    def image_part(self, features: Tensor, x_t: Tensor) -> Tensor:
        """The first tokens, behind which those of the text come."""
        return features[:, : x_t.shape[-2] * x_t.shape[-1] // self.token_side**2]
