"""Named LoRA adapters on one network: no adapter is the teacher, and each name is another model of the same weights.

The layers are peft's. LoRA (Hu et al. 2021) computes W x + s B A x with s = α / r, rsLoRA (Kalajdzievski 2023) with
s = α / √r, and DoRA (Liu et al. 2024) trains the norm of each row of W + s B A besides. B = 0 at the start, so a new
adapter changes nothing. A and B are fp32 and compute in their input's dtype, beside W: a sum of the two would round
small updates away where W has fewer bits.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from scott.choices import unknown
from scott.errors import UserError
from scott.teachers.fingerprint import plain_state

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
FEED_FORWARD = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
VARIANTS: dict[str, dict[str, bool]] = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


class Adapters:
    """The adapters of one network, of which at most one is on.

    Which one is on is a list that all peft layers of the network have in common, so that a switch costs the same
    whatever their number.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.layers: dict[str, LoraLayer] = {}
        self._on: list[str] = []

    @property
    def active(self) -> str | None:
        """The adapter that is on; None is the plain network."""
        return self._on[0] if self._on else None

    def add(self, name: str, targets: list[str], rank: int, alpha: float, variant: str = "lora") -> None:
        """Put an adapter on the layers `targets`, in place. A is drawn layer by layer in the order of their names.

        Raises:
            UserError: the rank is not positive, there are no targets, one is a grouped or dilated convolution,
                or an unknown variant.
        """
        if rank < 1 or not targets:
            raise UserError(f"got LoRA rank {rank} on {len(targets)} layers; expected a rank of 1 or more, some layers")
        if variant not in VARIANTS:
            raise unknown("LoRA variant", variant, tuple(VARIANTS))
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, **VARIANTS[variant])
        for target in targets:
            base = self.network.get_submodule(target)
            if getattr(base, "groups", 1) != 1 or getattr(base, "dilation", (1, 1)) != (1, 1):
                raise UserError(f"{target} is a grouped or dilated convolution, to which peft's LoRA does not apply")
        meta = next(self.network.parameters()).is_meta
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft draws A in an order of its own
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            inject_adapter_in_model(config, self.network, name, low_cpu_mem_usage=meta)
        self.adopt()
        for target in sorted(targets):  # as peft does: uniform in ± 1 / √(fan in); on the CPU, alike for all devices
            weight = self.layers[target].lora_A[name].weight
            drawn = torch.empty(weight.shape, device="meta" if meta else "cpu")
            weight.data.copy_(nn.init.kaiming_uniform_(drawn, a=5**0.5))

    def adopt(self) -> None:
        """Take over all peft layers of the network, as after diffusers' `load_lora_adapter`, which turns its own on."""
        self.layers = {name: module for name, module in self.network.named_modules() if isinstance(module, LoraLayer)}
        for layer in self.layers.values():
            layer._active_adapter = self._on
            layer.cast_input_dtype_enabled = False
            for key, parameter in layer.named_parameters():
                if key.startswith("lora_"):  # peft freezes all but the newest
                    parameter.data = parameter.data.float()
                    parameter.requires_grad_(True)
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                part.__class__ = _Linear if isinstance(part, nn.Linear) else _Conv2d
        network: Any = self.network
        if hasattr(network, "_hf_peft_config_loaded"):
            network._hf_peft_config_loaded = True  # diffusers saves and loads adapters only where it is set

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """The network with one adapter on (or none) within a block."""
        before, self._on[:] = [*self._on], [name] if name else []
        try:
            yield
        finally:
            self._on[:] = before

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """One adapter's parameters under peft's names without the adapter's own: `<layer>.lora_A.weight`, ..."""
        inner = f".{name}."
        return {
            f"{path}.{key.replace(inner, '.')}": parameter
            for path, layer in self.layers.items()
            for key, parameter in layer.named_parameters()
            if inner in key
        }

    def scaling(self, name: str) -> float:
        """s, the factor of B A, which all layers of an adapter share."""
        return next(layer.scaling[name] for layer in self.layers.values() if name in layer.scaling)

    def plain_state(self) -> dict[str, Tensor]:
        """The plain network's own state, under the names it has without adapters."""
        return plain_state(self.network)

    @torch.no_grad()
    def merged_state(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """The plain network's state with one adapter folded in, by peft's own merge. The network itself is unchanged.

        One tensor at a time, and what the adapter does not change is not copied.
        """
        for key, value in self.plain_state().items():
            layer = self.layers.get(key.removesuffix(".weight"))
            if layer is not None and name in layer.lora_A:
                merged = copy.deepcopy(layer)
                merged.merge(adapter_names=[name])
                value = merged.get_base_layer().weight
            yield key, value

    def checkpointed(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """`function(*inputs)`, computed again in the backward pass, then under the adapter that is on now."""
        name = self.active

        def under_it(*given: Any) -> Any:
            if torch.compiler.is_compiling():  # the graph has the adapter, and no switch may be inside
                return function(*given)
            with self.use(name):
                return function(*given)

        return checkpoint(under_it, *inputs, use_reentrant=False)


class _Linear(nn.Linear):
    """A or B of a linear layer, fp32, which computes in its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class _Conv2d(nn.Conv2d):
    """A or B of a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), None)


def lora_targets(network: nn.Module, prefixes: tuple[str, ...], endings: tuple[str, ...]) -> list[str]:
    """Names of the linear and convolution layers below one of `prefixes` whose name ends with one of `endings`."""
    layers = {
        name.removesuffix(".base_layer")
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.startswith(prefixes)
    }
    return sorted(name for name in layers if name.endswith(tuple(f".{ending}" for ending in endings)))
