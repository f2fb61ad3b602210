"""From a folder, a hub id or a file to a backbone: picks the family, and says clearly what is wrong."""

import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from scott.errors import UserError, first_line
from scott.teacher_source import TeacherSource
from scott.teachers.fingerprint import network_version
from scott.teachers.modified import check_parts, complete, load_vae, merge_lora
from scott.teachers.network import LatentBackbone
from scott.teachers.quantize import require_bitsandbytes
from scott.teachers.single_file import cast, known_configs, lacking_parts, load_single_file

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
_BROKEN = (AttributeError, ImportError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)
_BROKEN = (*_BROKEN, SingleFileComponentError)  # type: ignore[assignment]
"""What the libraries raise where files of a pipeline are missing, corrupt, or say what cannot be."""
_PART = r"(?:-\d{5}-of-\d{5})?"
_WEIGHTS = re.compile(rf"(?:(?:diffusion_)?pytorch_)?model{_PART}(?:\.(\w+?))?{_PART}\.(?:safetensors|bin)")
LARGEST = 512
"""Latents a side: 4096 pixels with the usual VAE."""
_RENAMED = {"Transformer2DModel": "PixArtTransformer2DModel"}
"""What the published PixArt pipelines call the class, which diffusers has split since (and maps when it loads)."""


def load_backbone(
    teacher: str | Path | TeacherSource, dtype: torch.dtype = torch.float32, quantized: str = "none"
) -> LatentBackbone:
    """The backbone of a diffusers pipeline: of a local folder, a hub id, or as a `TeacherSource` says.

    The frozen network and the text encoders are held in `dtype`, the VAE in fp32. The network's blocks may be
    quantised to "int8" or "nf4".

    Raises:
        UserError: no pipeline there, a file missing or corrupt, a family scott does not know, or there is no
            bitsandbytes to quantise by.
    """
    if quantized != "none":
        require_bitsandbytes()
    source = TeacherSource.of(teacher)
    check_parts(source)
    index = model_index(source)
    pipeline_class, network, family = family_of(source.teacher, index)
    # a part that scott does not use, which may be large, is not read
    options: dict[str, Any] = {
        name: None for name in ("safety_checker", "feature_extractor", "image_encoder") if name in index
    }
    # a text part that is left out has to be left out by name
    text = [name for name in index if name.startswith(("text_encoder", "tokenizer"))]
    options |= {name: None for name in text if index[name] in (None, [None, None])}
    if "safety_checker" in options:
        options["requires_safety_checker"] = False
    # LoRAs are merged before anything is rounded: the same teacher comes of it in any dtype
    first = torch.float32 if source.loras else dtype
    if source.vae is not None:
        with _complaining_of(source.vae):
            options["vae"] = load_vae(source, getattr(diffusers, index["vae"][1]))
    with _complaining_of(source.teacher):
        if source.file:
            for name in lacking_parts(source, index):
                if name not in options:
                    where = TeacherSource(teacher=str(source.teacher_config), variant=source.variant)
                    options[name] = _whole(where, name, index[name][1], torch.float32 if name == "vae" else first)
            pipeline = load_single_file(source, pipeline_class, first, options)
        else:
            for name, entry in index.items():
                if name not in options and name.startswith(("unet", "transformer", "vae", "text_encoder")):
                    kind = network if name in ("unet", "transformer") else entry[1]
                    options[name] = _whole(source, name, kind, torch.float32 if name == "vae" else first)
            pipeline = pipeline_class.from_pretrained(source.teacher, **options)
        _check_text_parts(pipeline)
    _modify(pipeline, source, dtype)
    backbone = family(pipeline)
    backbone.version = network_version(backbone.network)
    if quantized != "none":
        backbone.quantize(quantized)
    return backbone


def _modify(pipeline: DiffusionPipeline, source: TeacherSource, dtype: torch.dtype) -> None:
    """Merge the LoRAs of its source into a pipeline."""
    for file, scale in source.loras:
        with _complaining_of(file):
            merge_lora(pipeline, file, scale)
    for name, part in pipeline.components.items():
        if source.loras and isinstance(part, nn.Module) and name != "vae":
            cast(part, dtype)


