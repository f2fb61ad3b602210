"""The student as a LoRA file for the original teacher, in the three forms that are read elsewhere.

    diffusers   pytorch_lora_weights.safetensors, keys `unet.<layer>.lora_A.weight`, α in the file's metadata:
                `pipe.load_lora_weights`
    peft        adapter_model.safetensors and adapter_config.json, for pipelines without `load_lora_weights`:
                `PeftModel.from_pretrained`
    kohya       keys `lora_unet_<layer>.lora_down.weight`, α as a tensor: A1111 and ComfyUI

The tensors are the run's own A and B; a reader applies (α / r) B A. A file whose keys a reader does not know loads
without an error and changes nothing, so what counts is what the reader's network then holds.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scott.errors import UserError
from scott.export.pipeline import check, stock_latents
from scott.export.trained import StudentInfo, Trained
from scott.teachers import LatentBackbone, load_backbone
from scott.training.config import DistillConfig
from scott.training.parallel import load_parameters

METADATA = "scott"
"""Key of `StudentInfo` in a file's metadata."""


@dataclass(frozen=True)
class Form:
    """How a kind of LoRA file names a layer's A and B, given the pipeline's part and the layer."""

    file: str
    keys: Callable[[str, str], tuple[str, str]]


FORMS = {
    "diffusers": Form(
        "pytorch_lora_weights.safetensors",
        lambda part, layer: (f"{part}.{layer}.lora_A.weight", f"{part}.{layer}.lora_B.weight"),
    ),
    "peft": Form(
        "adapter_model.safetensors",
        lambda part, layer: (f"base_model.model.{layer}.lora_A.weight", f"base_model.model.{layer}.lora_B.weight"),
    ),
    "kohya": Form(
        "lora.safetensors",
        lambda part, layer: (f"{_kohya(part, layer)}.lora_down.weight", f"{_kohya(part, layer)}.lora_up.weight"),
    ),
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
    pipeline.scheduler = trained.backbone.few_step_scheduler(trained.grid)
    network = _load_as_stock(pipeline, trained.backbone.part, folder, form)
    _check_updates(network, trained.backbone, folder)
    check("the stock pipeline", folder, trained.latents(), stock_latents(pipeline, trained.info.guidance_scale))


def save_lora(trained: Trained, folder: Path, form: str) -> None:
    """Write the file, with α, and beside it the scheduler to draw with."""
    backbone, config = trained.backbone, trained.config
    part, rank, alpha = backbone.part, config.lora_rank, config.alpha
    tensors: dict[str, Tensor] = {}
    for layer, (key_a, key_b) in _keys(backbone, form).items():
        a, b = _target(backbone, layer)
        tensors |= {key_a: a, key_b: b[..., None, None] if a.ndim == 4 else b}
        if form == "kohya":
            tensors[f"{_kohya(part, layer)}.alpha"] = torch.tensor(alpha)
    adapter = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(_keys(backbone, form))}
    metadata = {"format": "pt", METADATA: trained.info.to_json()}
    if form == "diffusers":
        metadata["lora_adapter_metadata"] = json.dumps({f"{part}.{name}": value for name, value in adapter.items()})
    if form == "peft":
        LoraConfig(**adapter, base_model_name_or_path=trained.config.teacher).save_pretrained(folder)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / FORMS[form].file, metadata)
    backbone.few_step_scheduler(trained.grid).save_pretrained(folder / "scheduler")


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
    backbone.add_student("lora", rank=info.lora_rank, alpha=info.lora_alpha)
    pairs = max((_keys(backbone, form) for form in FORMS), key=lambda keys: _count(keys, tensors))
    given = {key for key in tensors if not key.endswith(".alpha")}
    if given != (expected := {key for pair in pairs.values() for key in pair}):
        raise UserError(
            f"{file} is a LoRA of another kind of teacher: {len(expected - given)} keys are missing and "
            f"{len(given - expected)} are unknown; give the --teacher it was made for"
        )
    values: dict[str, Tensor] = {}
    for layer, (key_a, key_b) in pairs.items():
        values |= {f"{layer}.lora_A": tensors[key_a], f"{layer}.lora_B": tensors[key_b].flatten(1)}
    load_parameters(backbone.target_parameters(), values, "LoRA")
    return info


def _load_as_stock(pipeline: DiffusionPipeline, part: str, folder: Path, form: str) -> nn.Module:
    """Load the file the way its reader does, on the network of a stock pipeline; the network."""
    if form == "peft":
        setattr(pipeline, part, PeftModel.from_pretrained(getattr(pipeline, part), str(folder)).eval())
    else:
        pipeline.load_lora_weights(str(folder), weight_name=FORMS[form].file)
    return getattr(pipeline, part)


def _check_updates(network: nn.Module, backbone: LatentBackbone, folder: Path) -> None:
    """Raise `UserError` unless peft's layers on `network` hold (α / r) B A of the student, each and no other."""
    loaded = {
        name.removeprefix("base_model.model."): module
        for name, module in network.named_modules()
        if isinstance(module, LoraLayer)
    }
    ours = {name: layer for name, layer in backbone.adapters.layers.items() if "target" in layer.lora_A}
    if loaded.keys() != ours.keys():
        raise UserError(
            f"the LoRA read back from {folder} changes {len(loaded)} layers, {len(loaded.keys() & ours.keys())} of the "
            f"student's {len(ours)}; nothing was exported"
        )
    for name, module in loaded.items():
        expected, got = ours[name].delta("target"), module.get_delta_weight(module.active_adapters[0])
        if not (expected - got).abs().max() <= 1e-5 * expected.abs().max():
            raise UserError(f"the LoRA read back from {folder} differs on layer {name}; nothing was exported")


def _keys(backbone: LatentBackbone, form: str) -> dict[str, tuple[str, str]]:
    """Layer → the names of its A and B."""
    layers = [name.removesuffix(".lora_A") for name in backbone.target_parameters() if name.endswith(".lora_A")]
    return {layer: FORMS[form].keys(backbone.part, layer) for layer in layers}


def _target(backbone: LatentBackbone, layer: str) -> tuple[Tensor, Tensor]:
    parameters = backbone.target_parameters()
    return parameters[f"{layer}.lora_A"].detach(), parameters[f"{layer}.lora_B"].detach()


def _count(keys: dict[str, tuple[str, str]], tensors: dict[str, Tensor]) -> int:
    return sum(key_a in tensors for key_a, _ in keys.values())


def _kohya(part: str, layer: str) -> str:
    return f"lora_{part}_{layer.replace('.', '_')}"


def _lora_file(path: Path) -> Path:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file():
        raise UserError(f"no LoRA file at {path}; expected a .safetensors file, or a folder that has one")
    return files[0]
