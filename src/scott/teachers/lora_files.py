"""LoRA files of any program, put on a pipeline by diffusers.

It misses layers of some files without a word, so what it reads and what it has put there is counted.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from scott.errors import UserError, first_line
from scott.teachers.lora_names import PEFT, folded, form_of, header, peft_config

_TEXT = re.compile(r"(?:lora_te|text_encoder).*[._]lora(?:_linear_layer)?[._](down|A)\.weight")
"""A of a text encoder's layer, in anybody's names."""
_OF_ANOTHER = "is a LoRA of another kind of teacher; give one of this teacher's own base"


def lora_path(path: Path) -> Path:
    """The one LoRA file that a path is, or that is in its folder. Raises `UserError` where there is none."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) > 1:
        raise UserError(f"{path} has {len(files)} .safetensors files; expected one; name the LoRA, such as {files[0]}")
    if not files or not files[0].is_file():
        raise UserError(f"no LoRA file at {path}; expected a .safetensors file, or a folder that has one")
    return files[0]


def check_lora(pipeline: DiffusionPipeline, file: Path, *, text: bool = True) -> dict[str, int]:
    """The rank at each layer of its network that a file updates; `UserError` unless each is there, in its size, and
    with `text` each of text encoders too.

    The models may be on the meta device.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"got the LoRA {file}; diffusers loads none into a {type(pipeline).__name__}")
    part, network = network_of(pipeline)
    tensors = _named(pipeline, file)
    mine, end = _of_part(tensors, part), ".lora_A.weight"
    sizes = {name: tuple(value.shape) for name, value in mine.items()}
    layers = [name.removesuffix(end) for name in mine if name.endswith(end)]
    if not layers and not any(name.startswith("text_encoder") for name in tensors):
        raise UserError(f"{file} {_OF_ANOTHER} (it names no layer of this one)")
    if misfits := misfitting(network, layers, sizes):
        fitting = len(layers) - len(misfits)
        raise UserError(f"{file} {_OF_ANOTHER} (this one has {fitting} of the {len(layers)} layers that it names)")
    every = [name for name in tensors if name.endswith(end) and not name.startswith("text_encoder")]
    _check_all(file, "the network", len(every), len(layers))  # FLUX's converter forgets whose some are
    if text:
        _check_all(file, "text encoders", len(text_layers(file)), _text_taken(pipeline, tensors))
    return {layer: sizes[f"{layer}{end}"][0] for layer in layers}


def text_layers(file: Path) -> list[str]:
    """A of the layers of text encoders that a file updates, in its own names; where B is 0 it does not."""
    found = [match for name in header(file)[0] if (match := _TEXT.fullmatch(name))]
    if not found:
        return []
    tensors, other = load_file(file), {"down": "up", "A": "B"}
    pairs = [(match[0], f"{match[0][: match.start(1)]}{other[match[1]]}.weight") for match in found]
    return [a for a, b in pairs if b not in tensors or tensors[b].any()]


def _text_taken(pipeline: DiffusionPipeline, tensors: Mapping[str, Tensor]) -> int:
    """How many layers of its text encoders diffusers puts updates on, of tensors as `_named` has them."""
    taken = 0
    for part in (name for name in pipeline._lora_loadable_modules if name.startswith("text_encoder")):
        encoder, mine = getattr(pipeline, part, None), _of_part(tensors, part)
        if encoder is None or not mine:
            continue
        try:  # as its own `_load_lora_into_text_encoder`
            mine = convert_state_dict_to_peft(convert_state_dict_to_diffusers(mine))
        except ValueError:  # names that it cannot tell
            continue
        if not hasattr(encoder, "text_model"):
            mine = {name.removeprefix("text_model."): value for name, value in mine.items()}
        end, sizes = ".lora_B.weight", {name: tuple(value.shape) for name, value in mine.items()}
        layers = [name.removesuffix(end) for name, value in mine.items() if name.endswith(end) and value.any()]
        taken += len(layers) - len(misfitting(encoder, layers, sizes))
    return taken


def _of_part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): v for name, v in tensors.items() if name.startswith(f"{part}.")}


def _check_all(file: Path, part: str, named: int, read: int) -> None:
    if read < named:
        raise UserError(
            f"{file} names {named} layers of {part}, and diffusers reads {read} of them; give a LoRA without the rest, "
            "or a teacher that it is merged into"
        )


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


def load_lora(pipeline: DiffusionPipeline, file: Path, *, text: bool = True) -> None:
    """Put a LoRA file on a pipeline. Raises `UserError` where it does not go there, or has no scale, and as
    `check_lora`."""
    ranks, form, (part, network) = check_lora(pipeline, file, text=text), form_of(file), network_of(pipeline)
    log = logging.getLogger("diffusers.loaders.peft")
    log.disabled = True  # it says of every layer what is raised, and in a line here
    try:
        if form == "peft":
            tensors = {name.removeprefix(PEFT): value for name, value in load_file(file).items()}
            network.load_lora_adapter(tensors, prefix=None, metadata=peft_config(file))
        else:
            load = network.load_lora_adapter if form == "network" else pipeline.load_lora_weights
            options = {"prefix": None} if form == "network" else {}
            load(folded(file, part) or str(file.parent), weight_name=file.name, **options)
    except RuntimeError as error:
        raise UserError(f"{file} {_OF_ANOTHER} ({str(error).split(':')[-1].strip():.120})") from None
    finally:
        log.disabled = False
    held = held_layers(pipeline)
    mine = held.pop(part, set())
    _check_all(file, "the network", len(ranks), len(mine & ranks.keys()))
    if text:
        _check_all(file, "text encoders", len(text_layers(file)), sum(map(len, held.values())))


def merge_lora(pipeline: DiffusionPipeline, file: Path, scale: float) -> None:
    """W ← W + scale · s B A in every layer that a LoRA file names, in networks and text encoders, by diffusers.

    Raises `UserError` as `load_lora`.
    """
    load_lora(pipeline, file)
    parts = [*held_layers(pipeline)]
    if not parts:
        raise UserError(f"{file} {_OF_ANOTHER} (it names no layer of this one)")
    pipeline.fuse_lora(components=parts, lora_scale=scale)  # by default FLUX's leaves text encoders out
    pipeline.unload_lora_weights()


def held_layers(pipeline: DiffusionPipeline) -> dict[str, set[str]]:
    """Part of a pipeline → its layers that hold a LoRA, of parts that have any."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    held = {
        name: {layer for layer, module in part.named_modules() if isinstance(module, LoraLayer)}
        for name, part in parts.items()
    }
    return {name: layers for name, layers in held.items() if layers}


