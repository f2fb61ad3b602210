"""From a folder or a hub id to a backbone: reads `model_index.json`, picks the family, says clearly what is wrong."""

import json
from pathlib import Path

from diffusers import StableDiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError

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
    network = next((index[key][1] for key in ("unet", "transformer") if index.get(key)), "no network")
    if network not in FAMILIES or index.get("_class_name") != FAMILIES[network][0]:
        known = ", ".join(f"{pipeline} with {name}" for name, (pipeline, _) in FAMILIES.items())
        raise UserError(f"{teacher} is a {index.get('_class_name')} with {network}; expected {known}")
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(str(teacher), safety_checker=None, requires_safety_checker=False)
    except (OSError, ValueError, SafetensorError, json.JSONDecodeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{teacher} cannot be loaded: {reason}. Copy or download the pipeline folder again") from None
    return FAMILIES[network][1](pipeline)


def _model_index(teacher: str | Path) -> dict:
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
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"no folder {teacher}, and the hub does not give it either: {reason}") from None
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); copy or download the pipeline again") from None
