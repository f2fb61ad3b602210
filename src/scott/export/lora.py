"""The student as a LoRA file for the original teacher, in the three forms that are read elsewhere.

    diffusers   pytorch_lora_weights.safetensors, keys `unet.<layer>.lora_A.weight`, α in the file's metadata:
                `pipe.load_lora_weights`
    peft        adapter_model.safetensors and adapter_config.json, for pipelines without `load_lora_weights`:
                `PeftModel.from_pretrained`
    kohya       keys `lora_unet_<layer>.lora_down.weight`, α as a tensor: A1111 and ComfyUI

The tensors are the run's own; a DoRA has `lora_magnitude_vector` besides A and B. A file whose keys a reader does not
know loads without an error and changes nothing, so what counts is what the reader's network then holds.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scott.errors import UserError
from scott.export.pipeline import check, stock_latents
from scott.export.trained import StudentInfo, Trained, few_step_scheduler
from scott.teachers import LatentBackbone, load_backbone
from scott.training.config import DistillConfig
from scott.training.parallel import load_parameters

METADATA = "scott"
"""Key of `StudentInfo` in a file's metadata."""


@dataclass(frozen=True)
class Form:
    """How a kind of LoRA file names a parameter, given the pipeline's part and peft's `<layer>.lora_A.weight`."""

    file: str
    key: Callable[[str, str], str]


def _kohya_key(part: str, name: str) -> str:
    layer, parameter = name.rsplit(".lora_", 1)
    return f"{_kohya(part, layer)}.{ {'A.weight': 'lora_down.weight', 'B.weight': 'lora_up.weight'}[parameter] }"


FORMS = {
    "diffusers": Form("pytorch_lora_weights.safetensors", lambda part, name: f"{part}.{name}"),
    "peft": Form("adapter_model.safetensors", lambda part, name: f"base_model.model.{name}"),
    "kohya": Form("lora.safetensors", _kohya_key),
}


def require_lora(config: DistillConfig) -> None:
    """Raise `UserError` unless the run's student is a LoRA."""
    if config.train != "lora":
        raise UserError("the run trained a full student, which no LoRA file can hold; use --to diffusers")


def lora_form(trained: Trained, kohya: bool) -> str:
    """The form a LoRA student's file has to have. Raises `UserError` where there is none."""
    backbone = trained.backbone
    if kohya and backbone.part != "unet":
        raise UserError(
            f"kohya's keys are known for U-Nets only, and {trained.info.pipeline} has a transformer; use --to lora"
        )
    if kohya and trained.config.lora_variant == "dora":
        raise UserError("kohya's programs read DoRA each in its own way; use --to lora or --to diffusers")
    if kohya:
        return "kohya"
    return "diffusers" if hasattr(backbone.pipeline, "load_lora_weights") else "peft"


def write_lora(trained: Trained, folder: Path, form: str) -> None:
    """Write the EMA student's LoRA to `folder` and have its reader put it on a fresh copy of the original teacher.

    Raises `UserError` when other layers are changed there than the student changes, or in another way, or when the
    2-step latent is off.
    """
    save_lora(trained, folder, form)
    pipeline = load_backbone(trained.teacher).pipeline
    pipeline.scheduler = few_step_scheduler(trained.backbone, trained.grid)
    network = _load_as_stock(pipeline, trained.backbone.part, folder, form)
    _check_updates(network, trained.backbone, folder)
    drawn = stock_latents(pipeline, trained.info.guidance_scale, trained.backbone.resolution)
    check("the stock pipeline", folder, trained.latents(), drawn)


def save_lora(trained: Trained, folder: Path, form: str) -> None:
    """Write the file, with α, and beside it the scheduler to draw with."""
    backbone, part = trained.backbone, trained.backbone.part
    tensors = _file_tensors(backbone, form)
    if form == "kohya":
        # its readers know α / r alone
        alpha = torch.tensor(backbone.adapters.scaling("target") * trained.config.lora_rank)
        tensors |= {f"{_kohya(part, layer)}.alpha": alpha.clone() for layer in _layers(backbone)}
    adapter = lora_config(trained.config, _layers(backbone))
    metadata = {"format": "pt", METADATA: trained.info.to_json()}
    if form == "diffusers":
        metadata["lora_adapter_metadata"] = json.dumps({f"{part}.{name}": value for name, value in adapter.items()})
    if form == "peft":
        LoraConfig(**adapter, base_model_name_or_path=trained.config.teacher).save_pretrained(folder)
    save_file(tensors, folder / FORMS[form].file, metadata)
    few_step_scheduler(backbone, trained.grid).save_pretrained(folder / "scheduler")


