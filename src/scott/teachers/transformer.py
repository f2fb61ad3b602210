"""What cutting a transformer in halves takes, whatever its blocks."""

from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn


def decoder_names(network: ModelMixin) -> tuple[str, ...]:
    """Prefixes of the second half's blocks."""
    count = len(network.transformer_blocks)
    return tuple(f"transformer_blocks.{index}." for index in range(count // 2, count))


def run_block(network: ModelMixin, block: nn.Module, *inputs: Any) -> Any:
    """One block, recomputed in the backward pass where the network's own forward would do so."""
    if network.gradient_checkpointing and torch.is_grad_enabled():
        return network._gradient_checkpointing_func(block, *inputs)
    return block(*inputs)