def network_of(pipeline: DiffusionPipeline) -> tuple[str, Any]:
    """A pipeline's U-Net or transformer, None where it has neither, and what it is called there."""
    part = "unet" if getattr(pipeline, "unet", None) else "transformer"
    return part, getattr(pipeline, part, None)


def _named(pipeline: DiffusionPipeline, file: Path) -> dict[str, Tensor]:
    """A file's tensors under the names of a pipeline's parts, as diffusers has them."""
    part, network = network_of(pipeline)
    if (form := form_of(file)) == "peft":
        peft_config(file)  # is there
        return {f"{part}.{name.removeprefix(PEFT)}": value for name, value in load_file(file).items()}
    try:
        tensors = folded(file, part)
        if form == "network":
            return {f"{part}.{name}": value for name, value in (tensors or load_file(file)).items()}
        # SDXL's blocks are told apart by the U-Net's config
        config = network.config if part == "unet" else None
        read = pipeline.lora_state_dict(tensors or str(file.parent), weight_name=file.name, unet_config=config)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{file} {_OF_ANOTHER} ({first_line(error)})") from None
    tensors = read[0] if isinstance(read, tuple) else read
    text = {name: value for name, value in tensors.items() if name.startswith("text_encoder")}
    # U-Nets' keep .lora.down and .lora.up, which diffusers brings to peft's names when it puts them there
    mine = {name: value for name, value in tensors.items() if name not in text}
    return dict(convert_unet_state_dict_to_peft(mine)) | text