def lora_config(config: DistillConfig, layers: list[str]) -> dict[str, Any]:
    """peft's config of a student: what every version of peft and diffusers that reads a config knows."""
    return {
        "r": config.lora_rank,
        "lora_alpha": config.alpha,
        "target_modules": layers,
        "rank_pattern": {},
        "alpha_pattern": {},
        "lora_bias": False,
        "use_rslora": config.lora_variant == "rslora",
        "use_dora": config.lora_variant == "dora",
    }


def apply_lora(backbone: LatentBackbone, path: Path) -> StudentInfo:
    """Make a file that `save_lora` wrote, or a folder with one, the `target` of the teacher it was made for.

    Raises `UserError` when there is no such file, or it is not for this teacher.
    """
    file = _lora_file(path)
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}); expected a LoRA file of `scott export`") from None
    if METADATA not in metadata:
        raise UserError(f"{file} was not written by `scott export`, so its steps are unknown; draw it with diffusers")
    info = StudentInfo.from_json(metadata[METADATA], file)
    if info.lora_rank is None or info.lora_alpha is None:
        raise UserError(f"{file} does not say its rank and α; export it again")
    backbone.add_student("lora", rank=info.lora_rank, alpha=info.lora_alpha, variant=info.lora_variant)
    keys = max((_keys(backbone, form) for form in FORMS), key=lambda keys: len(tensors.keys() & keys))
    given = {key for key in tensors if not key.endswith(".alpha")}
    if given != (expected := set(keys)):
        raise UserError(
            f"{file} is a LoRA of another kind of teacher: {len(expected - given)} keys are missing and "
            f"{len(given - expected)} are unknown; give the --teacher it was made for"
        )
    load_parameters(backbone.target_parameters(), {keys[key]: tensors[key] for key in given}, "LoRA")
    return info


def _load_as_stock(pipeline: DiffusionPipeline, part: str, folder: Path, form: str) -> nn.Module:
    """Load the file the way its reader does, on the network of a stock pipeline; the network."""
    if form == "peft":
        setattr(pipeline, part, PeftModel.from_pretrained(getattr(pipeline, part), str(folder)).eval())
    else:
        pipeline.load_lora_weights(str(folder), weight_name=FORMS[form].file)
    return getattr(pipeline, part)


def _check_updates(network: nn.Module, backbone: LatentBackbone, folder: Path) -> None:
    """Raise `UserError` unless peft's layers on `network` hold the student's update s B A, each and no other."""
    loaded = {
        name.removeprefix("base_model.model."): module
        for name, module in network.named_modules()
        if isinstance(module, LoraLayer)
    }
    ours = {name: backbone.adapters.layers[name] for name in _layers(backbone)}
    if loaded.keys() != ours.keys():
        raise UserError(
            f"the LoRA read back from {folder} changes {len(loaded)} layers, {len(loaded.keys() & ours.keys())} of the "
            f"student's {len(ours)}; nothing was exported"
        )
    for name, module in loaded.items():
        expected, got = ours[name].get_delta_weight("target"), module.get_delta_weight(module.active_adapters[0])
        if not (expected - got).abs().max() <= 1e-5 * expected.abs().max():
            raise UserError(f"the LoRA read back from {folder} differs on layer {name}; nothing was exported")


def _layers(backbone: LatentBackbone) -> list[str]:
    ending = ".lora_A.weight"
    return sorted(name.removesuffix(ending) for name in backbone.target_parameters() if name.endswith(ending))


def _keys(backbone: LatentBackbone, form: str) -> dict[str, str]:
    """Key in the file → name of the target's parameter."""
    names = backbone.target_parameters()
    dora = ".lora_magnitude_vector"  # a module within the network, and a tensor in all files
    if form == "kohya":
        names = {name: value for name, value in names.items() if dora not in name}
    return {FORMS[form].key(backbone.part, name.replace(f"{dora}.weight", dora)): name for name in names}


def _file_tensors(backbone: LatentBackbone, form: str) -> dict[str, Tensor]:
    parameters = backbone.target_parameters()
    return {key: parameters[name].detach().contiguous() for key, name in _keys(backbone, form).items()}


def _kohya(part: str, layer: str) -> str:
    return f"lora_{part}_{layer.replace('.', '_')}"


def _lora_file(path: Path) -> Path:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file():
        raise UserError(f"no LoRA file at {path}; expected a .safetensors file, or a folder that has one")
    return files[0]
