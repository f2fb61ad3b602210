"""LoRA files of any program, put on a pipeline by diffusers: in kohya's names, diffusers' own, or peft's.

unet.down_blocks….lora_A.weight, lora_unet_…     of a pipeline; diffusers brings them to the names of the first
down_blocks….lora_A.weight                       of its network alone, as `save_lora_adapter` writes it
base_model.model.down_blocks….lora_A.weight      the same by peft, whose scale is in adapter_config.json beside
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from scott.errors import UserError, first_line
from scott.files import read_object

PEFT = "base_model.model."
PEFT_CONFIG = "adapter_config.json"
_SCALES = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "target_modules")
_PIPELINES = ("unet.", "transformer.", "text_encoder", "diffusion_model.", "model.", "lora_")
_LYCORIS = {".lokr_": "LoKr", ".hada_": "LoHa"}
_OF_ANOTHER = "is a LoRA of another kind of teacher; give one of this teacher's own base"


def lora_path(path: Path) -> Path:
    """The one LoRA file that a path is, or that is in its folder. Raises `UserError` where there is none."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file():
        raise UserError(f"no LoRA file at {path}; expected a .safetensors file, or a folder that has one")
    return files[0]


def check_lora(pipeline: DiffusionPipeline, file: Path) -> dict[str, int]:
    """The rank at each layer of its network that a file updates; `UserError` unless each is there, in its size.

    The network may be on the meta device. Layers of text encoders are left to diffusers.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"got the LoRA {file}; diffusers loads none into a {type(pipeline).__name__}")
    part, network = network_of(pipeline)
    tensors = _named(pipeline, file)
    mine = {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
    sizes, end = {name: tuple(value.shape) for name, value in mine.items()}, ".lora_A.weight"
    layers = [name.removesuffix(end) for name in mine if name.endswith(end)]
    if not layers and not any(name.startswith("text_encoder") for name in tensors):
        raise UserError(f"{file} {_OF_ANOTHER} (it names no layer of this one)")
    if misfits := misfitting(network, layers, sizes):
        fitting = len(layers) - len(misfits)
        raise UserError(f"{file} {_OF_ANOTHER} (this one has {fitting} of the {len(layers)} layers that it names)")
    return {layer: sizes[f"{layer}{end}"][0] for layer in layers}


def misfitting(network: nn.Module, layers: Iterable[str], sizes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Of some layers those whose A (r, in, ...) and B (out, r, ...), by their sizes, are not of a layer in -> out of a
    network, which may be quantised, or have adapters."""
    modules = dict(network.named_modules())

    def fits(layer: str) -> bool:
        a, b = (sizes.get(f"{layer}.lora_{factor}.weight", ()) for factor in "AB")
        names = ("features", "channels")  # of a linear layer, and of a convolution
        found = [[getattr(modules.get(layer), f"{end}_{name}", None) for end in ("in", "out")] for name in names]
        return len(a) > 1 and len(b) > 1 and [a[1], b[0]] in found and a[0] == b[1]

    return [layer for layer in layers if not fits(layer)]


def load_lora(pipeline: DiffusionPipeline, file: Path) -> None:
    """Put a LoRA file on a pipeline. Raises `UserError` where it does not go there, or has no scale."""
    form, (_, network) = form_of(file), network_of(pipeline)
    log = logging.getLogger("diffusers.loaders.peft")
    log.disabled = True  # it says of every layer what is raised, and in a line here
    try:
        if form == "peft":
            tensors = {name.removeprefix(PEFT): value for name, value in load_file(file).items()}
            network.load_lora_adapter(tensors, prefix=None, metadata=_peft_config(file))
        elif form == "network":
            network.load_lora_adapter(str(file.parent), weight_name=file.name, prefix=None)
        else:
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    except RuntimeError as error:
        raise UserError(f"{file} {_OF_ANOTHER} ({str(error).split(':')[-1].strip():.120})") from None
    finally:
        log.disabled = False


def merge_lora(pipeline: DiffusionPipeline, file: Path, scale: float) -> None:
    """W ← W + scale · s B A in every layer that a LoRA file names, in networks and text encoders, by diffusers.

    Raises `UserError` as `check_lora` and `load_lora`.
    """
    check_lora(pipeline, file)
    load_lora(pipeline, file)
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    if not any(isinstance(module, LoraLayer) for network in networks for module in network.modules()):
        raise UserError(f"{file} {_OF_ANOTHER} (it names no layer of this one)")
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()


def network_of(pipeline: DiffusionPipeline) -> tuple[str, ModelMixin]:
    """A pipeline's network, and what it is called there."""
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    return part, getattr(pipeline, part)


def form_of(file: Path) -> str:
    """Whose names a file has: "peft", "network" or "pipeline". Raises `UserError` where it is no LoRA file."""
    first = _names(file)[0]
    if first.startswith(PEFT):
        return "peft"
    return "network" if ".lora_A." in first and not first.startswith(_PIPELINES) else "pipeline"


def _named(pipeline: DiffusionPipeline, file: Path) -> dict[str, Tensor]:
    """A file's tensors under the names of a pipeline's parts, as diffusers has them."""
    part, network = network_of(pipeline)
    if (form := form_of(file)) == "peft":
        _peft_config(file)
    if form != "pipeline":
        return {f"{part}.{name.removeprefix(PEFT)}": value for name, value in load_file(file).items()}
    try:
        # SDXL's blocks are told apart by the U-Net's config
        config = network.config if part == "unet" else None
        read = pipeline.lora_state_dict(str(file.parent), weight_name=file.name, unet_config=config)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{file} {_OF_ANOTHER} ({first_line(error)})") from None
    # U-Nets' keep .lora.down and .lora.up, which diffusers brings to peft's names when it puts them there
    return dict(convert_unet_state_dict_to_peft(read[0] if isinstance(read, tuple) else read))


def header(file: Path) -> tuple[list[str], dict[str, str]]:
    """Names of a LoRA file's tensors, and its metadata. Raises `UserError` where it cannot be read."""
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys()), opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}); expected a LoRA file") from None


def _names(file: Path) -> list[str]:
    """Of a file's tensors. Raises `UserError` where it cannot be read, or is of another kind of adapter."""
    names, _ = header(file)
    for mark, kind in _LYCORIS.items():
        if any(mark in name for name in names):
            raise UserError(f"{file} is a {kind}, which is not read; give a LoRA, or a teacher that it is merged into")
    if not names:
        raise UserError(f"{file} has no tensors; expected a LoRA file")
    return names


def _peft_config(file: Path) -> dict[str, Any]:
    beside = file.with_name(PEFT_CONFIG)
    if not beside.is_file():
        raise UserError(f"{file} is peft's, and its scale is in {PEFT_CONFIG}, which is not beside it; put it there")
    config = read_object(beside)
    return {name: config[name] for name in _SCALES if name in config}
