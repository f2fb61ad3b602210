"""The frozen network in 8 or 4 bits: its blocks' linear layers as bitsandbytes' own, under adapters that stay fp32."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

FLAGS = {"int8": "is_loaded_in_8bit", "nf4": "is_loaded_in_4bit"}
"""What peft reads of a network to choose its layers by."""


def quantize(network: nn.Module, blocks: Iterable[nn.Module], kind: str) -> None:
    """Replace the linear layers of some blocks of a network, in place.

    int8 (Dettmers et al. 2022) keeps a scale a row and computes outliers apart; nf4 (Dettmers et al. 2023) a scale for
    every 64 weights. Both compute in the dtype of the layer they replace.
    """
    for block in blocks:
        for name, linear in list(_linear_layers(block)):
            block.set_submodule(name, _quantized(linear, kind))
    setattr(network, FLAGS[kind], True)


def follow(network: nn.Module) -> None:
    """Let int8 layers multiply by what is where their network has been moved to.

    bitsandbytes keeps weights and scales in a state of the layer, which moves when the layer itself is asked to,
    and stays when its network is.
    """
    if not getattr(network, FLAGS["int8"], False):
        return
    from bitsandbytes.nn import Linear8bitLt

    for layer in network.modules():
        if isinstance(layer, Linear8bitLt):
            layer.state.CB, layer.state.SCB = layer.weight.data, layer.state.SCB.to(layer.weight.device)


def saved_bytes(blocks: Iterable[nn.Module], kind: str) -> int:
    """What `quantize` takes off some blocks, which may have adapters already.

    Of n weights in m rows int8 keeps n bytes, and a scale of 4 a row; nf4 n / 2, a byte for every 64, for every 256 of
    these one scale of 4, and tables of 273 of 4 bytes. One layer at a time is dequantised for a product besides.
    """
    saved = 0
    for block in blocks:
        for _, linear in _linear_layers(block):
            n, rows = linear.weight.numel(), linear.weight.shape[0]
            scales = -(-n // 64)
            kept = n + 4 * rows if kind == "int8" else -(-n // 2) + scales + 4 * -(-scales // 256) + 4 * 273
            saved += n * linear.weight.element_size() - kept
    return saved


def _linear_layers(block: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The frozen ones, by name."""
    return ((n, m) for n, m in block.named_modules() if type(m) is nn.Linear and ".lora_" not in n)


def _quantized(linear: nn.Linear, kind: str) -> nn.Module:
    import bitsandbytes as bnb

    weight, shape = linear.weight, (linear.in_features, linear.out_features, linear.bias is not None)
    made: Any
    if kind == "int8":
        made = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=6.0, device="meta")
        made.weight = bnb.nn.Int8Params(weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        made = bnb.nn.Linear4bit(*shape, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
        made.weight = bnb.nn.Params4bit(weight.data, requires_grad=False, quant_type="nf4", module=made)
    made.bias = linear.bias
    made.to(weight.device)  # which is when bitsandbytes quantises
    if kind == "int8":
        made.init_8bit_state()  # as the first call would; `follow` finds it in one place
    return made
