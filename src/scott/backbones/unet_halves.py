"""The two halves of a `UNet2DConditionModel`: encoder (down and middle blocks) and decoder (up blocks).

SCott's discriminator freezes the first and adapts the second, so they must run apart: the features of a fake are
computed once and decoded twice. `decode(encode(...))` followed by `output` is the network's own forward pass.
"""

from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor


class Features(NamedTuple):
    """What the decoder needs of the encoder: the middle, the skips, the time embedding and the text."""

    middle: Tensor
    skips: tuple[Tensor, ...]
    time: Tensor
    text: Tensor


def encode(unet: UNet2DConditionModel, x_t: Tensor, timestep: Tensor, text: Tensor) -> Features:
    """Down and middle blocks on x_t (B, C, H, W) at the network's timestep (B,), with text (B, L, D)."""
    time = unet.time_embedding(unet.get_time_embed(sample=x_t, timestep=timestep))
    sample = unet.conv_in(x_t)
    skips: tuple[Tensor, ...] = (sample,)
    for block in unet.down_blocks:
        sample, new = block(sample, time, encoder_hidden_states=text) if _attends(block) else block(sample, time)
        skips += new
    middle = unet.mid_block
    sample = middle(sample, time, encoder_hidden_states=text) if _attends(middle) else middle(sample, time)
    return Features(sample, skips, time, text)


def decode(unet: UNet2DConditionModel, features: Features) -> Tensor:
    """Up blocks and the final norm: (B, block_out_channels[0], H, W)."""
    sample, skips = features.middle, features.skips
    for block in unet.up_blocks:
        count = len(block.resnets)
        taken, skips = skips[-count:], skips[:-count]
        # an odd size cannot be doubled back: the block is told the size of the skip it has to meet
        size = tuple(skips[-1].shape[-2:]) if skips else None
        more = {"encoder_hidden_states": features.text} if _attends(block) else {}
        sample = block(sample, temb=features.time, res_hidden_states_tuple=taken, upsample_size=size, **more)
    return unet.conv_act(unet.conv_norm_out(sample))


def _attends(block: torch.nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))
