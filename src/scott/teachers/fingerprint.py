"""What a network is by its weights, and not by the name it is loaded under."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scott.teachers.quantize import FLAGS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from scott.teachers.network import LatentBackbone

SAMPLED = 64
"""Values of each parameter that are read, so that 5 GB of T5 take a moment."""
_PROBE = "A Café, 3x"


def fingerprint(
    network: nn.Module, parameters: Mapping[str, Tensor], more: object = (), rounded: torch.dtype | None = None
) -> dict[str, str]:
    """Class, dtype and hashes of weights by their names, as they are or `rounded`; `more` is hashed too.

    `sha256` is over parameter names, shapes and a sample of values rounded to bf16, the same for fp32 and bf16; `half`
    is over those rounded to fp16, the same for fp32 and for what was stored as fp16; `signs`, over their signs, is the
    same for all three.
    """
    dtype = str(next(iter(parameters.values())).dtype).removeprefix("torch.")
    values, half, signs = (hashlib.sha256(repr(more).encode()) for _ in range(3))
    for name, parameter in parameters.items():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].to("cpu", rounded)
        for digest in (values, half, signs):
            digest.update(repr((name, tuple(parameter.shape))).encode())
        values.update(sample.to(torch.bfloat16).view(torch.int16).numpy().tobytes())
        half.update(sample.to(torch.float16).view(torch.int16).numpy().tobytes())
        signs.update(sample.signbit().numpy().tobytes())
    hashes = {"sha256": values.hexdigest(), "half": half.hexdigest(), "signs": signs.hexdigest()}
    return {"class": type(network).__name__, "dtype": dtype, **hashes}


def network_version(network: nn.Module, rounded: torch.dtype | None = None) -> str:
    """The same for a network loaded in one precision, or rounded to it, from wherever: a folder or a hub id, by any
    path."""
    return fingerprint(network, dict(network.named_parameters()), type(network).__name__, rounded)["half"][:16]


def network_signs(network: nn.Module) -> str:
    """The same besides where LoRAs that were merged in are rounded otherwise, as another machine may."""
    return fingerprint(network, dict(network.named_parameters()), type(network).__name__)["signs"][:16]


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """A network's state without peft's adapters, under the names that it has without them."""
    state = network.state_dict()
    return {key.replace(".base_layer.", "."): value for key, value in state.items() if ".lora_" not in key}


def network_fingerprint(network: nn.Module) -> dict[str, str]:
    """Of the plain network, whatever adapters are on it: the base that a LoRA was made for."""
    return fingerprint(network, plain_state(network))


def fingerprints(backbone: "LatentBackbone") -> dict[str, dict[str, str]]:
    """Of `vae`, `text_encoder`, ...

    A tokenizer counts by the ids it makes of a text, the VAE's scaling by its factors.
    """
    components = backbone.pipeline.components
    found = {}
    for name, module in components.items():
        if module is None or not (name == "vae" or name.startswith("text_encoder")):
            continue
        if name == "vae":
            more = _scaling(module)
        else:
            tokenizer = components[name.replace("text_encoder", "tokenizer")]
            more = (type(tokenizer).__name__, tokenizer.model_max_length, tokenizer(_PROBE).input_ids)
        found[name] = fingerprint(module, dict(module.named_parameters()), more)
    return found


def _scaling(vae: Any) -> tuple[Any, ...]:
    """The factors of a VAE's latents."""
    by_channel = [vae.config[key] for key in ("latents_mean", "latents_std") if vae.config.get(key)]
    return (vae.config.get("scaling_factor"), vae.config.get("shift_factor"), *by_channel)


def pipeline_version(pipeline: "DiffusionPipeline") -> str:
    """Of all that a pipeline draws by: the weights of its networks, its VAE's scaling and its scheduler's settings."""
    parts = pipeline.components
    networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module) and [*part.parameters()]}
    weights = [(name, network_version(network)) for name, network in sorted(networks.items())]
    settings = sorted((name, value) for name, value in parts["scheduler"].config.items() if name[0] != "_")
    scaling = _scaling(parts["vae"]) if parts.get("vae") else ()
    return hashlib.sha256(repr((weights, settings, scaling)).encode()).hexdigest()[:16]


def is_quantised(network: nn.Module) -> bool:
    return any(getattr(network, flag, False) for flag in FLAGS.values())


def identity(backbone: "LatentBackbone") -> dict[str, dict[str, str]]:
    """`fingerprints`, and that of the network unless it is quantised."""
    quantised = is_quantised(backbone.network)
    return fingerprints(backbone) | ({} if quantised else {backbone.part: network_fingerprint(backbone.network)})


def is_fingerprint(found: dict[str, Any] | None) -> bool:
    """Whether what a file says is what `differing` and `label` read."""
    return found is not None and {"class", "dtype", "signs"} <= found.keys()


def differing(one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    """Whether two fingerprints are of different weights."""
    if not one or not other:
        return one is not other
    keys = ("signs",) if "float16" in (one["dtype"], other["dtype"]) else ("sha256", "half")
    return one["class"] != other["class"] or not any(key in one and one[key] == other.get(key) for key in keys)


def label(fingerprint: dict[str, Any] | None) -> str:
    """How a message names it."""
    return f"{fingerprint['class']} {fingerprint['signs'][:8]}" if fingerprint else "none"
