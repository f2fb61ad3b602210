"""Named LoRA adapters on one network: no adapter is the teacher, and each name is another model of the same weights.

LoRA (Hu et al. 2021): W x + (α / r) B A x, with B = 0 at the start, so a new adapter changes nothing. In fp32 the
layer runs once, with W + (α / r) B A; that costs less than a second, thin layer beside it. Where W has fewer bits, the
sum would round small updates away, so there the second path runs by itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from scott.errors import UserError
from scott.teachers.lora_functions import MergedConv2d, MergedLinear

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
FEED_FORWARD = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")


class LoRALayer(nn.Module):
    """A frozen linear or convolution with any number of low-rank updates, of which at most one is on.

    `lora_A[name]` has the layer's weight's shape with r rows, `lora_B[name]` is (out, r), both fp32. What is on is
    read from `owner`, which all layers of a network share.
    """

    def __init__(self, base_layer: nn.Linear | nn.Conv2d, owner: "Adapters") -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        self.owner = owner

    def add(self, name: str, rank: int) -> None:
        weight = self.base_layer.weight
        a = torch.empty(rank, *weight.shape[1:], device=weight.device)
        # as in peft: uniform in ± 1 / sqrt(fan in)
        nn.init.kaiming_uniform_(a, a=5**0.5)
        self.lora_A[name] = nn.Parameter(a)
        self.lora_B[name] = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))

    def delta(self, name: str) -> Tensor:
        """(α / r) B A, of the weight's shape, fp32."""
        a, b = self.lora_A[name], self.lora_B[name]
        return self.owner.scales[name] * (b @ a.flatten(1)).view(self.base_layer.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        base, name = self.base_layer, self.owner.active
        if name is None or name not in self.lora_A:
            return base(x)
        a, b, scale = self.lora_A[name], self.lora_B[name], self.owner.scales[name]
        if base.weight.dtype == torch.float32 and x.dtype == torch.float32:
            if isinstance(base, nn.Linear):
                return MergedLinear.apply(x, base.weight, base.bias, a, b, scale)
            return MergedConv2d.apply(x, base.weight, base.bias, a, b, scale, base.stride, base.padding)
        a, b = a.to(x.dtype), b.to(x.dtype)
        if isinstance(base, nn.Linear):
            return base(x) + scale * F.linear(F.linear(x, a), b)
        return base(x) + scale * F.conv2d(F.conv2d(x, a, None, base.stride, base.padding), b[..., None, None])


class Adapters:
    """The adapters of one network. `active` is the one that is on; None is the plain network."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.active: str | None = None
        self.scales: dict[str, float] = {}
        self.layers: dict[str, LoRALayer] = {}

    def add(self, name: str, targets: list[str], rank: int, alpha: float) -> None:
        """Put an adapter on the layers `targets`, in place.

        Raises:
            UserError: the rank is not positive, there are no targets, or one is a grouped or dilated convolution.
        """
        if rank < 1 or not targets:
            raise UserError(f"got LoRA rank {rank} on {len(targets)} layers; expected a rank of 1 or more, some layers")
        self.scales[name] = alpha / rank
        for target in targets:
            if target not in self.layers:
                base = self.network.get_submodule(target)
                assert isinstance(base, nn.Linear | nn.Conv2d)
                if isinstance(base, nn.Conv2d) and (base.groups != 1 or base.dilation != (1, 1)):
                    raise UserError(f"{target} is a grouped or dilated convolution, which LoRA here does not take")
                self.layers[target] = LoRALayer(base, self)
                self.network.set_submodule(target, self.layers[target])
            self.layers[target].add(name, rank)

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """The network with one adapter on (or none) within a block."""
        before, self.active = self.active, name
        try:
            yield
        finally:
            self.active = before

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """One adapter's parameters: `<layer>.lora_A` and `<layer>.lora_B`."""
        found: dict[str, nn.Parameter] = {}
        for path, layer in self.layers.items():
            if name in layer.lora_A:
                found |= {f"{path}.lora_A": layer.lora_A[name], f"{path}.lora_B": layer.lora_B[name]}
        return found

    def plain_state(self) -> dict[str, Tensor]:
        """The plain network's own state, under the names it has without adapters."""
        return {
            key.replace(".base_layer.", "."): value
            for key, value in self.network.state_dict().items()
            if ".lora_A." not in key and ".lora_B." not in key
        }

    @torch.no_grad()
    def merged_state(self, name: str) -> dict[str, Tensor]:
        """The plain network's state with one adapter folded in: W + (α / r) B A. The network itself is unchanged."""
        state = {key: value.clone() for key, value in self.plain_state().items()}
        for path, layer in self.layers.items():
            if name in layer.lora_A:
                weight = state[f"{path}.weight"]
                state[f"{path}.weight"] = (weight.float() + layer.delta(name)).to(weight.dtype)
        return state

    def checkpointed(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """`function(*inputs)`, computed again in the backward pass, then under the adapter that is on now."""
        name = self.active

        def under_it(*given: Any) -> Any:
            with self.use(name):
                return function(*given)

        return checkpoint(under_it, *inputs, use_reentrant=False)


def lora_targets(network: nn.Module, prefixes: tuple[str, ...], endings: tuple[str, ...]) -> list[str]:
    """Names of the linear and convolution layers below one of `prefixes` whose name ends with one of `endings`."""
    layers = {
        name.removesuffix(".base_layer")
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.startswith(prefixes)
    }
    return sorted(name for name in layers if name.endswith(tuple(f".{ending}" for ending in endings)))
