"""What a teacher says of itself before anything is loaded: its pipeline's class, its configs, its weights' variants."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError

from scott.errors import UserError, first_line
from scott.files import read_object
from scott.teacher_source import TeacherSource
from scott.teachers.network import LatentBackbone
from scott.teachers.single_file import known_configs

FAMILIES = {
    "StableDiffusionPipeline": ("UNet2DConditionModel", "sd", "UNetBackbone"),
    "StableDiffusionXLPipeline": ("UNet2DConditionModel", "sdxl", "SDXLBackbone"),
    "PixArtAlphaPipeline": ("PixArtTransformer2DModel", "pixart", "PixArtBackbone"),
    "PixArtSigmaPipeline": ("PixArtTransformer2DModel", "pixart", "PixArtBackbone"),
    "StableDiffusion3Pipeline": ("SD3Transformer2DModel", "sd3", "SD3Backbone"),
    "FluxPipeline": ("FluxTransformer2DModel", "flux", "FluxBackbone"),
    "ChromaPipeline": ("ChromaTransformer2DModel", "chroma", "ChromaBackbone"),
    "Flux2KleinPipeline": ("Flux2Transformer2DModel", "flux2", "Flux2KleinBackbone"),
    "QwenImagePipeline": ("QwenImageTransformer2DModel", "qwen_image", "QwenImageBackbone"),
    "ZImagePipeline": ("ZImageTransformer2DModel", "z_image", "ZImageBackbone"),
    "SanaPipeline": ("SanaTransformer2DModel", "sana", "SanaBackbone"),
}
"""Pipeline → the class of its network, and the file here and the class that stand for it; loaded when it is met."""
_PART = r"(?:-\d{5}-of-\d{5})?"
_WEIGHTS = re.compile(rf"(?:(?:diffusion_)?pytorch_)?model{_PART}(?:\.([\w-]+?))?{_PART}\.(?:safetensors|bin)")
LARGEST = 512
"""Latents a side: 4096 pixels with the usual VAE."""
_RENAMED = {"Transformer2DModel": "PixArtTransformer2DModel"}
"""What the published PixArt pipelines call the class, which diffusers has split since (and maps when it loads)."""


def family_of(teacher: str | Path, index: dict[str, Any]) -> tuple[type[DiffusionPipeline], str, type[LatentBackbone]]:
    """The family of a model index; `UserError` with what is known when it is none of them."""
    parts = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and any(entry)}
    network = parts.get("unet", parts.get("transformer", "no network"))
    network = _RENAMED.get(network, network)
    name = str(index.get("_class_name"))
    if name not in FAMILIES or FAMILIES[name][0] != network:
        known = ", ".join(f"{pipeline} with {kind}" for pipeline, (kind, _, _) in FAMILIES.items())
        raise UserError(f"{teacher} is a {name} with {network}; expected {known}")
    return getattr(diffusers, name), network, family_class(name)


def family_class(pipeline: str) -> type[LatentBackbone]:
    """What stands for a pipeline's class; for one that is no teacher's, what most of them have in common."""
    if pipeline not in FAMILIES:
        return LatentBackbone
    _, file, backbone = FAMILIES[pipeline]
    found: type[LatentBackbone] = getattr(import_module(f"scott.teachers.{file}"), backbone)
    return found


def model_index(teacher: str | Path | TeacherSource) -> dict[str, Any]:
    """`model_index.json` of a folder or a hub id; `UserError` when there is none."""
    index = read_json(teacher, "model_index.json")
    for name, entry in index.items():
        if isinstance(entry, list) and not (len(entry) == 2 and all(isinstance(part, str | None) for part in entry)):
            place = TeacherSource.of(teacher).teacher
            raise UserError(
                f"{place} cannot be loaded: {name} is {entry!r:.80} in model_index.json, not [library, class]"
            )
    return index


def read_json(teacher: str | Path | TeacherSource, name: str) -> dict[str, Any]:
    """The JSON object in a file of a teacher's folder, hub id or configs; `UserError` when there is none."""
    source = TeacherSource.of(teacher)
    if source.file and source.teacher_config is None:
        return dict(known_configs(source.file, source.prediction)[name])
    teacher = source.teacher_config if source.file and source.teacher_config else source.teacher
    folder = Path(teacher)
    if folder.is_dir():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{folder} has no {name}; expected a diffusers pipeline folder")
    elif folder.is_absolute() or len(folder.parts) != 2:
        raise UserError(f"no teacher at {folder}; expected a diffusers pipeline folder or a hub id (owner/name)")
    else:
        try:
            file = Path(hf_hub_download(teacher, name))
        except (OSError, ValueError, HFValidationError) as error:
            raise UserError(f"no folder {teacher}, and the hub does not give it: {first_line(error)}") from None
    return read_object(file)


def variants(source: TeacherSource, name: str) -> list[str | None]:
    """Which weights of a pipeline's model to read: the first of these that there are; None stands for the plain ones.

    Raises `UserError` where a folder has others than the ones asked for, or several.
    """
    folder, wanted = Path(source.teacher) / name, source.variant
    whole = name not in ("unet", "transformer")  # a variant may be of the network alone
    if not folder.is_dir():  # on the hub
        return [wanted] if wanted and not whole else [*dict.fromkeys((wanted, None, "fp16"))]
    found = {match[1] for file in folder.iterdir() if (match := _WEIGHTS.fullmatch(file.name))}
    named = sorted(variant for variant in found if variant)
    if wanted in found:
        return [wanted]
    if wanted and not whole:
        has = f"only {', '.join(named)}" if named else "none"
        raise UserError(f"{source.teacher} has no weights of {name} of the variant {wanted}; it has {has}")
    if None in found or not found:
        return [None]
    if len(named) > 1:
        raise UserError(f"{source.teacher} has several weights of {name}; give --variant {' or '.join(named)}")
    return [named[0]]


def check_plain(teacher: str | Path, part: str, config: dict[str, Any]) -> None:
    """Raise `UserError` where a model's weights are quantised already, of which no student can be saved."""
    if "quantization_config" in config:
        raise UserError(
            f"{teacher} has a quantised {part}; give the plain weights (--quantize nf4 holds the network in 4 bits)"
        )


def check_sample_size(teacher: str | Path, part: str, network: type, config: dict[str, Any]) -> None:
    """Raise `UserError` where a network's config does not say what side its latents have, before it is built; some
    classes have no such entry."""
    if (known := inspect.signature(network).parameters.get("sample_size")) is None:
        return
    size = config.get("sample_size", known.default)
    if type(size) is not int or not 1 <= size <= LARGEST:
        raise UserError(
            f"{teacher} has sample_size {size!r:.40} in {part}/config.json; expected the side of its latents, a number "
            f"from 1 to {LARGEST} such as 64 for SD1.5's 512 pixels; put it there"
        )
