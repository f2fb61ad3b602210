"""Named LoRA adapters on one network: no adapter is the teacher, and each name is another model of the same weights.

LoRA (Hu et al. 2021): W x + (α / r) B A x, with B = 0 at the start, so a new adapter changes nothing.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from scott.errors import UserError

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
FEED_FORWARD = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")


def lora_targets(network: nn.Module, prefix: str, endings: tuple[str, ...]) -> list[str]:
    """Names of the linear and convolution layers below `prefix` whose name ends with one of `endings`."""
    names = [
        name.replace(".base_layer", "")
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in name and name.startswith(prefix)
    ]
    return sorted({name for name in names if name.endswith(tuple(f".{ending}" for ending in endings))})


def add_adapter(network: nn.Module, name: str, targets: list[str], rank: int, alpha: float) -> dict[str, nn.Parameter]:
    """Put an adapter on the layers `targets` of `network`, in place, and return its parameters by name.

    The layers' own weights stop requiring a gradient. Raises `UserError` when the rank is not positive or there is
    no such layer.
    """
    if rank < 1 or not targets:
        raise UserError(f"got LoRA rank {rank} on {len(targets)} layers; expected a rank of 1 or more and some layers")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are the point
        inject_adapter_in_model(config, network, adapter_name=name)
    use_adapter(network, None)
    return adapter_parameters(network, name)


def adapter_parameters(network: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The parameters of one adapter by their name in the network, with the adapter's own name left out."""
    marker = f".{name}."
    return {key.replace(marker, "."): p for key, p in network.named_parameters() if ".lora_" in key and marker in key}


def use_adapter(network: nn.Module, name: str | None) -> None:
    """Switch `network` to the adapter `name`, or to its plain weights with None."""
    for layer in network.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name)
            # peft freezes what it switches off; here an adapter that is off still has an optimizer
            for key, parameter in layer.named_parameters():
                if "lora_" in key:
                    parameter.requires_grad_(True)


@contextmanager
def adapter(network: nn.Module, name: str | None) -> Iterator[None]:
    """`use_adapter` within a block; afterwards the network is plain again."""
    use_adapter(network, name)
    try:
        yield
    finally:
        use_adapter(network, None)


@torch.no_grad()
def merged_state(network: nn.Module, name: str) -> dict[str, Tensor]:
    """The plain network's state with one adapter folded in: W + (α / r) B A. The network itself is unchanged."""
    state = {}
    for key, value in network.state_dict().items():
        if ".lora_" not in key:
            state[key.replace(".base_layer.", ".")] = value.clone()
    for path, layer in network.named_modules():
        if isinstance(layer, BaseTunerLayer) and name in layer.lora_A:
            state[f"{path}.weight"] += layer.get_delta_weight(name)
    return state
