"""From a folder or a hub id to a backbone: reads `model_index.json`, picks the family, says clearly what is wrong."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from scott.backbones.base import Backbone
from scott.backbones.unet import UNetBackbone
from scott.errors import UserError

FAMILIES = {"UNet2DConditionModel": ("StableDiffusionPipeline", UNetBackbone)}


def load_backbone(teacher: str | Path) -> Backbone:
    """The backbone of a diffusers pipeline: a local folder, or a hub id such as `stable-diffusion-v1-5/...`.

    Raises:
        UserError: no pipeline there, a file missing or corrupt, or a family scott does not know.
    """
    index = _model_index(teacher)
    parts = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and any(entry)}
    network = parts.get("unet", parts.get("transformer", "no network"))
    if network not in FAMILIES or index.get("_class_name") != FAMILIES[network][0]:
        known = ", ".join(f"{pipeline} with {name}" for name, (pipeline, _) in FAMILIES.items())
        raise UserError(f"{teacher} is a {index.get('_class_name')} with {network}; expected {known}")
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            str(teacher), dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        _check_vocabulary(pipeline)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{teacher} cannot be loaded: {_first_line(error)}. Copy or download it again") from None
    return FAMILIES[network][1](pipeline)


def _model_index(teacher: str | Path) -> dict[str, Any]:
    folder = Path(teacher)
    if folder.is_dir():
        file = folder / "model_index.json"
        if not file.is_file():
            raise UserError(f"{folder} has no model_index.json; expected a diffusers pipeline folder")
    elif folder.is_absolute() or len(folder.parts) != 2:
        raise UserError(f"no teacher at {folder}; expected a diffusers pipeline folder or a hub id (owner/name)")
    else:
        try:
            file = Path(hf_hub_download(str(teacher), "model_index.json"))
        except (OSError, ValueError, HFValidationError) as error:
            raise UserError(f"no folder {teacher}, and the hub does not give it: {_first_line(error)}") from None
    try:
        index = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); copy or download the pipeline again") from None
    if not isinstance(index, dict):
        raise UserError(f"{file} holds no JSON object; copy or download the pipeline again")
    return index


def _check_vocabulary(pipeline: StableDiffusionPipeline) -> None:
    # transformers makes an empty tokenizer of a missing file, which encodes every prompt alike
    known, embedded = len(pipeline.tokenizer), pipeline.text_encoder.config.vocab_size
    if known < embedded // 2:
        raise ValueError(f"the tokenizer knows {known} tokens and the text encoder {embedded}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def hide_loading_bars() -> None:
    """Keep diffusers and transformers from drawing bars of their own between a command's."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