@contextmanager
def _complaining_of(what: str | Path) -> Iterator[None]:
    """Makes a `UserError` of what the libraries raise within the block."""
    try:
        yield
    except UserError:
        raise
    except _BROKEN as error:
        raise UserError(f"{what} cannot be loaded: {why(error)}") from None


def why(error: Exception) -> str:
    """The error's first line, and a way out, which that of an absent package names."""
    return first_line(error) + ("" if isinstance(error, ImportError) else ". Copy or download it again")


def _whole(source: TeacherSource, name: str, kind: str, dtype: torch.dtype) -> Any:
    """A pipeline's model by the name of its class, of the variant that is asked for or is the only one."""
    loader = getattr(diffusers if hasattr(diffusers, kind) else transformers, kind)
    if name in ("unet", "transformer"):
        check_sample_size(source.teacher, name, loader, loader.load_config(source.teacher, subfolder=name))
    read = partial(loader.from_pretrained, source.teacher, subfolder=name, dtype=dtype, output_loading_info=True)
    errors = []
    for variant in variants(source, name):
        try:
            return complete(read(variant=variant), name)
        except OSError as error:
            errors.append(error)
    raise errors[0]


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


def family_of(teacher: str | Path, index: dict[str, Any]) -> tuple[type[DiffusionPipeline], str, type[LatentBackbone]]:
    """The family of a model index; `UserError` with what is known when it is none of them."""
    parts = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and any(entry)}
    network = parts.get("unet", parts.get("transformer", "no network"))
    network = _RENAMED.get(network, network)
    name = str(index.get("_class_name"))
    if name not in FAMILIES or FAMILIES[name][0] != network:
        known = ", ".join(f"{pipeline} with {kind}" for pipeline, (kind, _, _) in FAMILIES.items())
        raise UserError(f"{teacher} is a {name} with {network}; expected {known}")
    _, file, backbone = FAMILIES[name]
    return getattr(diffusers, name), network, getattr(import_module(f"scott.teachers.{file}"), backbone)


def model_index(teacher: str | Path | TeacherSource) -> dict[str, Any]:
    """`model_index.json` of a folder or a hub id; `UserError` when there is none."""
    return read_json(teacher, "model_index.json")


def read_json(teacher: str | Path | TeacherSource, name: str) -> dict[str, Any]:
    """The JSON object in a file of a teacher's folder, hub id or configs; `UserError` when there is none."""
    source = TeacherSource.of(teacher)
    if source.file and source.teacher_config is None:
        return dict(known_configs(source.file)[name])
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
    try:
        index = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); copy or download the pipeline again") from None
    if not isinstance(index, dict):
        raise UserError(f"{file} holds no JSON object; copy or download the pipeline again")
    return index


def _check_text_parts(pipeline: DiffusionPipeline) -> None:
    """Raises ValueError for what the pipeline's class would only miss when it meets a prompt.

    A tokenizer that does not say how many tokens its encoder takes is given the number.
    """
    parts = pipeline.components
    for encoder in [name for name in parts if name.startswith("text_encoder")]:
        tokenizer = encoder.replace("text_encoder", "tokenizer")
        if parts[encoder] is None and encoder == "text_encoder_3":
            continue  # SD3 does without its T5
        if absent := [name for name in (tokenizer, encoder) if parts[name] is None]:
            raise ValueError(f"it has no {' and no '.join(absent)}")
        # transformers makes an empty tokenizer of a missing file, which encodes every prompt alike
        if parts[tokenizer]("a cat").input_ids == parts[tokenizer]("a dog").input_ids:
            raise ValueError(f"{tokenizer} knows no words; a file of it is missing")
        if (most := getattr(parts[encoder].config, "max_position_embeddings", None)) is not None:
            parts[tokenizer].model_max_length = min(most, parts[tokenizer].model_max_length)
    if hasattr(pipeline, "tokenizer_max_length"):  # SD3's own copy of it
        pipeline.tokenizer_max_length = parts["tokenizer"].model_max_length


def hide_loading_bars() -> None:
    """Keep diffusers and transformers from drawing bars of their own between a command's."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
